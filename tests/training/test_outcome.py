"""Errors of a training: what kind each is, and how it is explained."""

import errno

import pytest

from fakeface_lab.backend import tf
from fakeface_lab.errors import ModelError
from fakeface_lab.training.outcome import explain_fault, kind_of_fault


@pytest.mark.parametrize(
    ("err", "kind", "reason"),
    [
        (ValueError("a shape\nmore"), "failed", "ValueError: a shape"),
        (ModelError("too large"), "failed", "too large"),
        (FileNotFoundError(errno.ENOENT, "no file", "a.h5"), "failed", "FileNotFoundError: [Errno 2] no file: 'a.h5'"),
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
