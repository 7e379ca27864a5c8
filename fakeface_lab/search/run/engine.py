"""Who trains: what an engine is, and the one that trains in this process. `local_engine` has worker processes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from fakeface_lab.backend import keras
from fakeface_lab.errors import SearchError
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.training.outcome import Outcome, explain_fault, kind_of_fault
from fakeface_lab.training.recorder import EpochRecord, Listener

__all__ = [
    "MAX_DEATHS",
    "MAX_STARTS",
    "Assignment",
    "Engine",
    "EngineMaker",
    "Event",
    "Handler",
    "InlineEngine",
    "Placement",
    "Retries",
    "Work",
]


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

    def label(self, values: Mapping[str, Any]) -> str:
        """Return the values in few words, for the run's name."""

    def begin(self, run: TrackedRun, assignment: Assignment) -> None:
        """Write what is known before the first epoch."""

    def finish(self, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool) -> None:
        """Write what the training left in the run's folder."""


# Deaths of workers without a newly finished epoch, and starts without one (a killed driver is not the trial's fault).
MAX_DEATHS = 3
MAX_STARTS = 10
# Attempts in a row that the machine ended, and trials in a row that died of the same: to go on would burn all trials
# that are left in one night.
_MAX_DISTURBANCES = 3
_MAX_SAME_DEATHS = 3


class Retries:
    """Counts what went wrong in a row, over all trials of this process.

    Args:
        search: name of the search, for messages.
    """

    def __init__(self, search: str) -> None:
        self._search = search
        self._num_disturbances = self._num_same_deaths = 0
        self._last_death = ""

    def note_epoch(self) -> None:
        """Note that an epoch was finished: the machine works."""
        self._num_disturbances = 0

    def note_finished(self) -> None:
        """Note that a trial was finished."""
        self._num_same_deaths = 0

    def may_retry(self, num_deaths: int, reason: str) -> bool:
        """Return whether a trial whose worker has died so often is tried again; else it has failed.

        Raises:
            SearchError: several trials in a row died of the same.
        """
        if num_deaths < MAX_DEATHS:
            return True
        # Too much memory is a matter of the configuration, and the next one may be smaller.
        is_same = reason == self._last_death and "out of memory" not in reason
        self._num_same_deaths = self._num_same_deaths + 1 if is_same else 1
        self._last_death = reason
        if self._num_same_deaths >= _MAX_SAME_DEATHS:
            raise self._stopped(f"{_MAX_SAME_DEATHS} trials in a row died of the same", reason)
        return False

    def note_disturbance(self, reason: str) -> None:
        """Note an attempt that the machine ended (a full disk, a lost connection); the trial is tried again.

        Raises:
            SearchError: it was one too many in a row.
        """
        self._num_disturbances += 1
        if self._num_disturbances >= _MAX_DISTURBANCES:
            raise self._stopped(f"the machine ended {_MAX_DISTURBANCES} attempts in a row", reason)

    def _stopped(self, what: str, reason: str) -> SearchError:
        return SearchError(
            f"search {self._search!r}: stopped, {what} ({reason}); finished trials are kept, and the same command "
            f"resumes once the cause is gone"
        )


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
