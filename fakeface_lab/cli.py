"""What all programs share on the outside: settings, signals, one-line errors, exit codes.

0 done, 1 our fault (with a trace), 2 the user's mistake, 3 the audit found what makes results void, 4 no trial
succeeded, 130 Ctrl-C, 143 SIGTERM.
"""

import io
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from fakeface_lab.config import Settings, load_settings
from fakeface_lab.errors import FakefaceLabError

__all__ = ["run_program"]

SettingsT = TypeVar("SettingsT", bound=Settings)

_STOPPED = "stopped; what is finished is kept"
EXIT_BUG, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 130, 143


def run_program(
    settings_class: type[SettingsT],
    prog: str,
    body: Callable[[SettingsT], object],
    argv: list[str] | None = None,
) -> int:
    """Read the settings, run `body` with them, and return the exit code.

    Args:
        settings_class: what the program takes.
        prog: how the program is called.
        body: does the work; an int that it returns is the exit code.
        argv: the command line; None for this process's own.
    """
    words = sys.argv[1:] if argv is None else argv
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file's name may hold bytes that are no text; it is shown escaped rather than ending the program.
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
        return err.code if isinstance(err.code, int) else 0
    except Exception:
        traceback.print_exc()
        print("error: this is a fault of the program; please report it with the trace above", file=sys.stderr)
        return EXIT_BUG
    finally:
        signal.signal(signal.SIGTERM, handler_before)


def _raise_exit(signal_number: int, frame: FrameType | None) -> None:
    # Unwinds the stack, so that open runs end as KILLED.
    raise SystemExit(EXIT_TERMINATED)
