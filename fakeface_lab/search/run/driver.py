"""The loop that drives trainings: start the next one, handle what workers report, retry, hand results to the uploads.

Apart from what is running right now, its only state is the ledger: killed at any point and started again, it resumes.
It waits for nothing but the store: files are uploaded in the background, so that no worker idles because of another.
Subclasses say what is trained and what a result means: `trials` for a search, others for trainings after it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from fakeface_lab.backend import keras_tuner
from fakeface_lab.errors import SearchError
from fakeface_lab.search.ledger.executions import execution_run
from fakeface_lab.search.ledger.ledger import Ledger, LedgerRun
from fakeface_lab.search.run.engine import Assignment, Engine, Event, Work
from fakeface_lab.search.run.uploads import Uploads
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.training.epochs import EpochRecord
from fakeface_lab.training.faults import ERROR
from fakeface_lab.training.outcome import Outcome, read_outcome

__all__ = ["Driver", "Observer", "RetryPolicy"]

_POLL_SECS = 1.0
# Most suggestions take some 2 ms (docs/search.md). Those of a Gaussian process, and the first one after a restart, may
# take seconds: they are polled at this interval.
SUGGESTION_POLL_SECS = 0.2
# This many finished trainings may keep their files on this disk while they wait for a slow store.
_MAX_UPLOADS = 16

# Per training: deaths of its worker, and starts, since its last newly finished epoch. A killed driver is not the
# training's fault, so more starts than deaths are allowed.
MAX_DEATHS = 3
MAX_STARTS = 10
# Attempts in a row that the machine ended, and trials in a row that died of the same cause: to continue would fail all
# remaining trials in one night.
_MAX_DISTURBANCES = 3
_MAX_SAME_DEATHS = 3

Child = TypeVar("Child", bound=LedgerRun)
ShownChild = TypeVar("ShownChild", bound=LedgerRun, contravariant=True)


class Observer(Protocol[ShownChild]):
    """Shows the progress of trainings."""

    def started(self, child: ShownChild, epochs: int) -> None:
        """A training begins or resumes."""

    def progressed(self, child: ShownChild, event: Event) -> None:
        """A step or an epoch ended."""

    def printed(self, child: ShownChild, line: str) -> None:
        """The user's code has printed a line in a worker process."""

    def retrying(self, child: ShownChild, reason: str) -> None:
        """An attempt failed, and another one follows."""

    def ended(self, child: ShownChild) -> None:
        """A training has its result, or failed."""


@dataclass
class _Job(Generic[Child]):
    """A training in progress; its run stays locked from the first attempt until its files are uploaded."""

    child: Child
    assignment: Assignment
    run: TrackedRun
    executions: dict[int, TrackedRun] = field(default_factory=dict)


class Driver(Generic[Child]):
    """Drives trainings to their end.

    Args:
        ledger: of the search.
        work: what is trained.
        engine: runs them; idle at first. It is stopped on an error; otherwise whoever opened it stops it.
        observer: shows progress.
    """

    def __init__(self, ledger: Ledger, work: Work, engine: Engine, observer: Observer[Child]) -> None:
        self.ledger, self.work, self.observer = ledger, work, observer
        self.uploads = Uploads(ledger, work)
        self._engine = engine
        engine.handler = self._handle
        self._running: dict[str, _Job[Child]] = {}
        self._deferred: list[Event] = []
        self._retries = RetryPolicy(ledger.parent.name)

    @property
    def max_retries(self) -> int:
        """How often a training is tried again after an error of its own."""
        return 0

    @property
    def is_suggesting(self) -> bool:
        """Whether the next training is being computed from the ledger as it is: no training may end meanwhile."""
        return False

    def next(self) -> tuple[Child, Assignment] | None:
        """Return what to train next; None if there is nothing now."""
        raise NotImplementedError

    def commit(self, child: Child, outcome: Outcome) -> Child | None:
        """Write the result of a finished training; None if it turns out to have failed."""
        raise NotImplementedError

    def fail(self, child: Child, reason: str) -> None:
        """Record that a training has failed permanently, or raise."""
        raise NotImplementedError

    def prepare(self, child: Child, run: TrackedRun) -> None:
        """Prepare the run's folder for an attempt."""

    def keeps_model(self, child: Child) -> bool:
        """Return whether the model of a finished training is uploaded."""
        return True

    def clean_up(self, closed: Sequence[LedgerRun]) -> None:
        """Remove what is no longer needed, now that these runs are closed."""

    def run(self) -> None:
        """Run until nothing is left, within the ledger's `driving`.

        Raises:
            SearchError: the machine keeps failing; the same command resumes once the cause is gone.
            TrackingError: the store was unreachable for too long, or another process has taken over the search.
        """
        with self.ledger.killing_open_runs():
            try:
                self.clean_up(())
                while self._fill() or self._running or self.uploads.num_ended:
                    self._wait()
            except BaseException:
                self._engine.stop()
                raise
            finally:
                self.uploads.stop()
                for job in self._running.values():
                    job.run.lock.release()

    def remove_copies(self, run_ids: Iterable[str]) -> None:
        """Delete what the engine has copied elsewhere of these runs."""
        if self._engine.storage is not None:
            for run_id in run_ids:
                self._engine.storage.remove(run_id)

    def forget(self, key: str) -> None:
        """Drop a training that has failed."""
        job = self._running.pop(key, None)
        if job is not None:
            job.run.lock.release()

    def _wait(self) -> None:
        """Handle what has happened, or wait for it."""
        # Only if nothing was running before: a training that has just ended makes room for the next one.
        upload_secs = 0.0 if self._running or self.is_suggesting else _POLL_SECS
        if self._running:
            self._engine.wait(SUGGESTION_POLL_SECS if self.is_suggesting else _POLL_SECS)
        closed = self.uploads.collect(upload_secs)
        if closed:
            self.clean_up(closed)

    def _fill(self) -> bool:
        """Start what can be started; return whether there may be more later without any event."""
        while self._engine.num_free():
            if self.uploads.num_ended >= _MAX_UPLOADS:
                return True
            start = self.next()
            deferred, self._deferred = ([], self._deferred) if self.is_suggesting else (self._deferred, [])
            for event in deferred:
                self._handle(event)
            if start is None:
                return self.is_suggesting or bool(deferred)  # there was nothing to start before these events
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
        (job.run.folder / ERROR).unlink(missing_ok=True)
        self.observer.started(job.child, job.assignment.epochs)
        self._engine.start(job.assignment, job.run.folder)

    def _handle(self, event: Event) -> None:
        job = self._running[event.key]
        if event.kind == "step":
            self.observer.progressed(job.child, event)
        elif event.kind == "epoch":
            assert event.record is not None
            self.ledger.parent.require_owned()
            self._retries.note_epoch()
            self._note_epoch(job, event.record)
            self.observer.progressed(job.child, event)
        elif event.kind == "print":
            self.observer.printed(job.child, event.line)
        elif self.is_suggesting:
            self._deferred.append(event)
        elif event.kind == "done":
            self._finish(job)
        elif event.kind == "failed":
            self._give_up(job, event.reason)
        elif event.kind == "invalid":
            self._note_error(job, event.reason)
        elif event.kind == "fatal":
            name, _, text = event.reason.partition(": ")
            raise getattr(keras_tuner.errors, name, keras_tuner.errors.FatalError)(text)
        elif event.kind == "died":
            self._note_death(job, event.reason)
        elif event.kind == "lost":
            # Neither the trial's fault nor that of the next machine; that it was started counts, so it ends some time.
            self._retry(job, event.reason)
        else:
            job.child = self.ledger.uncount_start(job.child, event.reason)
            self._retries.note_disturbance(event.reason)
            self._retry(job, event.reason)

    def _note_epoch(self, job: _Job[Child], record: EpochRecord) -> None:
        run, num_done, number = job.run, record.epoch, record.execution
        if number is not None:
            if number not in job.executions:
                name = self.work.execution_names[number]
                job.executions[number] = execution_run(job.run, number, name)
            run = job.executions[number]
            # Executions may end early; that the number grows is all that counts.
            num_done += number * job.assignment.epochs
        run.log_metrics(record.metrics, record.epoch, record.ended_at_ms)
        job.child = self.ledger.count_epoch(job.child, num_done)

    def _note_error(self, job: _Job[Child], reason: str) -> None:
        if job.child.num_errors >= self.max_retries:
            self._give_up(job, reason)
            return
        job.child = self.ledger.count_error(job.child, reason)
        self._retry(job, reason)

    def _note_death(self, job: _Job[Child], reason: str) -> None:
        job.child = self.ledger.count_death(job.child, reason)
        if self._retries.may_retry(job.child.num_deaths, reason):
            self._retry(job, reason)
        else:
            self._give_up(job, f"{MAX_DEATHS} deaths without a newly finished epoch: {reason}")

    def _give_up(self, job: _Job[Child], reason: str) -> None:
        """Keep the traceback of the last attempt, if it has one, with the run, and record the failure."""
        error = job.run.folder / ERROR
        if error.exists():
            job.run.log_text(error.read_text(encoding="utf-8"), ERROR)
        self.fail(job.child, reason)

    def _retry(self, job: _Job[Child], reason: str) -> None:
        self.observer.retrying(job.child, reason)
        self._attempt(job)

    def _finish(self, job: _Job[Child]) -> None:
        """Commit a result, then have the files of the training uploaded."""
        outcome = read_outcome(job.run.folder)
        if outcome is None:
            self._note_death(job, "the worker reported success but left no readable result")
            return
        child = self.commit(job.child, outcome)
        if child is None:
            return
        self._retries.note_finished()
        self.uploads.finish(child, job.run, job.assignment, outcome, keep_model=self.keeps_model(child))
        del self._running[job.assignment.key]  # now the upload has its lock
        self.observer.ended(child)


class RetryPolicy:
    """Counts failures in a row over all trainings of this process, and stops the search if the machine is the cause."""

    def __init__(self, search_name: str) -> None:
        self._search_name = search_name
        self._num_disturbances = self._num_same_deaths = 0
        self._last_death = ""

    def note_epoch(self) -> None:
        """Note a finished epoch: the machine works."""
        self._num_disturbances = 0

    def note_finished(self) -> None:
        """Note a finished training."""
        self._num_same_deaths = 0

    def may_retry(self, num_deaths: int, reason: str) -> bool:
        """Return whether a training whose worker has died this often is retried; otherwise it has failed.

        Raises:
            SearchError: several trainings in a row died of the same cause.
        """
        if num_deaths < MAX_DEATHS:
            return True
        # Running out of memory depends on the configuration, and the next one may be smaller.
        is_same = reason == self._last_death and "out of memory" not in reason
        self._num_same_deaths = self._num_same_deaths + 1 if is_same else 1
        self._last_death = reason
        if self._num_same_deaths >= _MAX_SAME_DEATHS:
            raise self._stopped(f"{_MAX_SAME_DEATHS} trials in a row died of the same cause", reason)
        return False

    def note_disturbance(self, reason: str) -> None:
        """Note an attempt that the machine ended (a full disk, a lost connection); the training is retried.

        Raises:
            SearchError: it was one too many in a row.
        """
        self._num_disturbances += 1
        if self._num_disturbances >= _MAX_DISTURBANCES:
            raise self._stopped(f"the machine ended {_MAX_DISTURBANCES} attempts in a row", reason)

    def _stopped(self, what: str, reason: str) -> SearchError:
        return SearchError(
            f"search {self._search_name!r}: stopped, {what} ({reason}); finished trials are kept, and the same command "
            f"resumes once the cause is gone"
        )
