"""Who trains: what an engine is, and the one that trains in this process. `local_engine` has worker processes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from fakeface_lab.backend import keras
from fakeface_lab.search.run.faults import explain_fault, kind_of_fault
from fakeface_lab.search.run.work import Assignment, Work
from fakeface_lab.training.recorder import EpochRecord

__all__ = ["Engine", "EngineMaker", "Event", "Handler", "InlineEngine", "Placement"]


@dataclass(frozen=True)
class Event:
    """What happened to an assignment.

    Attributes:
        key: the assignment's.
        kind: `step`, `epoch`, `done`; `failed`: will fail in every attempt; `died`: may do better next time;
            `disturbed`: the machine's fault, not the assignment's.
        record: the finished epoch, for `epoch`.
        step: epoch, step, number of steps, for `step`.
        reason: why, for `failed`, `died` and `disturbed`.
    """

    key: str
    kind: Literal["step", "epoch", "done", "failed", "died", "disturbed"]
    record: EpochRecord | None = None
    step: tuple[int, int, int] | None = None
    reason: str = ""


Handler = Callable[[Event], None]


class Engine(Protocol):
    """Runs assignments and tells a handler what happens to them."""

    def num_free(self) -> int:
        """Return how many assignments can be started now."""

    def start(self, assignment: Assignment, folder: Path) -> None:
        """Begin an assignment."""

    def wait(self, timeout_secs: float) -> None:
        """Handle what has happened; return after something did, or after the time."""

    def stop(self) -> None:
        """End all work at once."""


Placement = Literal["local", "inline"]
EngineMaker = Callable[[Handler], Engine]


class InlineEngine:
    """Trains in this process, one assignment at a time; what kills the training kills the search."""

    def __init__(self, work: Work, handler: Handler) -> None:
        self._work, self._handler = work, handler

    def num_free(self) -> int:
        """Return 1: nothing runs between two calls."""
        return 1

    def start(self, assignment: Assignment, folder: Path) -> None:
        """Do the whole assignment."""
        listener = _Inline(assignment.key, self._handler)
        try:
            self._work(assignment, folder, listener)
        except Exception as err:
            if err is listener.fault:
                raise
            event = Event(assignment.key, kind_of_fault(err), reason=explain_fault(err))
        else:
            event = Event(assignment.key, "done")
        finally:
            keras.backend.clear_session()
        self._handler(event)

    def wait(self, timeout_secs: float) -> None:
        """Return at once."""

    def stop(self) -> None:
        """Do nothing: there is nothing left running."""


@dataclass
class _Inline:
    """Passes on what the training reports; a fault of who is told must not be taken for one of the training."""

    key: str
    handler: Handler
    fault: Exception | None = None

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        self._tell(Event(self.key, "step", step=(epoch, step, num_steps)))

    def epoch_ended(self, record: EpochRecord) -> None:
        self._tell(Event(self.key, "epoch", record=record))

    def _tell(self, event: Event) -> None:
        try:
            self.handler(event)
        except Exception as err:
            self.fault = err
            raise
