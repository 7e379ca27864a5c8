"""Uploads of what trainings leave on disk, in the background, and the removal of local files and models.

A trial's score is committed before its upload begins; after a restart an interrupted upload is repeated.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from filelock import BaseFileLock
from keras_tuner import oracles as kt_oracles

from fakeface_lab.backend import keras_tuner
from fakeface_lab.search.ledger.executions import runs_with_models
from fakeface_lab.search.ledger.ledger import Ledger, LedgerRun, LedgerTrial
from fakeface_lab.search.run.engine import Assignment, Work
from fakeface_lab.tracking.models import delete_models
from fakeface_lab.tracking.runs import Run, TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import Background
from fakeface_lab.training.checkpoint import CHECKPOINT
from fakeface_lab.training.executions import execution_folders
from fakeface_lab.training.outcome import Outcome

__all__ = ["Uploads", "kept_models", "remove_models", "remove_work_folders"]


# Several, so that a model that takes minutes does not hold up the others.
_NUM_THREADS = 4


@dataclass
class _Upload:
    """One pending upload of a training; `closes` unless it is the one from before the first epoch."""

    child: LedgerRun
    job: Future[None]
    closes: bool = False
    has_model: bool = False
    lock: BaseFileLock | None = None


class Uploads:
    """Writes parameters, files and models of trainings in the background, and closes their runs."""

    def __init__(self, ledger: Ledger, work: Work) -> None:
        self._ledger, self._work = ledger, work
        self._background = Background("uploads", _NUM_THREADS)
        # With its own queue: the search's writes must not wait for a model.
        self._writer = ledger.parent.writer.with_own_queue()
        self._pending: list[_Upload] = []
        # By the run id of the trial whose results they take: trials that wait until it is uploaded, and its number.
        self._repeats: dict[str, list[tuple[LedgerTrial, int]]] = defaultdict(list)

    @property
    def num_ended(self) -> int:
        """How many finished trainings have files that are not in the store yet."""
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
        own = replace(run, writer=self._writer)

        def upload() -> None:
            self._work.finish(own, assignment, outcome, keep_model=keep_model)
            if not keep_model:  # an earlier attempt may have begun to upload one, when the trial still ranked higher
                self._writer.call(lambda: _delete_models(own.store, child.run))
            self._ledger.close(child, has_model=keep_model, writer=self._writer)

        job = self._submit(upload, after=child)
        self._pending.append(_Upload(child, job, closes=True, has_model=keep_model, lock=run.lock))
        self.release_repeats(child)

    def repeat(self, trial: LedgerTrial, source: LedgerTrial) -> None:
        """Give a trial the parameters and metrics of an earlier one with the same configuration, and close it.

        If a kill has interrupted the upload of the earlier one, this waits until it is repeated.
        """
        if source.is_open and not any(one.closes for one in self._pending if one.child.run_id == source.run_id):
            self._repeats[source.run_id].append((trial, source.record.sequence))
            return

        def upload() -> None:
            self._ledger.stored(trial, self._writer).copy_results(source.run)
            self._ledger.close(trial, has_model=False, writer=self._writer)

        self._pending.append(_Upload(trial, self._submit(upload, after=source), closes=True))

    def release_repeats(self, child: LedgerRun) -> None:
        """Let those that wait for this training take what it has."""
        for trial, source in self._repeats.pop(child.run_id, []):
            self.repeat(trial, self._ledger.trials[source])

    def collect(self, timeout_secs: float) -> list[LedgerRun]:
        """Collect finished uploads, after waiting for one until the timeout; return the runs that they closed.

        Raises:
            TrackingError: the store was unreachable for too long, or refused a write.
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
        """Start no further upload."""
        self._background.close()
        for upload in self._pending:
            if upload.lock is not None:
                upload.lock.release()

    def wait_for(self, child: LedgerRun) -> None:
        """Wait for the pending writes of a training: after it is recorded as failed, no restart repeats them."""
        for job in self._jobs_of(child):
            job.result()

    def _jobs_of(self, child: LedgerRun) -> list[Future[None]]:
        """Return the pending uploads of a training: they precede any further write of it."""
        return [upload.job for upload in self._pending if upload.child.run_id == child.run_id]

    def _submit(self, upload: Callable[[], None], *, after: LedgerRun) -> Future[None]:
        """Queue an upload that waits for the pending ones of a training."""
        before = self._jobs_of(after)

        def upload_in_order() -> None:
            for job in before:  # submitted earlier, so they have started: waiting for them cannot deadlock
                job.result()
            upload()

        return self._background.submit(upload_in_order)


def remove_work_folders(
    store: Store, trials: Sequence[LedgerTrial], candidates: Sequence[LedgerTrial], template: keras_tuner.Oracle
) -> list[LedgerTrial]:
    """Delete the local files of closed trials, except the checkpoints of those that may still be promoted.

    `candidates` are the trials that may have local files; returned are those that still have some.
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
        _keep_checkpoints(folder)
    return left


def _keep_checkpoints(folder: Path) -> None:
    """Delete everything in a trial's folder but the checkpoints of the training, or of its executions."""
    executions = execution_folders(folder)
    for path in folder.glob("*"):
        if path in executions:
            _keep_checkpoints(path)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != CHECKPOINT and path.suffix != ".weights":
            path.unlink()


def _promotable(trials: Sequence[LedgerTrial], template: keras_tuner.Oracle) -> set[int]:
    """Return the sequences of finished trials from whose checkpoint another trial resumes, or may still resume."""
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
            # Hyperband repeats its brackets; each repetition of a round has `size` places.
            is_next_full = len(promoted) >= (place // size + 1) * next_size
            own = children[trial.record.sequence]
            is_in_use = any(child.record.status == "running" for child in own)
            if trial.record.status == "finished" and (is_in_use or (not own and not is_next_full)):
                needed.add(trial.record.sequence)
    return needed


def kept_models(ledger: Ledger, keep_models: str) -> set[int]:
    """Return the sequences of finished trials whose models are kept; `keep_models` is `all`, `best` or `top-K`."""
    ranked = [trial.record.sequence for trial in ledger.best_first()]
    if keep_models == "all":
        return set(ranked)
    return set(ranked[: 1 if keep_models == "best" else int(keep_models.removeprefix("top-"))])


def _delete_models(store: Store, trial: Run) -> None:
    for run_id in runs_with_models(store, trial):
        delete_models(store, run_id)


def remove_models(ledger: Ledger, keep_models: str) -> None:
    """Delete the models of trials that are no longer among the best; the trial's tag `model` then says `none`."""
    kept = kept_models(ledger, keep_models)
    store, writer = ledger.parent.store, ledger.parent.writer
    for trial in ledger.trials:
        if trial.record.sequence in kept or trial.tags.get("model") != "logged":
            continue
        writer.call(partial(_delete_models, store, trial.run))
        ledger.set_tags(trial, {"model": "none"})
