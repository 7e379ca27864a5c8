"""The terminal that every program writes to, and how durations read on it. Loads no TensorFlow."""

from rich.console import Console

__all__ = ["console", "format_secs", "wide_console"]

console = Console(highlight=False, soft_wrap=True)

# For tables with names and ids, which a narrow terminal may wrap but nothing may cut: they are there to be copied.
wide_console = Console(highlight=False, width=400)


def format_secs(secs: float) -> str:
    """Return a duration as people say it: `42 s`, `6 min 20 s`, `2 h 05 min`."""
    if secs < 60:
        return f"{secs:.0f} s"
    if secs < 3600:
        return f"{secs // 60:.0f} min {secs % 60:02.0f} s"
    return f"{secs // 3600:.0f} h {secs % 3600 // 60:02.0f} min"
