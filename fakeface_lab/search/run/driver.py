"""The loop that has things trained: start what is next, handle what workers report, upload what trainings leave behind.

It keeps nothing in memory that the ledger does not hold, apart from what is running right now: killed at any point and
started again, it resumes where it was. It waits for nothing but the store: files are uploaded while it goes on, so that
no worker stands still for another one. What is trained, and what a result means, is up to its subclasses: the trials of
a search (`trials`) and the final trainings of whoever uses the search.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from fakeface_lab.search.ledger.heartbeat import Heartbeat
from fakeface_lab.search.ledger.ledger import Ledger, LedgerRun
from fakeface_lab.search.run.engine import MAX_DEATHS, MAX_STARTS, Assignment, EngineMaker, Event, Retries, Work
from fakeface_lab.search.run.uploads import Uploads
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.training.outcome import Outcome, read_outcome

__all__ = ["Driver", "Observer"]

_POLL_SECS = 1.0
# What is next is known within this time in most cases; a slower suggestion is looked for again at this interval.
THINKING_SECS = 0.2
# The files of this many ended trainings may wait on this disk for a slow store.
_MAX_UPLOADS = 16


Child = TypeVar("Child", bound=LedgerRun)
ShownChild = TypeVar("ShownChild", bound=LedgerRun, contravariant=True)


class Observer(Protocol[ShownChild]):
    """Whoever shows how the trainings go."""

    def trial_started(self, trial: ShownChild, epochs: int) -> None:
        """A training begins, or resumes."""

    def trial_progressed(self, trial: ShownChild, event: Event) -> None:
        """A step or an epoch ended."""

    def trial_ended(self, trial: ShownChild) -> None:
        """A training has its result, or failed."""

    def died(self, trial: ShownChild, reason: str) -> None:
        """A worker died over a training, which will be tried again."""


@dataclass
class _Job(Generic[Child]):
    """What is being trained; its run stays locked from its first attempt until its files are uploaded."""

    child: Child
    assignment: Assignment
    run: TrackedRun


class Driver(Generic[Child]):
    """Drives trainings to their end.

    Args:
        ledger: of the search.
        work: what is trained.
        make_engine: makes the engine around the driver's handler of events.
        observer: shows progress.
    """

    def __init__(self, ledger: Ledger, work: Work, make_engine: EngineMaker, observer: Observer[Child]) -> None:
        self.ledger, self.work, self.observer = ledger, work, observer
        self.heartbeat, self.uploads = Heartbeat(ledger.parent), Uploads(ledger, work)
        self._engine = make_engine(self._handle)
        self._running: dict[str, _Job[Child]] = {}
        self._deferred: list[Event] = []
        self._retries = Retries(ledger.parent.name)

    @property
    def is_thinking(self) -> bool:
        """Whether what is next is being computed from the ledger as it is: no training may end meanwhile."""
        return False

    def next(self) -> tuple[Child, Assignment] | None:
        """Return what is to be trained next; None if there is nothing now."""
        raise NotImplementedError

    def commit(self, child: Child, outcome: Outcome) -> Child | None:
        """Write the result of a finished training; None if it has failed after all."""
        raise NotImplementedError

    def fail(self, child: Child, reason: str) -> None:
        """Write that a training has failed for good, or raise."""
        raise NotImplementedError

    def prepare(self, child: Child, run: TrackedRun) -> None:
        """Make the run's folder ready for an attempt."""

    def keeps_model(self, child: Child) -> bool:
        """Return whether the model of a finished training goes to the store."""
        return True

    def clean_up(self, closed: Sequence[LedgerRun]) -> None:
        """Remove what is not needed any more, now that these runs are closed."""

    def run(self) -> None:
        """Run until nothing is left.

        Raises:
            SearchError: the machine is at fault again and again; the same command resumes once the cause is gone.
            TrackingError: the store stayed away too long, or another process has taken the search over.
        """
        with self.ledger.stopping(), self.heartbeat:
            try:
                self.clean_up(())
                while self._fill() or self._running or self.uploads.num_ended:
                    self._wait()
            finally:
                self._engine.stop()
                self.stop()
                self.uploads.stop()
                for job in self._running.values():
                    job.run.lock.release()

    def stop(self) -> None:
        """End whatever computes what is next."""

    def forget(self, key: str) -> None:
        """Let go of a training that has failed."""
        job = self._running.pop(key, None)
        if job is not None:
            job.run.lock.release()

    def _wait(self) -> None:
        """Handle what has happened, or wait a moment for it."""
        if self._running:
            self._engine.wait(THINKING_SECS if self.is_thinking else _POLL_SECS)
        closed = self.uploads.settle(0.0 if self._running or self.is_thinking else _POLL_SECS)
        if closed:
            self.clean_up(closed)

    def _fill(self) -> bool:
        """Start what can be started; return whether there may be more later without any event."""
        while self._engine.num_free():
            if self.uploads.num_ended >= _MAX_UPLOADS:
                return True
            start = self.next()
            if not self.is_thinking:
                deferred, self._deferred = self._deferred, []
                for event in deferred:
                    self._handle(event)
            if start is None:
                return self.is_thinking
            self._start(*start)
        return True

    def _start(self, child: Child, assignment: Assignment) -> None:
        run = TrackedRun.reopen(self.ledger.parent.store, self.ledger.parent.writer, child.run)
        job = self._running[assignment.key] = _Job(child, assignment, run)
        self.uploads.begin(child, run, assignment)
        self._attempt(job)

    def _attempt(self, job: _Job[Child]) -> None:
        if read_outcome(job.run.folder) is None:
            if job.child.num_starts >= MAX_STARTS:
                self.fail(job.child, f"started {MAX_STARTS} times without finishing an epoch")
                return
            job.child = self.ledger.count_start(job.child)
        self.prepare(job.child, job.run)
        self.observer.trial_started(job.child, job.assignment.epochs)
        self._engine.start(job.assignment, job.run.folder)

    def _handle(self, event: Event) -> None:
        job = self._running[event.key]
        if event.kind == "step":
            self.observer.trial_progressed(job.child, event)
        elif event.kind == "epoch":
            assert event.record is not None
            self.ledger.parent.require_owned()
            self._retries.note_epoch()
            job.run.log_metrics(event.record.metrics, event.record.epoch, event.record.ended_at_ms)
            job.child = self.ledger.count_epoch(job.child, event.record.epoch)
            self.observer.trial_progressed(job.child, event)
        elif self.is_thinking:
            self._deferred.append(event)
        elif event.kind == "done":
            self._finish(job)
        elif event.kind == "failed":
            self.fail(job.child, event.reason)
        elif event.kind == "died":
            self._died(job, event.reason)
        else:
            self._disturbed(job, event.reason)

    def _died(self, job: _Job[Child], reason: str) -> None:
        job.child = self.ledger.count_death(job.child, reason)
        if self._retries.may_retry(job.child.num_deaths, reason):
            self._retry(job, reason)
        else:
            self.fail(job.child, f"{MAX_DEATHS} deaths without a newly finished epoch: {reason}")

    def _disturbed(self, job: _Job[Child], reason: str) -> None:
        job.child = self.ledger.uncount_start(job.child, reason)
        self._retries.note_disturbance(reason)
        self._retry(job, reason)

    def _retry(self, job: _Job[Child], reason: str) -> None:
        self.observer.died(job.child, reason)
        self._attempt(job)

    def _finish(self, job: _Job[Child]) -> None:
        """Commit a result, then have what the training left behind uploaded."""
        outcome = read_outcome(job.run.folder)
        if outcome is None:
            self._died(job, "the worker reported success but left no readable result")
            return
        child = self.commit(job.child, outcome)
        if child is None:
            return
        self._retries.note_finished()
        del self._running[job.assignment.key]
        self.uploads.finish(child, job.run, job.assignment, outcome, keep_model=self.keeps_model(child))
        self.observer.trial_ended(child)
