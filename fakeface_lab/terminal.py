"""What all programs share: terminal output, signals, one-line errors and exit codes. Loads no TensorFlow.

Exit codes: 0 success, 1 internal error (with a traceback) or no tracking store, 2 user error or a problem that the
doctor found, 3 void audit or unmet `--require`, 4 no trial succeeded, 130 Ctrl-C, 143 SIGTERM.
"""

import io
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Protocol, TypeVar

from rich.console import Console
from rich.text import Text

from fakeface_lab.config import Settings, load_settings
from fakeface_lab.errors import FakefaceLabError

__all__ = ["console", "format_secs", "format_value", "print_places", "run_program", "say", "wide_console"]

# No markup and no emoji codes: foreign text (`[/job:localhost/...]`, `:key:`) is printed verbatim and cannot raise.
# Soft wrap: rich would break paths and commands at the width of the terminal, and users copy them.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)

# For tables with names and ids: a narrow terminal may wrap them but must not cut them, because users copy them.
wide_console = Console(highlight=False, width=400, markup=False, emoji=False)


def say(label: str, text: str, style: str = "", label_style: str = "bold") -> None:
    """Print one line of a report: a label ("" on continuation lines) and a text."""
    console.print(Text.assemble((f"{label:<10}", label_style), (text, style)))


def format_secs(secs: float) -> str:
    """Return a readable duration: `42 s`, `6 min 20 s`, `2 h 05 min`."""
    if secs < 60:
        return f"{secs:.0f} s"
    if secs < 3600:
        return f"{secs // 60:.0f} min {secs % 60:02.0f} s"
    return f"{secs // 3600:.0f} h {secs % 3600 // 60:02.0f} min"


def format_value(value: object, num_digits: int) -> str:
    """Return a hyperparameter as text, a float with `num_digits` significant digits."""
    return f"{value:.{num_digits}g}" if isinstance(value, float) else str(value)


class _Store(Protocol):
    def places(self, run_name: str, run_id: str, views: Mapping[str, str] | None) -> list[tuple[str, str]]: ...


def print_places(store: _Store, run_name: str, run_id: str, views: Mapping[str, str] | None = None) -> None:
    """Print where a run is and how to view it; `views` are the addresses of its saved views by name."""
    for label, text in store.places(run_name, run_id, views):
        say(label, text)


SettingsT = TypeVar("SettingsT", bound=Settings)

_STOPPED = "stopped; finished work is kept"
# 128 + the number of the signal, as a shell reports it.
EXIT_BUG, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 130, 143


def run_program(
    settings_class: type[SettingsT],
    prog: str,
    body: Callable[[SettingsT], object],
    argv: list[str] | None = None,
) -> int:
    """Read the settings, run `body` with them, and return the exit code.

    Args:
        settings_class: the settings of the program.
        prog: the program's name in `--help`.
        body: does the work; if it returns an int, that is the exit code.
        argv: the command line; None for that of this process.
    """
    words = sys.argv[1:] if argv is None else argv
    # Read before the settings are, so that an error in the settings can have its traceback too.
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name may contain bytes that are not text: print them escaped instead of failing.
            stream.reconfigure(errors="backslashreplace")
    handler_before = signal.signal(signal.SIGTERM, _raise_exit)
    try:
        settings = load_settings(settings_class, words, prog)
        debug = settings.debug
        code = body(settings)
        return code if isinstance(code, int) else 0
    except FakefaceLabError as err:
        if debug:
            traceback.print_exc()
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code
    except KeyboardInterrupt:
        print(_STOPPED, file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as err:  # --help, or SIGTERM
        if err.code == EXIT_TERMINATED:
            print(_STOPPED, file=sys.stderr)
        if isinstance(err.code, str):  # as the interpreter does
            print(err.code, file=sys.stderr)
            return EXIT_BUG
        return err.code or 0
    except Exception:
        traceback.print_exc()
        print("error: internal error; please report it with the traceback above", file=sys.stderr)
        return EXIT_BUG
    finally:
        # The caller may be a notebook or a test, which outlives the program.
        signal.signal(signal.SIGTERM, handler_before)


def _raise_exit(signal_number: int, frame: FrameType | None) -> None:
    # Unwinds the stack, so that open runs end as KILLED.
    raise SystemExit(EXIT_TERMINATED)
