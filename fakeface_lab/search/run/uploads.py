"""What trials leave behind on its way to the store, beside the search.

A trial's score is in the ledger before; what was cut off is uploaded again after a restart.
"""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace

from filelock import BaseFileLock

from fakeface_lab.background import Background
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.run.work import Assignment, Work
from fakeface_lab.tracking.models import delete_models
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.training.outcome import Outcome

__all__ = ["Uploads"]

# One model that takes minutes must not hold up the others.
_NUM_THREADS = 4


@dataclass
class _Upload:
    """One upload; `trial` is None for what is written before the training."""

    sequence: int
    job: Future[None]
    trial: LedgerTrial | None = None
    has_model: bool = False
    lock: BaseFileLock | None = None


class Uploads:
    """Writes parameters, files and models of trials, and closes the trials."""

    def __init__(self, ledger: Ledger, work: Work) -> None:
        self._ledger, self._work = ledger, work
        self._background = Background("uploads", _NUM_THREADS)
        # Its own: what waits in the search's writer must not wait for a model.
        self._writer = ledger.parent.writer.beside()
        self._pending: list[_Upload] = []

    @property
    def trials(self) -> set[int]:
        """Sequences of the ended trials whose files are not all in the store yet."""
        return {upload.trial.record.sequence for upload in self._pending if upload.trial is not None}

    def begin(self, trial: LedgerTrial, run: TrackedRun, assignment: Assignment) -> None:
        """Write what is known before the first epoch."""
        own = replace(run, writer=self._writer)
        job = self._background.submit(lambda: self._work.begin(own, assignment))
        self._pending.append(_Upload(trial.record.sequence, job))

    def finish(
        self, trial: LedgerTrial, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool
    ) -> None:
        """Write what the training has left in the run's folder, and close the trial."""
        own, before = replace(run, writer=self._writer), self._jobs_of(trial)

        def upload() -> None:
            for job in before:
                job.result()
            self._work.finish(own, assignment, outcome, keep_model=keep_model)
            if not keep_model:  # an earlier attempt may have begun to upload one, when the trial still ranked higher
                self._writer.call(lambda: delete_models(own.store, own.run_id))
            self._ledger.close(trial, has_model=keep_model, writer=self._writer)

        self._submit(upload, trial, keep_model, run.lock)

    def repeat(self, trial: LedgerTrial, source: LedgerTrial) -> None:
        """Give a trial the figures of the one that was the same, uploaded before it, and close it."""
        before = self._jobs_of(source)

        def upload() -> None:
            for job in before:
                job.result()
            self._ledger.copy_figures(trial, source, self._writer)
            self._ledger.close(trial, has_model=False, writer=self._writer)

        self._submit(upload, trial)

    def settle(self, timeout_secs: float) -> bool:
        """Take note of finished uploads, waiting for one if asked to; return whether there were any.

        Raises:
            TrackingError: the store stayed away too long, or refused.
        """
        if timeout_secs and self._pending:
            wait([upload.job for upload in self._pending], timeout_secs, FIRST_COMPLETED)
        has_settled = False
        for upload in [upload for upload in self._pending if upload.job.done()]:
            self._pending.remove(upload)
            try:
                upload.job.result()
            finally:
                if upload.lock is not None:
                    upload.lock.release()
            if upload.trial is not None:
                self._ledger.note_closed(upload.trial, has_model=upload.has_model)
                has_settled = True
        return has_settled

    def stop(self) -> None:
        """Begin no further upload."""
        self._background.close()
        for upload in self._pending:
            if upload.lock is not None:
                upload.lock.release()

    def wait_for(self, trial: LedgerTrial) -> None:
        """Wait for the pending writes of a trial: once it has failed, no restart repeats them."""
        for job in self._jobs_of(trial):
            job.result()

    def _jobs_of(self, trial: LedgerTrial) -> list[Future[None]]:
        """Return what must be done before more is written of a trial; it was submitted earlier, so it has begun."""
        return [upload.job for upload in self._pending if upload.sequence == trial.record.sequence]

    def _submit(
        self,
        action: Callable[[], None],
        trial: LedgerTrial,
        has_model: bool = False,
        lock: BaseFileLock | None = None,
    ) -> None:
        job = self._background.submit(action)
        self._pending.append(_Upload(trial.record.sequence, job, trial, has_model, lock))
