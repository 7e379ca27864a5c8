"""What one trial is: the assignment that the driver gives, and the work that a worker does with it."""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import cloudpickle
import numpy as np

from fakeface_lab.files import FileView, file_view
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.training.outcome import Outcome
from fakeface_lab.training.recorder import Listener

__all__ = ["Assignment", "Work", "load_work", "save_work"]

# Arrays above this size go to files of their own, which every worker maps instead of copying.
_MAPPED_BYTES = 1 << 16


@dataclass(frozen=True)
class Assignment:
    """One training that a worker is to do; it goes to the worker as JSON.

    Attributes:
        key: names it within its search: `trial-7`, `final-best-0`.
        values: hyperparameters by name.
        epochs: the budget, all epochs from the first one on.
        seed: of initial weights, data order and dropout.
        role: `trial`: judged on validation, keeps its best epoch. `final`: trained on train and validation, keeps
            its last epoch, opens the test split.
    """

    key: str
    values: Mapping[str, Any]
    epochs: int
    seed: int
    role: Literal["trial", "final"] = "trial"


class Work(Protocol):
    """What a search trains. `__call__` runs in a worker process, everything else in the driver."""

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        """Train, or go on from the checkpoint in `folder`, and leave the results there."""

    def params(self, assignment: Assignment) -> dict[str, object]:
        """Return the parameters to log: the same keys for every assignment."""

    def label(self, assignment: Assignment) -> str:
        """Return the values in few words, for the run's name."""

    def begin(self, run: TrackedRun, assignment: Assignment) -> None:
        """Write what is known before the first epoch."""

    def finish(self, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool) -> None:
        """Write what the training left in the run's folder."""


def save_work(work: Work, folder: Path) -> Path:
    """Write `work` for the worker processes and return its path: functions by cloudpickle, arrays as mapped files.

    The file is read by this search's own workers only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "work.pkl"
    with path.open("wb") as file:
        _Pickler(file, folder).dump(work)
    return path


def load_work(path: Path) -> Work:
    """Return what `save_work` wrote."""
    with path.open("rb") as file:
        work: Work = _Unpickler(file).load()
    return work


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BufferedWriter, folder: Path) -> None:
        super().__init__(file)
        self._folder = folder
        self._num_files = 0
        # The same array is written once: pickle asks again for each mention of it.
        self._paths: dict[int, tuple[str, np.ndarray[Any, Any]]] = {}

    def persistent_id(self, obj: object) -> tuple[str, str | FileView] | None:
        if not isinstance(obj, np.ndarray) or obj.nbytes < _MAPPED_BYTES or obj.dtype.hasobject:
            return None
        view = file_view(obj)
        if view is not None:
            return ("view", view)
        if id(obj) not in self._paths:
            path = self._folder / f"array-{self._num_files}.npy"
            self._num_files += 1
            np.save(path, obj)
            self._paths[id(obj)] = (str(path), obj)
        return ("npy", self._paths[id(obj)][0])


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: tuple[str, Any]) -> Any:
        kind, place = pid
        return place.open() if kind == "view" else np.load(place, mmap_mode="r")
