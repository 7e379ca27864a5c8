"""What takes seconds to make, made once for all test processes that run side by side."""

import functools
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import TypeVar

from filelock import FileLock

from fakeface_lab.tracking.store import open_store

__all__ = ["copy_project", "empty_store", "made_once"]

Made = TypeVar("Made")


def made_once(name: str, make: Callable[[Path], Made]) -> Made:
    """Return what the first caller makes in a folder of its own; it can be pickled."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    folder = Path(gettempdir()) / f"{name}-{run}" if run else Path(mkdtemp(prefix=f"{name}-"))
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        pickled = folder / "made.pickle"
        if not pickled.exists():
            pickled.write_bytes(pickle.dumps(make(folder)))
        made: Made = pickle.loads(pickled.read_bytes())
    return made


@functools.cache
def empty_store() -> Path:
    """Return the database of a store that has its tables and no run; making them takes seconds."""

    def make(folder: Path) -> Path:
        open_store(None, folder, "curves")
        return folder / "mlflow.db"

    return made_once("empty-store", make)


def copy_project(made: Path, folder: Path) -> Path:
    """Copy a folder with a project in it to an empty one, and return the copy of the project.

    MLflow records absolute paths: those of the folder change, in the database and in the files.
    """

    def moved(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes().replace(os.fsencode(made), os.fsencode(folder)))
        shutil.copystat(source, target)

    shutil.copytree(made, folder, dirs_exist_ok=True, copy_function=moved, ignore=shutil.ignore_patterns("mlflow.db*"))
    database = Path("project", "mlflow.db")
    with closing(sqlite3.connect(made / database)) as source, closing(sqlite3.connect(folder / database)) as copy:
        copy.executescript("\n".join(source.iterdump()).replace(str(made), str(folder)))
    return folder / "project"
