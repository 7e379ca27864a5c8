"""What an engine is (it trains assignments and reports events), and the one that trains in this process.

`local_engine` has the one with worker processes, `ray_engine` the one on a cluster; `placement` chooses.
"""

import gc
import queue
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from fakeface_lab.backend import keras
from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.training.epochs import EpochRecord, Listener
from fakeface_lab.training.faults import Fault, explain_fault, keep_traceback, kind_of_fault
from fakeface_lab.training.outcome import Outcome

__all__ = ["Assignment", "Engine", "Event", "Handler", "InlineEngine", "Work", "handle_pending", "unheard"]


@dataclass(frozen=True)
class Assignment:
    """One training for a worker; sent to it as JSON.

    Attributes:
        key: unique within the search: `trial-7`, `final-trial-7-seed-0`.
        values: hyperparameters by name.
        epochs: the budget, counted from the first epoch.
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

    @property
    def execution_names(self) -> Sequence[str]:
        """Names of an assignment's trainings, which become runs under its own; empty if it is one training."""

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        """Train, or resume from the checkpoint in `folder`, and leave the results there."""

    def params(self, assignment: Assignment) -> dict[str, object]:
        """Return the parameters to log: the same keys for every assignment."""

    def label(self, values: Mapping[str, Any]) -> str:
        """Return the values as a short text, for the run's name."""

    def begin(self, run: TrackedRun, assignment: Assignment) -> None:
        """Write what is known before the first epoch."""

    def finish(self, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool) -> None:
        """Write what the training left in the run's folder."""


@dataclass(frozen=True)
class Event:
    """What happened to an assignment.

    Attributes:
        key: the assignment's.
        kind: `step`, `epoch`, `done`, `print`, or a fault as in `kind_of_fault`.
        record: the finished epoch, for `epoch`.
        step: epoch, step and number of steps, for `step`.
        reason: why, for a fault.
        line: what the user's code has printed, for `print`.
    """

    key: str
    kind: Literal["step", "epoch", "done", "print"] | Fault
    record: EpochRecord | None = None
    step: tuple[int, int, int] | None = None
    reason: str = ""
    line: str = ""


Handler = Callable[[Event], None]
T = TypeVar("T")


def handle_pending(inbox: "queue.SimpleQueue[T]", timeout_secs: float, handle: Callable[[T], None]) -> None:
    """Handle all that is queued; if that is nothing, wait for the next until the timeout."""
    with suppress(queue.Empty):
        handle(inbox.get(timeout=timeout_secs))
        while True:
            handle(inbox.get_nowait())


class Engine(Protocol):
    """Runs assignments and reports events to a handler: those of one assignment in order, the last one its end.

    What an assignment finds in its folder, and leaves there, is on this machine before the start and after the end;
    in between it may be anywhere.

    Attributes:
        handler: is called with the events, within `start`, `wait` and `cancel`; each driver sets its own.
        storage: where unfinished trainings are copied to; None for nowhere.
    """

    handler: Handler
    storage: CheckpointStorage | None

    def num_free(self) -> int:
        """Return how many assignments can be started now."""

    def start(self, assignment: Assignment, folder: Path) -> None:
        """Begin an assignment."""

    def wait(self, timeout_secs: float) -> None:
        """Handle pending events; if there are none, wait for one until the timeout."""

    def cancel(self, key: str, reason: str) -> None:
        """End an assignment that was started and has not ended; reports `died` with the reason."""

    def stop(self) -> None:
        """End all work immediately."""


def unheard(event: Event) -> None:
    """The handler of an engine that no driver has yet."""


class InlineEngine:
    """Trains in this process, one assignment at a time; a training that crashes takes the search down."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.handler: Handler = unheard
        self.storage: CheckpointStorage | None = None
        # As in a worker, for the time of the search.
        gc.freeze()

    def num_free(self) -> int:
        """Return 1: nothing runs between two calls."""
        return 1

    def start(self, assignment: Assignment, folder: Path) -> None:
        """Do the whole assignment."""
        listener = _InlineListener(assignment.key, self.handler)
        try:
            self._work(assignment, folder, listener)
        except Exception as err:
            if err is listener.handler_error or kind_of_fault(err) == "fatal":
                raise
            keep_traceback(err, folder)
            event = Event(assignment.key, kind_of_fault(err), reason=explain_fault(err))
        else:
            event = Event(assignment.key, "done")
        finally:
            keras.backend.clear_session()
        self.handler(event)

    def wait(self, timeout_secs: float) -> None:
        """Return immediately."""

    def cancel(self, key: str, reason: str) -> None:
        """Do nothing: an assignment that was started has ended."""

    def stop(self) -> None:
        """Let garbage be collected as before."""
        gc.unfreeze()


@dataclass
class _InlineListener:
    """Forwards reports as events; keeps an error of the handler, which must not count as one of the training."""

    key: str
    handler: Handler
    handler_error: Exception | None = None

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        self._forward(Event(self.key, "step", step=(epoch, step, num_steps)))

    def epoch_ended(self, record: EpochRecord) -> None:
        self._forward(Event(self.key, "epoch", record=record))

    def _forward(self, event: Event) -> None:
        try:
            self.handler(event)
        except Exception as err:
            self.handler_error = err
            raise
