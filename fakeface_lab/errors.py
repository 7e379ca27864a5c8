"""All user-facing exceptions. Each message is one line: what, where, what is allowed, what to do."""

import re

__all__ = [
    "AccessError",
    "AllTrialsFailedError",
    "ConfigError",
    "DataError",
    "FakefaceLabError",
    "ModelError",
    "NotFoundError",
    "SearchError",
    "TooManyFailuresError",
    "TrackingError",
    "TrainingDivergedError",
    "without_credentials",
]


def without_credentials(text: str) -> str:
    """Return a text with the user and password of every address in it replaced by `***`."""
    # Greedy up to the last @, because a password may contain one.
    return re.sub(r"(?<=://)[^/\s]+@", "***@", text)


class FakefaceLabError(Exception):
    """Base of all errors that end a program with one line on stderr instead of a traceback.

    Messages quote addresses and the errors of other libraries, so passwords are removed from them.

    Attributes:
        exit_code: the program's exit code; 2 means a user error.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


class ConfigError(FakefaceLabError, ValueError):
    """A setting is unknown, out of range, or contradicts another one.

    A ValueError too, as KerasTuner raises for arguments of its tuners.
    """


class DataError(FakefaceLabError):
    """The images cannot be found, read, or split as asked."""


class ModelError(FakefaceLabError):
    """A tracked model cannot be loaded, or cannot be applied to the given images."""


class NotFoundError(FakefaceLabError):
    """A name or id does not identify one run, model or file of the tracking store."""


class SearchError(FakefaceLabError):
    """A search cannot be run as asked, or results cannot be compared."""


class TrackingError(FakefaceLabError):
    """The tracking store cannot be opened, or was unreachable beyond the retry limit."""

    exit_code = 1


class AccessError(TrackingError):
    """The tracking server refuses the user: wrong password, or no permission."""

    exit_code = 2


class TrainingDivergedError(FakefaceLabError):
    """The loss became NaN or infinite."""

    exit_code = 1


# The exit code is that of a search without a result: scripts must not take the trials before it for the answer.
class TooManyFailuresError(SearchError, RuntimeError):
    """As many trials in a row failed as the oracle's `max_consecutive_failed_trials` allows.

    A RuntimeError too, because KerasTuner raises one.
    """

    exit_code = 4


class AllTrialsFailedError(SearchError):
    """A search ended without a single trial that has a score."""

    exit_code = 4
