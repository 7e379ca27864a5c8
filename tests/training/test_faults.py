"""Errors of a training: whose fault they are, said in one line, and where they happened."""

import errno
from pathlib import Path

import pytest

from fakeface_lab.backend import keras_tuner, tf
from fakeface_lab.errors import ModelError
from fakeface_lab.training.faults import ERROR, explain_fault, keep_traceback, kind_of_fault


@pytest.mark.parametrize(
    ("err", "kind", "reason"),
    [
        (ValueError("a shape\nmore"), "invalid", "ValueError: a shape"),
        (keras_tuner.errors.FailedTrialError("too small"), "failed", "FailedTrialError: too small"),
        (keras_tuner.errors.FatalTypeError("no model"), "fatal", "FatalTypeError: no model"),
        (ModelError("too large"), "failed", "too large"),
        (FileNotFoundError(errno.ENOENT, "no file", "a.h5"), "invalid", "FileNotFoundError: [Errno 2] no file: 'a.h5'"),
        (MemoryError(), "died", "out of memory: no detail"),
        (tf.errors.ResourceExhaustedError(None, None, "OOM"), "died", "out of memory: OOM"),
        (tf.errors.InternalError(None, None, "cuDNN"), "died", "InternalError: cuDNN"),
        (OSError(errno.ENOSPC, "full"), "disturbed", "OSError: [Errno 28] full"),
        (OSError(errno.ESTALE, "Stale file handle"), "disturbed", f"OSError: [Errno {errno.ESTALE}] Stale file handle"),
        (ConnectionResetError("http://me:secret@host/x"), "disturbed", "ConnectionResetError: http://***@host/x"),
    ],
)
def test_kind_and_reason_of_an_exception(err: Exception, kind: str, reason: str) -> None:
    assert (kind_of_fault(err), explain_fault(err)) == (kind, reason)


def test_a_traceback_is_kept_without_passwords(tmp_path: Path) -> None:
    try:
        raise ConnectionResetError("http://me:secret@host/x")
    except ConnectionResetError as err:
        keep_traceback(err, tmp_path)
    text = (tmp_path / ERROR).read_text(encoding="utf-8")
    assert "test_faults.py" in text
    assert text.endswith("ConnectionResetError: http://***@host/x\n")
    keep_traceback(ValueError("no folder to write to"), tmp_path / "missing")
