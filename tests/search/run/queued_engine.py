"""An engine with several slots in this process, which trains when it is waited for: the test decides what ends when."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from fakeface_lab.search.run.engine import Assignment, Event, Handler, unheard
from fakeface_lab.training.epochs import EpochRecord
from tests.search.curve_work import CurveWork

__all__ = ["QueuedEngine"]

Choose = Callable[[list[str]], tuple[str, Literal["done", "failed"]] | None]


class _Kept:
    """Keeps the epochs of a training, which are reported after it."""

    def __init__(self) -> None:
        self.records: list[EpochRecord] = []

    def step_ended(self, *_: Any) -> None: ...

    def epoch_ended(self, record: EpochRecord) -> None:
        self.records.append(record)


class QueuedEngine:
    """Trains one assignment a wait: `choose` says which of the waiting ones, and whether it is `done` or `failed`.

    None stands for a wait in which nothing happens.
    """

    def __init__(self, work: CurveWork, num_slots: int, choose: Choose) -> None:
        self._work, self._num_slots, self._choose = work, num_slots, choose
        self._waiting: dict[str, tuple[Assignment, Path]] = {}
        self.handler: Handler = unheard
        self.storage: CheckpointStorage | None = None

    def num_free(self) -> int:
        return self._num_slots - len(self._waiting)

    def start(self, assignment: Assignment, folder: Path) -> None:
        self._waiting[assignment.key] = (assignment, folder)

    def wait(self, timeout_secs: float) -> None:
        chosen = self._choose(list(self._waiting)) if self._waiting else None
        if chosen is None:
            time.sleep(0.01)
            return
        key, kind = chosen
        assignment, folder = self._waiting.pop(key)
        if kind == "done":
            kept = _Kept()
            self._work(assignment, folder, kept)
            for record in kept.records:
                self.handler(Event(key, "epoch", record=record))
        self.handler(Event(key, kind, reason="" if kind == "done" else "of the test"))

    def cancel(self, key: str, reason: str) -> None: ...

    def stop(self) -> None: ...
