"""What an exception in a training says: whose fault it is, and whether another attempt may do better."""

from typing import Literal

from fakeface_lab.backend import tf
from fakeface_lab.errors import FakefaceLabError, without_credentials

__all__ = ["explain_fault", "kind_of_fault"]

_OUT_OF_MEMORY = (MemoryError, tf.errors.ResourceExhaustedError)
# A driver or a library that stumbled (cuDNN, NCCL): it may be this network's shape or the machine.
_STUMBLED = (
    tf.errors.InternalError,
    tf.errors.UnknownError,
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DataLossError,
)
# A path that is wrong stays wrong; a full disk or a lost connection does not.
_WRONG_PATH = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


def kind_of_fault(err: Exception) -> Literal["failed", "died", "disturbed"]:
    """Return what became of an attempt.

    `failed`: a fault in the model or its data, the same in every attempt. `died`: memory or a driver gave out, the next
    attempt may do better. `disturbed`: a full disk, a lost connection; no trial is to blame.
    """
    if isinstance(err, (*_OUT_OF_MEMORY, *_STUMBLED)):
        return "died"
    return "disturbed" if isinstance(err, OSError) and not isinstance(err, _WRONG_PATH) else "failed"


def explain_fault(err: Exception) -> str:
    """Return in one line why a training failed, for the run's tag `status_reason`."""
    first_line = without_credentials(str(err).partition("\n")[0])
    if isinstance(err, FakefaceLabError):
        return first_line
    if isinstance(err, _OUT_OF_MEMORY):
        return f"out of memory: {first_line or 'no detail'}"
    return f"{type(err).__name__}: {first_line}"
