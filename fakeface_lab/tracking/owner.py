"""Where a run comes from (code, packages, machine), which process writes it, and ending runs whose process is gone.

Every process has a random token, in the run's tag `owner` and in a file of the run's work folder, next to a lock that
the process holds while it lives. Clocks, host names and process ids are not used: containers may share them. Loads no
TensorFlow.
"""

import getpass
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fakeface_lab.errors import without_credentials
from fakeface_lab.tracking.store import MAX_TAG_CHARS, Store, all_experiments, search_runs

__all__ = [
    "CODE_TAGS",
    "OWNERS",
    "OWNER_TAG",
    "PROCESS",
    "code_tags",
    "end_at_once",
    "host_facts",
    "lock_of",
    "note_owner",
    "owner_state",
    "package_versions",
    "released_on_error",
    "remove_folder",
    "sweep_dead_runs",
    "unfinished_runs",
]

PACKAGES = (
    "fakeface-lab", "tensorflow", "keras", "keras-tuner", "mlflow", "numpy", "pillow", "scikit-learn", "scipy",
    "pandas",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    installed = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {name: version for name, version in installed.items() if version}


@cache  # looked up in many files, for each training
def _version(name: str) -> str | None:
    try:
        # Of the installed distribution: importing TensorFlow for its version would take 2 s.
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


CODE_TAGS = ("mlflow.user", "mlflow.source.")  # how the names of `code_tags` begin


def code_tags() -> dict[str, str]:
    """Return MLflow's source tags: user, program, commit, and whether the files differ from the commit.

    MLflow looks at the repository of the main script, which may be a different one under `python -m`; this looks at the
    repository that contains this package.
    """
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": Path(sys.argv[0]).stem if sys.argv[0] else "python",
        "mlflow.source.type": "LOCAL",
    }
    folder = Path(__file__).resolve().parents[1]
    commit = _git(folder, "rev-parse", "HEAD")
    # A package installed inside some other repository must not report that repository's commit.
    if commit is not None and _git(folder, "ls-files", "--error-unmatch", "__init__.py") is not None:
        tags["mlflow.source.git.commit"] = commit
        dirty = bool(_git(folder, "status", "--porcelain", "--", str(folder)))
        tags["mlflow.source.git.dirty"] = str(dirty).lower()
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user id may not have a name
        return "unknown"


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def host_facts() -> dict[str, str | int]:
    """Return name, system, processor, number of cores and memory of this machine."""
    import psutil

    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cores": os.cpu_count() or 1,
        "memory_bytes": int(psutil.virtual_memory().total),
    }


OWNER_TAG = "owner"
OWNERS = "owners"  # in a run's work folder: all that have written it here
PROCESS = uuid.uuid4().hex


def lock_of(folder: Path) -> FileLock:
    """Return the lock of the run with this work folder; the system releases it when its process dies."""
    # Beside the folder, which may be deleted while the lock is held.
    return FileLock(folder.with_suffix(".lock"))


@contextmanager
def released_on_error(lock: FileLock) -> Iterator[None]:
    """Release the lock if the block raises: a notebook that has shown an error keeps everything that it refers to."""
    try:
        yield
    except BaseException:
        lock.release()
        raise


def note_owner(folder: Path) -> None:
    """Record in the run's work folder that this process writes the run; call it before the tag is written."""
    # Appended, not replaced: a process that is killed before it writes the tag leaves its predecessor's token in it,
    # and the run is swept only if that token is still known here.
    with (folder / OWNERS).open("a") as file:
        file.write(f"{PROCESS}\n")


OwnerState = Literal["gone", "alive", "elsewhere"]


@contextmanager
def owner_state(run: Run, folder: Path) -> Iterator[OwnerState]:
    """Yield the state of the process that last wrote a run.

    `gone`: it ran in this project folder and has ended; its lock is held until the block ends. `alive`: it is running
    in this project folder. `elsewhere`: it belongs to another folder or machine, and its state is unknown.
    """
    owners = folder / OWNERS
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


def unfinished_runs(store: Store) -> list[tuple[Run, OwnerState]]:
    """Return the runs of all experiments that are RUNNING, oldest first, each with the state of its process."""
    found = []
    for run in search_runs(store.client, all_experiments(store.client), "attributes.status = 'RUNNING'"):
        with owner_state(run, store.work_folder / run.info.run_id) as state:
            found.append((run, state))
    return found


def end_at_once(store: Store, run_id: str, status: str, reason: str, trace: str = "") -> None:
    """End a run with one try per write: the program is ending, and must not wait for the store.

    A run that another process has taken over is not changed.
    """
    client = store.client
    if client.get_run(run_id).data.tags.get(OWNER_TAG) != PROCESS:
        return
    client.set_tag(run_id, "status_reason", without_credentials(reason)[:MAX_TAG_CHARS])
    if trace:
        client.log_text(run_id, without_credentials(trace), "error.txt")
    # Last: as long as the run is RUNNING, the next sweep finds it if this process is killed in between.
    client.set_terminated(run_id, status)


def sweep_dead_runs(store: Store) -> list[str]:
    """End runs that are still RUNNING although their process is gone; return their names.

    Only runs last written by a process of this project folder: the state of others is unknown. Also removes the work
    folders of finished runs whose process was killed before it could.
    """
    _remove_leftover_folders(store)
    swept = []
    for run in search_runs(store.client, [store.experiment_id], "attributes.status = 'RUNNING'"):
        with owner_state(run, store.work_folder / run.info.run_id) as state:
            if state == "gone":
                # The reason first: if this process is killed in between, the run is still RUNNING and swept again.
                store.client.set_tag(run.info.run_id, "status_reason", "process exited without reporting a status")
                store.client.set_terminated(run.info.run_id, "KILLED", end_time=time.time_ns() // 1_000_000)
                swept.append(str(run.info.run_name))
    return swept


def _remove_leftover_folders(store: Store) -> None:
    for folder in store.work_folder.glob("*/"):
        try:
            run = store.client.get_run(folder.name)
        except MlflowException:  # a run of another store
            continue
        # A trial's checkpoint may still be needed for a promotion: its search cleans up.
        # Runs that failed or were killed may still be resumed from theirs.
        if run.info.status != "FINISHED" or run.data.tags.get("role") == "trial":
            continue
        with suppress(Timeout), lock_of(folder).acquire(timeout=0):
            remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Delete the work folder of a run, and its lock."""
    # The lock first: a sweep finds what is left by its folder.
    folder.with_suffix(".lock").unlink(missing_ok=True)
    # A file that cannot be deleted now is left to the next sweep.
    shutil.rmtree(folder, ignore_errors=True)
