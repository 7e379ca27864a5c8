"""Whose run it is: which process writes it, and whether the one that did is gone. Loads no TensorFlow.

Every process has a token. It stands in the run's tag `owner` and in a file of the run's work folder, beside a lock that
the process holds while it lives. Clocks, names of machines and numbers of processes, which containers may share, prove
nothing and are not asked.
"""

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fakeface_lab.tracking.store import Store, search_runs

__all__ = ["OWNER_TAG", "PROCESS", "lock_of", "note_owner", "owner_state", "remove_folder", "sweep_dead_runs"]

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


def sweep_dead_runs(store: Store) -> list[str]:
    """End runs that still say RUNNING although their process is gone; return their names.

    Only runs that a process of this project folder wrote last: of others nothing is known here. Folders that finished
    runs have left behind, because they were killed before they could remove them, are removed.
    """
    _remove_left_folders(store)
    swept = []
    for run in search_runs(store.client, [store.experiment_id], "attributes.status = 'RUNNING'"):
        with owner_state(run, store.work_folder / run.info.run_id) as state:
            if state == "gone":
                store.client.set_tag(run.info.run_id, "status_reason", "process exited without reporting a status")
                store.client.set_terminated(run.info.run_id, "KILLED", end_time=time.time_ns() // 1_000_000)
                swept.append(str(run.info.run_name))
    return swept


def _remove_left_folders(store: Store) -> None:
    for folder in store.work_folder.glob("*/"):
        try:
            run = store.client.get_run(folder.name)
        except MlflowException:  # of another store
            continue
        # A trial's checkpoint may still be promoted: its search cleans up.
        if run.info.status != "FINISHED" or run.data.tags.get("role") == "trial":
            continue
        with suppress(Timeout), lock_of(folder).acquire(timeout=0):
            remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Delete the work folder of a run, and its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_suffix(".lock").unlink(missing_ok=True)
