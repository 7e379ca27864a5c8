"""Why an attempt at a training ended in an error, and whose fault it was."""

import traceback
from contextlib import suppress
from pathlib import Path
from typing import Literal

from fakeface_lab.backend import keras_tuner, tf
from fakeface_lab.errors import FakefaceLabError, ModelError, without_credentials

__all__ = ["ERROR", "Fault", "explain_fault", "keep_traceback", "kind_of_fault"]

ERROR = "error.txt"

_OUT_OF_MEMORY = (MemoryError, tf.errors.ResourceExhaustedError)
# Errors of a driver or library (cuDNN, NCCL): caused by this network's shape, or by the machine.
_LIBRARY_ERRORS = (
    tf.errors.InternalError,
    tf.errors.UnknownError,
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DataLossError,
)
# A wrong path stays wrong; a full disk or a lost connection may recover.
_WRONG_PATH = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)

Fault = Literal["failed", "invalid", "fatal", "died", "disturbed", "lost"]


def kind_of_fault(err: Exception) -> Fault:
    """Classify the error that ended an attempt.

    `failed`: this configuration cannot be trained. `invalid`: any other error of the model or its data; tried again as
    often as the oracle's `max_retries_per_trial` says. `fatal`: KerasTuner's word for what ends a search. `died`: out
    of memory or an error of a library; the next attempt may succeed. `disturbed`: a full disk or a lost connection,
    not the trial's fault. Engines add `lost`: the machine is gone.
    """
    if isinstance(err, keras_tuner.errors.FatalError):
        return "fatal"
    if isinstance(err, keras_tuner.errors.FailedTrialError | ModelError):
        return "failed"
    if isinstance(err, (*_OUT_OF_MEMORY, *_LIBRARY_ERRORS)):
        return "died"
    return "disturbed" if isinstance(err, OSError) and not isinstance(err, _WRONG_PATH) else "invalid"


def keep_traceback(err: Exception, folder: Path) -> None:
    """Write where an attempt failed to `error.txt` in the folder of its run."""
    text = "".join(traceback.format_exception(err))
    with suppress(OSError):  # on a full disk the reason alone has to do
        (folder / ERROR).write_text(without_credentials(text), encoding="utf-8")


def explain_fault(err: Exception) -> str:
    """Return why a training failed, in one line, for the run's tag `status_reason`."""
    first_line = without_credentials(str(err).partition("\n")[0])
    if isinstance(err, FakefaceLabError):
        return first_line
    # A MemoryError often has no text.
    if isinstance(err, _OUT_OF_MEMORY):
        return f"out of memory: {first_line or 'no detail'}"
    return f"{type(err).__name__}: {first_line}"
