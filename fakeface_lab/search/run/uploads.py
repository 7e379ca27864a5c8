"""What trials leave behind on its way to the store, beside the search.

A trial's score is in the ledger before; what was cut off is uploaded again after a restart.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import partial

from filelock import BaseFileLock
from keras_tuner import oracles as kt_oracles

from fakeface_lab.backend import keras_tuner
from fakeface_lab.search.ledger.ledger import Ledger, LedgerRun, LedgerTrial
from fakeface_lab.search.run.engine import Assignment, Work
from fakeface_lab.tracking.models import delete_models
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import Background
from fakeface_lab.training.checkpoint import CHECKPOINT
from fakeface_lab.training.outcome import Outcome

__all__ = ["Uploads", "kept_models", "remove_models", "remove_work_folders"]


def remove_work_folders(
    store: Store, trials: Sequence[LedgerTrial], candidates: Sequence[LedgerTrial], template: keras_tuner.Oracle
) -> list[LedgerTrial]:
    """Delete the local files of closed trials; of those that may still be promoted all but the checkpoint.

    Args:
        store: its work folder has the trials' folders.
        trials: all trials of the search.
        candidates: those that may have local files.
        template: the oracle, which knows what may be promoted.

    Returns:
        The candidates that still have local files.
    """
    parents = _promotable(trials, template)
    by_sequence = {trial.record.sequence: trial for trial in trials}
    left = []
    for trial in (by_sequence[candidate.record.sequence] for candidate in candidates):
        folder = store.work_folder / trial.run_id
        if trial.is_open:
            left.append(trial)
            continue
        folder.with_suffix(".lock").unlink(missing_ok=True)
        if trial.record.sequence not in parents:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        left.append(trial)
        for path in folder.glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != CHECKPOINT and path.suffix != ".weights":
                path.unlink()
    return left


def _promotable(trials: Sequence[LedgerTrial], template: keras_tuner.Oracle) -> set[int]:
    """Return the sequences of finished trials from whose checkpoint a trial does or may still go on."""
    if not isinstance(template, kt_oracles.HyperbandOracle):
        return set()
    rounds: dict[tuple[int, int], list[LedgerTrial]] = defaultdict(list)
    children: dict[int, list[LedgerTrial]] = defaultdict(list)
    for trial in trials:
        values = trial.record.bracket_values
        rounds[int(values["tuner/bracket"]), int(values["tuner/round"])].append(trial)
        if "tuner/trial_id" in values:
            children[int(values["tuner/trial_id"])].append(trial)
    needed = set()
    for (bracket, round_num), members in rounds.items():
        if bracket < 0 or round_num + 1 >= template._get_num_rounds(bracket):
            continue
        size, next_size = template._get_size(bracket, round_num), template._get_size(bracket, round_num + 1)
        promoted = rounds.get((bracket, round_num + 1), [])
        for place, trial in enumerate(members):
            # Hyperband runs its brackets over and over; each time a round has `size` places.
            is_next_full = len(promoted) >= (place // size + 1) * next_size
            own = children[trial.record.sequence]
            is_in_use = any(child.record.status == "running" for child in own)
            if trial.record.status == "finished" and (is_in_use or (not own and not is_next_full)):
                needed.add(trial.record.sequence)
    return needed


def kept_models(ledger: Ledger, keep_models: str) -> set[int]:
    """Return the sequences of finished trials whose models are kept: `all`, `best`, or `top-K` of them."""
    ranked = [trial.record.sequence for trial in ledger.best_first()]
    if keep_models == "all":
        return set(ranked)
    return set(ranked[: 1 if keep_models == "best" else int(keep_models.removeprefix("top-"))])


def remove_models(ledger: Ledger, keep_models: str) -> None:
    """Delete the models of trials that fell out of the best ones; the trial's tag `model` then says `none`."""
    if keep_models == "all":
        return
    kept = kept_models(ledger, keep_models)
    store, writer = ledger.parent.store, ledger.parent.writer
    for trial in ledger.trials:
        if trial.record.sequence in kept or trial.tags.get("model") != "logged":
            continue
        writer.call(partial(delete_models, store, trial.run_id))
        ledger.set_tags(trial, {"model": "none"})


# One model that takes minutes must not hold up the others.
_NUM_THREADS = 4


@dataclass
class _Upload:
    """One upload of a training; it closes the run, unless it is what is written before the training."""

    child: LedgerRun
    job: Future[None]
    closes: bool = False
    has_model: bool = False
    lock: BaseFileLock | None = None


class Uploads:
    """Writes parameters, files and models of trainings, and closes their runs."""

    def __init__(self, ledger: Ledger, work: Work) -> None:
        self._ledger, self._work = ledger, work
        self._background = Background("uploads", _NUM_THREADS)
        # Its own: what waits in the search's writer must not wait for a model.
        self._writer = ledger.parent.writer.beside()
        self._pending: list[_Upload] = []

    @property
    def num_ended(self) -> int:
        """How many ended trainings have files that are not in the store yet."""
        return sum(upload.closes for upload in self._pending)

    def begin(self, child: LedgerRun, run: TrackedRun, assignment: Assignment) -> None:
        """Write what is known before the first epoch."""
        own = replace(run, writer=self._writer)
        job = self._background.submit(lambda: self._work.begin(own, assignment))
        self._pending.append(_Upload(child, job))

    def finish(
        self, child: LedgerRun, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool
    ) -> None:
        """Write what the training has left in the run's folder, and close the run."""
        own, before = replace(run, writer=self._writer), self._jobs_of(child)

        def upload() -> None:
            for job in before:
                job.result()
            self._work.finish(own, assignment, outcome, keep_model=keep_model)
            if not keep_model:  # an earlier attempt may have begun to upload one, when the trial still ranked higher
                self._writer.call(lambda: delete_models(own.store, own.run_id))
            self._ledger.close(child, has_model=keep_model, writer=self._writer)

        self._submit(upload, child, keep_model, run.lock)

    def repeat(self, trial: LedgerTrial, source: LedgerTrial) -> None:
        """Give a trial the figures of the one that was the same, uploaded before it, and close it."""
        before = self._jobs_of(source)

        def upload() -> None:
            for job in before:
                job.result()
            self._ledger.copy_figures(trial, source, self._writer)
            self._ledger.close(trial, has_model=False, writer=self._writer)

        self._submit(upload, trial)

    def settle(self, timeout_secs: float) -> list[LedgerRun]:
        """Take note of finished uploads, waiting for one if asked to, and return the runs that are closed now.

        Raises:
            TrackingError: the store stayed away too long, or refused.
        """
        if timeout_secs and self._pending:
            wait([upload.job for upload in self._pending], timeout_secs, FIRST_COMPLETED)
        closed = []
        for upload in [upload for upload in self._pending if upload.job.done()]:
            self._pending.remove(upload)
            try:
                upload.job.result()
            finally:
                if upload.lock is not None:
                    upload.lock.release()
            if upload.closes:
                closed.append(self._ledger.note_closed(upload.child, has_model=upload.has_model))
        return closed

    def stop(self) -> None:
        """Begin no further upload."""
        self._background.close()
        for upload in self._pending:
            if upload.lock is not None:
                upload.lock.release()

    def wait_for(self, child: LedgerRun) -> None:
        """Wait for the pending writes of a training: once it has failed, no restart repeats them."""
        for job in self._jobs_of(child):
            job.result()

    def _jobs_of(self, child: LedgerRun) -> list[Future[None]]:
        """Return what must be done before more is written of a training; it was submitted earlier, so it has begun."""
        return [upload.job for upload in self._pending if upload.child.run_id == child.run_id]

    def _submit(
        self, action: Callable[[], None], child: LedgerRun, has_model: bool = False, lock: BaseFileLock | None = None
    ) -> None:
        job = self._background.submit(action)
        self._pending.append(_Upload(child, job, closes=True, has_model=has_model, lock=lock))
