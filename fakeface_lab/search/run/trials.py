"""The driver of a search's trials: suggestions, scores, and results that are already known."""

import json
import math
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress

from fakeface_lab.backend import keras_tuner
from fakeface_lab.errors import AllTrialsFailedError, TooManyFailuresError
from fakeface_lab.search.ledger.ledger import Ledger, LedgerRun, LedgerTrial
from fakeface_lab.search.run.driver import SUGGESTION_POLL_SECS, Driver, Observer
from fakeface_lab.search.run.engine import Assignment, Engine, Work
from fakeface_lab.search.run.uploads import kept_models, remove_models, remove_work_folders
from fakeface_lab.search.suggest.suggestion import Exhausted, Suggestion, Wait, failed_parent, suggest
from fakeface_lab.search.suggest.template import new_in, set_growth
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import split_text
from fakeface_lab.tracking.writer import Background
from fakeface_lab.training.checkpoint import CHECKPOINT, inherit_checkpoint
from fakeface_lab.training.executions import execution_folders
from fakeface_lab.training.outcome import Outcome

__all__ = ["Trials"]


class Trials(Driver[LedgerTrial]):
    """Drives the trials of one search to their end.

    Args:
        ledger: of the search.
        template: the oracle; copies of it suggest. It is told what trials find.
        work: what a trial trains.
        engine: runs the trials; see `Driver`.
        observer: shows progress.
        epochs: budget of a trial if the algorithm does not set one.
        seed: of all trainings.
        hours: after this time over all restarts no trial is started; None for no limit.
        keep_models: `all`, `best` or `top-K`; the models of other trials are deleted from the store.
    """

    def __init__(
        self,
        ledger: Ledger,
        template: keras_tuner.Oracle,
        work: Work,
        engine: Engine,
        observer: Observer[LedgerTrial],
        *,
        epochs: int,
        seed: int,
        hours: float | None = None,
        keep_models: str = "all",
    ) -> None:
        super().__init__(ledger, work, engine, observer)
        self._template, self._default_epochs, self._seed = template, epochs, seed
        self._hours, self._keep_models = hours, keep_models
        set_growth(template, ledger.growth)
        self._unfinished = deque(trial for trial in ledger.trials if trial.is_open)
        self._on_disk = ledger.trials
        self._finished: dict[str, int] = {}
        for trial in ledger.trials:
            self._note_finished(trial)
        self._background = Background("suggestion")
        self._pending: Future[Suggestion | Wait | Exhausted] | None = None
        self._num_events_without_more = -1

    def run(self) -> None:
        """Run all trials.

        Raises:
            AllTrialsFailedError: no trial has a score.
            SearchError, TrackingError: see `Driver.run`.
        """
        try:
            super().run()
        finally:
            self._background.close()
        trials = self.ledger.trials
        if trials and all(trial.record.status == "failed" for trial in trials):
            reasons = "; ".join(sorted({trial.tags.get("status_reason", "") for trial in trials}))
            raise AllTrialsFailedError(
                f"search {self.ledger.parent.name!r}: all {len(trials)} trials failed ({reasons})"
            )

    @property
    def max_retries(self) -> int:
        """How often a trial is tried again after an error of its own: the oracle's `max_retries_per_trial`."""
        return int(self._template.max_retries_per_trial)

    @property
    def is_suggesting(self) -> bool:
        """Whether a suggestion is being computed."""
        return self._pending is not None

    def next(self) -> tuple[LedgerTrial, Assignment] | None:
        """Return a trial that an earlier process left unfinished, else a new one; None if there is none now."""
        while True:
            trial = self._unfinished.popleft() if self._unfinished else self._new()
            if trial is None:
                return None
            if not self._take_known_result(trial):
                epochs = self._epochs(trial.record.bracket_values)
                return trial, Assignment(f"trial-{trial.record.sequence}", trial.record.values, epochs, self._seed)

    def prepare(self, trial: LedgerTrial, run: TrackedRun) -> None:
        """Give a promoted trial its parent's checkpoint."""
        parent = trial.record.bracket_values.get("tuner/trial_id")
        if parent is not None:
            source = self.ledger.parent.store.work_folder / self.ledger.trials[int(parent)].run_id
            if self._engine.storage is not None and not (source / CHECKPOINT).exists():
                with suppress(OSError):  # without it the trial begins at its first epoch, with the same result
                    self._engine.storage.fetch(source)
            inherit_checkpoint(source, run.folder)
            for execution in execution_folders(source):
                own = run.folder / execution.name
                own.mkdir(exist_ok=True)
                inherit_checkpoint(execution, own)

    def commit(self, trial: LedgerTrial, outcome: Outcome) -> LedgerTrial | None:
        """Write a trial's score and what it has found; without a finite score the trial has failed."""
        name = self._template.objective.name
        if trial.record.status == "finished":  # trained again only to restore its lost files
            return trial
        score = outcome.score
        if score is None:
            score = outcome.kept_metrics().get(name, outcome.metrics.get(name))
        found = self._found(trial, outcome)
        if score is None or not math.isfinite(score):
            # Some stores turn an infinite value into a finite one, so it is not written at all.
            self.fail(trial, f"{name} is {score}: no finite score", found)
            return None
        tags = {"kept_epoch": str(outcome.kept_epoch), "epochs_done": str(len(outcome.records)), **found}
        measured_at = (outcome.kept_epoch, outcome.ended_at_ms)
        ended = self.ledger.end(trial, "finished", score, tags=tags, measured_at=measured_at)
        if found:
            set_growth(self._template, self.ledger.growth)
        self._note_finished(ended)
        return ended

    def _found(self, trial: LedgerTrial, outcome: Outcome) -> dict[str, str]:
        """Return the tags of what a trial has found, less what others have found meanwhile."""
        if not outcome.found_values and not outcome.found:
            return {}
        new = new_in(self._template, outcome.found)
        values = {**trial.record.values, **outcome.found_values}
        return {**(split_text("found", json.dumps(new)) if new else {}), **split_text("values", json.dumps(values))}

    def fail(self, trial: LedgerTrial, reason: str, found: Mapping[str, str] | None = None) -> None:
        """Write that a trial has failed, and the tags of what it has found; the search continues."""
        if trial.record.status == "finished":  # trained again only to restore its lost files: its score stands
            self.ledger.close(trial, has_model=False, writer=self.ledger.parent.writer)
            ended = self.ledger.note_closed(trial, has_model=False)
            self.uploads.release_repeats(ended)
        else:
            self.uploads.wait_for(trial)
            ended = self.ledger.end(trial, "failed", None, reason, found)
            if found:
                set_growth(self._template, self.ledger.growth)
        self.forget(f"trial-{trial.record.sequence}")
        self.clean_up(())
        self.observer.ended(ended)
        # Counted in the ledger, so that a restart does not begin to count anew.
        num_failed, limit = self.ledger.num_failed_last(), self._template.max_consecutive_failed_trials
        if ended.record.status == "failed" and num_failed >= limit:
            raise TooManyFailuresError(
                f"search {self.ledger.parent.name!r}: {num_failed} trials in a row failed, the last because: {reason}; "
                f"max_consecutive_failed_trials is {limit}"
            )

    def keeps_model(self, trial: LedgerTrial) -> bool:
        """Return whether the trial is among the best so far."""
        return trial.record.sequence in kept_models(self.ledger, self._keep_models)

    def clean_up(self, closed: Sequence[LedgerRun]) -> None:
        """Delete checkpoints that no promotion needs, and models that are no longer among the best."""
        store = self.ledger.parent.store
        before = self._on_disk
        self._on_disk = remove_work_folders(store, self.ledger.trials, before, self._template)
        self.remove_copies({trial.run_id for trial in before} - {trial.run_id for trial in self._on_disk})
        remove_models(self.ledger, self._keep_models)

    def _new(self) -> LedgerTrial | None:
        """Create the next suggested trial; None if there is none, or none yet."""
        suggestion = self._suggest()
        if isinstance(suggestion, Suggestion):
            return self._create(suggestion)
        if suggestion is not None:
            self._num_events_without_more = self.ledger.num_events
        return None

    def _suggest(self) -> Suggestion | Wait | Exhausted | None:
        """Return what to try next; None while it is being computed, when time is up, or if nothing can have changed."""
        if self._pending is None:
            is_out_of_time = self._hours is not None and self.ledger.used_secs() >= 3600 * self._hours
            if is_out_of_time or self.ledger.num_events == self._num_events_without_more:
                return None
            records = self.ledger.records
            self._pending = self._background.submit(lambda: suggest(self._template, records))
        wait([self._pending], SUGGESTION_POLL_SECS)
        if not self._pending.done():
            return None
        answer, self._pending = self._pending.result(), None
        return answer

    def _create(self, suggestion: Suggestion) -> LedgerTrial:
        sequence, epochs = len(self.ledger.trials), self._epochs(suggestion.bracket_values)
        name = f"t{sequence:03d} {self.work.label(suggestion.values)}".rstrip()
        tags = {"seed": str(self._seed), "epochs_planned": str(epochs)}
        trial = self.ledger.create(suggestion, name, tags)
        self._on_disk.append(trial)
        return trial

    def _take_known_result(self, trial: LedgerTrial) -> bool:
        """Write a trial's result if it is known without training; return whether it was."""
        if "duplicate_of" in trial.tags:
            self.uploads.repeat(trial, self.ledger.trials[int(trial.tags["duplicate_of"])])
            return True
        if trial.record.status != "running":
            return False
        parent = failed_parent(trial.record.bracket_values, self.ledger.records)
        if parent is not None:
            self.fail(trial, f"its parent, trial {parent}, failed")
            return True
        source = self._finished.get(self._configuration(trial))
        if source is not None:
            self._repeat(trial, self.ledger.trials[source])
        return source is not None

    def _repeat(self, trial: LedgerTrial, source: LedgerTrial) -> None:
        """End a trial with the result of an earlier one that has the same configuration and budget."""
        tags = {"duplicate_of": str(source.record.sequence)}
        tags |= {key: source.tags[key] for key in ("kept_epoch", "epochs_done") if key in source.tags}
        reason = f"same configuration as trial {source.record.sequence}, whose result it takes"
        ended = self.ledger.end(trial, "finished", source.record.score, reason, tags)
        self.uploads.repeat(ended, source)
        self.observer.ended(ended)

    def _epochs(self, bracket_values: Mapping[str, object]) -> int:
        return int(str(bracket_values.get("tuner/epochs", self._default_epochs)))

    def _configuration(self, trial: LedgerTrial) -> str:
        values = dict(sorted(trial.record.values.items()))
        return json.dumps([values, self._epochs(trial.record.bracket_values)])

    def _note_finished(self, trial: LedgerTrial) -> None:
        if trial.record.status == "finished":
            self._finished.setdefault(self._configuration(trial), trial.record.sequence)
