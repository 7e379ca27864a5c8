"""Every exception a user can meet. Each message is one line: what, where, what is allowed, what to do."""

import re

__all__ = [
    "AllTrialsFailedError",
    "ConfigError",
    "DataError",
    "FakefaceLabError",
    "ModelError",
    "SearchError",
    "TrackingError",
    "TrainingDivergedError",
    "without_credentials",
]


def without_credentials(text: str) -> str:
    """Return a text with user and password of every address in it replaced by `***`."""
    return re.sub(r"(?<=://)[^/\s]+@", "***@", text)


class FakefaceLabError(Exception):
    """Base of all errors that end a program with one line on stderr instead of a trace.

    Messages quote addresses and the errors of other libraries: passwords are taken out.

    Attributes:
        exit_code: what the program returns to the shell; 2 is the user's mistake.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


class ConfigError(FakefaceLabError):
    """A setting is unknown, out of range, or contradicts another one."""


class DataError(FakefaceLabError):
    """The images cannot be found, read, or split as asked."""


class ModelError(FakefaceLabError):
    """A tracked model cannot be found, loaded, or applied to the given images."""


class SearchError(FakefaceLabError):
    """A search cannot be started or continued as asked."""


class TrackingError(FakefaceLabError):
    """The tracking store cannot be opened, or stayed away for too long."""

    exit_code = 1


class TrainingDivergedError(FakefaceLabError):
    """The loss became NaN or infinite."""

    exit_code = 1


class AllTrialsFailedError(SearchError):
    """A search ended without one trial that has a score."""

    exit_code = 4
