"""The loop of a search: ask what to try next, have it trained, write down what came of it.

It keeps nothing in memory that the ledger does not hold, apart from what is running right now: killed at any point and
started again, it resumes where it was. It waits for nothing but the store: suggestions are computed and files are
uploaded beside it, so that no worker stands still for another one.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

from mlflow.entities import Metric

from fakeface_lab.backend import keras_tuner
from fakeface_lab.errors import AllTrialsFailedError
from fakeface_lab.search.ledger.heartbeat import Heartbeat
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.run.engine import MAX_DEATHS, MAX_STARTS, Assignment, Engine, Event, Retries, Work
from fakeface_lab.search.run.uploads import Uploads, inherit_checkpoint, kept_models, remove_models, remove_work_folders
from fakeface_lab.search.suggest.suggestion import Exhausted, Suggestion, Wait, failed_parent, suggest
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.writer import Background
from fakeface_lab.training.outcome import Outcome, read_outcome

__all__ = ["Driver", "Limits", "Observer", "is_better"]

_POLL_SECS = 1.0
# Most suggestions are there within this time; a slower one is looked after again so often.
_SUGGESTION_SECS = 0.2
# Files of so many ended trials may wait on this disk for a slow store.
_MAX_UPLOADS = 16


@dataclass(frozen=True)
class Limits:
    """When a search stops.

    Attributes:
        epochs: budget of a trial that its algorithm gives none.
        hours: over all restarts; None for no limit. A trial that was begun is finished.
    """

    epochs: int
    hours: float | None = None


class Observer(Protocol):
    """Who shows how the search goes."""

    def trial_started(self, trial: LedgerTrial, epochs: int) -> None:
        """A trial begins, or resumes."""

    def trial_progressed(self, trial: LedgerTrial, event: Event) -> None:
        """A step or an epoch ended."""

    def trial_ended(self, trial: LedgerTrial) -> None:
        """A trial has its score, or failed."""

    def died(self, trial: LedgerTrial, reason: str) -> None:
        """A worker died over the trial, which will be tried again."""


def is_better(score: float, other: float, direction: Literal["min", "max"]) -> bool:
    """Return whether `score` beats `other`."""
    return score < other if direction == "min" else score > other


@dataclass
class _Open:
    """A trial that is being trained; its run stays locked from its first attempt until its files are uploaded."""

    trial: LedgerTrial
    assignment: Assignment
    run: TrackedRun


class Driver:
    """Drives one search to its end.

    Args:
        ledger: the search's memory.
        template: the oracle that suggests; never asked itself.
        work: what a trial trains.
        make_engine: makes the engine around the driver's handler of events.
        limits: when to stop.
        seed: of all trainings.
        observer: shows progress.
        keep_models: `all`, `best` or `top-K`: models of other trials are deleted from the store.
    """

    def __init__(
        self,
        ledger: Ledger,
        template: keras_tuner.Oracle,
        work: Work,
        make_engine: Callable[[Callable[[Event], None]], Engine],
        limits: Limits,
        *,
        seed: int,
        observer: Observer,
        keep_models: str = "all",
    ) -> None:
        self._ledger, self._template, self._work, self._limits = ledger, template, work, limits
        self._seed, self._observer, self._keep_models = seed, observer, keep_models
        self._running: dict[str, _Open] = {}
        self._engine = make_engine(self._handle)
        self._heartbeat, self._uploads = Heartbeat(ledger.parent), Uploads(ledger, work)
        self._left_over = deque(trial for trial in ledger.trials if trial.is_open)
        self._on_disk = ledger.trials
        self._finished: dict[str, int] = {}
        for trial in ledger.trials:
            self._note_finished(trial)
        self._thinking = Background("suggestion")
        self._question: Future[Suggestion | Wait | Exhausted] | None = None
        self._deferred: list[Event] = []
        self._num_events_without_more = -1
        self._retries = Retries(ledger.parent.name)

    def run(self) -> None:
        """Run all trials.

        Raises:
            AllTrialsFailedError: no trial has a score.
            SearchError: the machine is at fault again and again; the same command resumes once the cause is gone.
            TrackingError: the store stayed away too long, or another process has taken the search over.
        """
        with self._ledger.stopping(), self._heartbeat:
            try:
                self._clean_up()
                while self._fill() or self._running or self._uploads.trials:
                    self._wait()
            finally:
                self._engine.stop()
                self._thinking.close()
                self._uploads.stop()
                for opened in self._running.values():
                    opened.run.lock.release()
        trials = self._ledger.trials
        if trials and all(trial.record.status == "failed" for trial in trials):
            reasons = "; ".join(sorted({trial.tags.get("status_reason", "") for trial in trials}))
            raise AllTrialsFailedError(
                f"search {self._ledger.parent.name!r}: all {len(trials)} trials failed ({reasons}); "
                f"nothing was registered"
            )

    def _wait(self) -> None:
        """Handle what has happened, or wait a moment for it."""
        if self._running:
            self._engine.wait(_POLL_SECS if self._question is None else _SUGGESTION_SECS)
            timeout_secs = 0.0
        else:
            timeout_secs = _POLL_SECS if self._question is None else 0.0
        if self._uploads.settle(timeout_secs):
            self._clean_up()

    def _fill(self) -> bool:
        """Start what can be started; return whether there may be more later."""
        while self._engine.num_free():
            if len(self._uploads.trials) >= _MAX_UPLOADS:
                return True
            trial = self._next()
            if trial is None:
                return self._question is not None
            self._start(trial)
        return True

    def _next(self) -> LedgerTrial | None:
        """Return a trial to start: one that an earlier process left open, else a new one; None if there is none now."""
        if self._left_over:
            return self._left_over.popleft()
        suggestion = self._suggest()
        if suggestion is None:
            return None
        trial = self._create(suggestion) if isinstance(suggestion, Suggestion) else None
        if trial is None:
            self._num_events_without_more = self._ledger.num_events
        deferred, self._deferred = self._deferred, []
        for event in deferred:
            self._handle(event)
        return trial

    def _suggest(self) -> Suggestion | Wait | Exhausted | None:
        """Return what to try next; None while it is being computed, or where there is nothing to ask."""
        if self._question is None:
            hours = self._limits.hours
            is_out_of_time = hours is not None and self._heartbeat.used_secs() >= 3600 * hours
            if is_out_of_time or self._ledger.num_events == self._num_events_without_more:
                return None
            records = self._ledger.records
            self._question = self._thinking.submit(lambda: suggest(self._template, records))
        try:
            answer = self._question.result(timeout=_SUGGESTION_SECS)
        except TimeoutError:
            if not self._question.done():
                return None
            raise
        self._question = None
        return answer

    def _create(self, suggestion: Suggestion) -> LedgerTrial:
        sequence = len(self._ledger.trials)
        epochs = self._epochs(suggestion.bracket_values)
        assignment = Assignment(f"trial-{sequence}", suggestion.values, epochs, self._seed)
        name = f"t{sequence:03d} {self._work.label(assignment)}"
        trial = self._ledger.create(suggestion, name, {"seed": str(self._seed), "epochs_planned": str(epochs)})
        self._on_disk.append(trial)
        return trial

    def _epochs(self, bracket_values: Mapping[str, object]) -> int:
        return int(str(bracket_values.get("tuner/epochs", self._limits.epochs)))

    def _start(self, trial: LedgerTrial) -> None:
        """Have a trial trained, unless its result is known without."""
        if trial.record.status == "running":
            parent = failed_parent(trial.record.bracket_values, self._ledger.records)
            if parent is not None:
                self._fail(trial, f"its parent, trial {parent}, failed")
                return
            source = self._finished.get(self._configuration(trial))
            if source is not None:
                self._repeat(trial, self._ledger.trials[source])
                return
        elif "duplicate_of" in trial.tags:
            self._uploads.repeat(trial, self._ledger.trials[int(trial.tags["duplicate_of"])])
            return
        assignment = Assignment(_key(trial), trial.record.values, self._epochs(trial.record.bracket_values), self._seed)
        run = TrackedRun.reopen(self._ledger.parent.store, self._ledger.parent.writer, trial.run)
        self._running[_key(trial)] = _Open(trial, assignment, run)
        self._uploads.begin(trial, run, assignment)
        self._attempt(_key(trial))

    def _attempt(self, key: str) -> None:
        opened = self._running[key]
        if read_outcome(opened.run.folder) is None:
            if opened.trial.num_starts >= MAX_STARTS:
                self._fail(opened.trial, f"started {MAX_STARTS} times without finishing an epoch")
                return
            opened.trial = self._ledger.count_start(opened.trial)
        parent = opened.trial.record.bracket_values.get("tuner/trial_id")
        if parent is not None:
            parent_run_id = self._ledger.trials[int(parent)].run_id
            inherit_checkpoint(self._ledger.parent.store.work_folder / parent_run_id, opened.run.folder)
        self._observer.trial_started(opened.trial, opened.assignment.epochs)
        self._engine.start(opened.assignment, opened.run.folder)

    def _handle(self, event: Event) -> None:
        opened = self._running[event.key]
        if event.kind == "step":
            self._observer.trial_progressed(opened.trial, event)
        elif event.kind == "epoch":
            assert event.record is not None
            self._ledger.parent.require_owned()
            self._retries.note_epoch()
            opened.run.log_metrics(event.record.metrics, event.record.epoch, event.record.ended_at_ms)
            opened.trial = self._ledger.count_epoch(opened.trial, event.record.epoch)
            self._observer.trial_progressed(opened.trial, event)
        elif self._question is not None:
            # A suggestion follows from the ledger as it was when asked for: nothing ends before it is written.
            self._deferred.append(event)
        elif event.kind == "done":
            self._finish(opened)
        elif event.kind == "failed":
            self._fail(opened.trial, event.reason)
        elif event.kind == "died":
            self._died(opened, event.reason)
        else:
            self._disturbed(opened, event.reason)

    def _died(self, opened: _Open, reason: str) -> None:
        opened.trial = self._ledger.count_death(opened.trial, reason)
        if self._retries.may_retry(opened.trial.num_deaths, reason):
            self._retry(opened, reason)
        else:
            self._fail(opened.trial, f"{MAX_DEATHS} deaths without a newly finished epoch: {reason}")

    def _disturbed(self, opened: _Open, reason: str) -> None:
        opened.trial = self._ledger.uncount_start(opened.trial, reason)
        self._retries.note_disturbance(reason)
        self._retry(opened, reason)

    def _retry(self, opened: _Open, reason: str) -> None:
        self._observer.died(opened.trial, reason)
        self._attempt(_key(opened.trial))

    def _finish(self, opened: _Open) -> None:
        """Commit a trial's score, then have what it left behind uploaded."""
        trial, run = opened.trial, opened.run
        outcome = read_outcome(run.folder)
        if outcome is None:
            self._died(opened, "the worker reported success but left no readable result")
            return
        if trial.record.status == "running":
            score = self._score(outcome)
            if score is None or not math.isfinite(score):
                # An infinite value comes back from some stores as a finite one: it is not even written.
                self._fail(trial, f"{self._template.objective.name} is {score}: no finite score")
                return
            trial = self._ledger.end(
                trial,
                "finished",
                score,
                tags={"kept_epoch": str(outcome.kept_epoch), "epochs_done": str(len(outcome.records))},
                metrics=(Metric("score", score, outcome.ended_at_ms, outcome.kept_epoch),),
            )
            self._note_finished(trial)
            self._retries.note_finished()
        del self._running[_key(trial)]
        self._uploads.finish(trial, run, opened.assignment, outcome, keep_model=self._is_kept(trial))
        self._observer.trial_ended(trial)

    def _repeat(self, trial: LedgerTrial, source: LedgerTrial) -> None:
        """End a trial whose configuration was trained before, at the same budget, with that one's result."""
        tags = {"duplicate_of": str(source.record.sequence)}
        tags |= {key: source.tags[key] for key in ("kept_epoch", "epochs_done") if key in source.tags}
        reason = f"the same as trial {source.record.sequence}, whose result it has"
        ended = self._ledger.end(trial, "finished", source.record.score, reason, tags)
        self._uploads.repeat(ended, source)
        self._observer.trial_ended(ended)

    def _fail(self, trial: LedgerTrial, reason: str) -> None:
        if trial.record.status == "finished":
            # Trained again for its lost files alone; its score stands.
            self._ledger.close(trial, has_model=False, writer=self._ledger.parent.writer)
            ended = self._ledger.note_closed(trial, has_model=False)
        else:
            self._uploads.wait_for(trial)
            ended = self._ledger.end(trial, "failed", None, reason)
        opened = self._running.pop(_key(ended), None)
        if opened is not None:
            opened.run.lock.release()
        self._clean_up()
        self._observer.trial_ended(ended)

    def _score(self, outcome: Outcome) -> float | None:
        name = self._template.objective.name
        return outcome.kept_metrics().get(name, outcome.metrics.get(name))

    def _is_kept(self, trial: LedgerTrial) -> bool:
        kept = kept_models(self._ledger.records, self._template.objective.direction, self._keep_models)
        return trial.record.sequence in kept

    def _configuration(self, trial: LedgerTrial) -> str:
        values = dict(sorted(trial.record.values.items()))
        return json.dumps([values, self._epochs(trial.record.bracket_values)])

    def _note_finished(self, trial: LedgerTrial) -> None:
        if trial.record.status == "finished":
            self._finished.setdefault(self._configuration(trial), trial.record.sequence)

    def _clean_up(self) -> None:
        store = self._ledger.parent.store
        self._on_disk = remove_work_folders(store, self._ledger.trials, self._on_disk, self._template)
        remove_models(self._ledger, self._template.objective.direction, self._keep_models)


def _key(trial: LedgerTrial) -> str:
    return f"trial-{trial.record.sequence}"
