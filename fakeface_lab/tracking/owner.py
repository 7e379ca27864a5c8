"""Whose run it is: which process writes it, and whether the one that did is gone. Loads no TensorFlow.

Every process has a token. It stands in the run's tag `owner` and in a file of the run's work folder, beside a lock that
the process holds while it lives. Clocks, names of machines and numbers of processes, which containers may share, prove
nothing and are not asked.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from mlflow.entities import Run

__all__ = ["OWNER_TAG", "PROCESS", "lock_of", "note_owner", "owner_state"]

OWNER_TAG = "owner"
PROCESS = uuid.uuid4().hex


def lock_of(folder: Path) -> FileLock:
    """Return the lock of the run whose work folder this is; a dead process lets go of it."""
    return FileLock(folder.with_suffix(".lock"))


def note_owner(folder: Path) -> None:
    """Note on this disk that this process writes the run; call it before the tag is written."""
    with (folder / "owners").open("a") as file:
        file.write(f"{PROCESS}\n")


@contextmanager
def owner_state(run: Run, folder: Path) -> Iterator[Literal["gone", "alive", "elsewhere"]]:
    """Yield what is known of the process that wrote a run last.

    `gone`: it ran in this project folder and has ended; its lock is held until the block ends. `alive`: it runs in this
    project folder. `elsewhere`: it is a process of another folder or machine, and nothing is known.
    """
    owners = folder / "owners"
    token = run.data.tags.get(OWNER_TAG)
    if token is None or not owners.exists() or token not in owners.read_text().split():
        yield "elsewhere"
        return
    lock = lock_of(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield "alive"
        return
    try:
        yield "gone"
    finally:
        lock.release()
