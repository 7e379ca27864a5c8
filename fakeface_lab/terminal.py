"""The terminal that every program writes to, and how durations read on it. Loads no TensorFlow."""

from typing import Protocol

from rich.console import Console
from rich.text import Text

__all__ = ["console", "format_secs", "print_places", "say", "wide_console"]

# No markup, no emoji codes: foreign text (`[/job:localhost/...]`, `:key:`) is printed as it is and cannot raise.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

# For tables with names and ids, which a narrow terminal may wrap but nothing may cut: they are there to be copied.
wide_console = Console(highlight=False, width=400, markup=False, emoji=False)


def say(label: str, text: str, style: str = "", label_style: str = "bold") -> None:
    """Print one line of a report: a label, "" for a line that continues the one above, and what there is to say."""
    console.print(Text.assemble((f"{label:<10}", label_style), (text, style)))


def format_secs(secs: float) -> str:
    """Return a duration as people say it: `42 s`, `6 min 20 s`, `2 h 05 min`."""
    if secs < 60:
        return f"{secs:.0f} s"
    if secs < 3600:
        return f"{secs // 60:.0f} min {secs % 60:02.0f} s"
    return f"{secs // 3600:.0f} h {secs % 3600 // 60:02.0f} min"


class _Store(Protocol):
    def places(self, run_name: str, run_id: str) -> list[tuple[str, str]]: ...


def print_places(store: _Store, run_name: str, run_id: str) -> None:
    """Say where a run is and how to look at it."""
    for label, text in store.places(run_name, run_id):
        say(label, text)
