"""The loop of a search: ask what to try next, have it trained, write down what came of it.

It keeps nothing in memory that the ledger does not hold, apart from what is running right now: killed at any point
and started again, it goes on where it was.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from fakeface_lab.backend import keras_tuner
from fakeface_lab.errors import AllTrialsFailedError, TrackingError
from fakeface_lab.results import Outcome, read_outcome
from fakeface_lab.search import disk
from fakeface_lab.search.engines import Engine, Event
from fakeface_lab.search.ledger import Ledger, LedgerTrial
from fakeface_lab.search.presence import Presence
from fakeface_lab.search.suggestion import Suggestion, failed_parent, suggest
from fakeface_lab.search.work import Assignment, Work
from fakeface_lab.tracking.runs import TrackedRun

__all__ = ["Driver", "Limits", "Observer", "is_better"]

# Deaths of workers without a newly finished epoch, and starts without one (a killed driver is not the trial's fault).
MAX_DEATHS = 3
MAX_STARTS = 10

_POLL_SECS = 1.0


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
        """A trial begins, or goes on."""

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
    """A trial that is being trained; its run stays locked from its first attempt to its end."""

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
        self._presence = Presence(ledger.parent)
        self._num_events_without_more = -1

    def run(self) -> None:
        """Run all trials.

        Raises:
            AllTrialsFailedError: no trial has a score.
            TrackingError: the store stayed away too long; start again later.
        """
        with self._ledger.stopping(), self._presence:
            try:
                self._clean_up()
                while self._fill() or self._running:
                    self._engine.wait(_POLL_SECS)
            finally:
                self._engine.stop()
                for opened in self._running.values():
                    opened.run.lock.release()
        trials = self._ledger.trials
        if trials and all(trial.record.status == "failed" for trial in trials):
            reasons = "; ".join(sorted({trial.tags.get("status_reason", "") for trial in trials}))
            raise AllTrialsFailedError(
                f"search {self._ledger.parent.name!r}: all {len(trials)} trials failed ({reasons}); "
                f"nothing was registered"
            )

    def _fill(self) -> bool:
        """Start what can be started; return whether there may be more when the engine is free again."""
        while self._engine.num_free():
            trial = self._next()
            if trial is None:
                return False
            self._start(trial)
        return True

    def _next(self) -> LedgerTrial | None:
        """Return a trial to start: one that an earlier process began, else a new one; None if there is none now."""
        for trial in self._ledger.trials:
            if trial.record.status == "running" and _key(trial) not in self._running:
                return trial
        hours = self._limits.hours
        is_out_of_time = hours is not None and self._presence.used_secs() >= 3600 * hours
        if is_out_of_time or self._ledger.num_events == self._num_events_without_more:
            return None
        suggestion = suggest(self._template, self._ledger.records)
        if isinstance(suggestion, Suggestion):
            return self._create(suggestion)
        self._num_events_without_more = self._ledger.num_events
        return None

    def _create(self, suggestion: Suggestion) -> LedgerTrial:
        sequence = len(self._ledger.trials)
        epochs = self._epochs(suggestion.bracket_values)
        assignment = Assignment(f"trial-{sequence}", suggestion.values, epochs, self._seed)
        name = f"t{sequence:03d} {self._work.label(assignment)}"
        return self._ledger.create(suggestion, name, {"seed": str(self._seed), "epochs_planned": str(epochs)})

    def _epochs(self, bracket_values: Mapping[str, object]) -> int:
        return int(str(bracket_values.get("tuner/epochs", self._limits.epochs)))

    def _start(self, trial: LedgerTrial) -> None:
        """Have a trial trained, unless its result is known without."""
        parent = failed_parent(trial.record.bracket_values, self._ledger.records)
        if parent is not None:
            self._end(trial, "failed", None, f"its parent, trial {parent}, failed")
            return
        source = self._finished_before(trial)
        if source is not None:
            self._conclude(self._ledger.end_as_repeated(trial, source))
            return
        assignment = Assignment(_key(trial), trial.record.values, self._epochs(trial.record.bracket_values), self._seed)
        run = TrackedRun.reopen(self._ledger.parent.store, self._ledger.parent.writer, trial.run)
        self._running[_key(trial)] = _Open(trial, assignment, run)
        self._attempt(_key(trial))

    def _finished_before(self, trial: LedgerTrial) -> LedgerTrial | None:
        """Return a finished trial with the same values and the same budget."""
        epochs = self._epochs(trial.record.bracket_values)
        for other in self._ledger.trials:
            is_same = other.record.values == trial.record.values
            if other.record.status == "finished" and is_same and self._epochs(other.record.bracket_values) == epochs:
                return other
        return None

    def _attempt(self, key: str) -> None:
        opened = self._running[key]
        if opened.trial.num_starts >= MAX_STARTS:
            self._end(opened.trial, "failed", None, f"started {MAX_STARTS} times without finishing an epoch")
            return
        opened.trial = self._ledger.count_start(opened.trial)
        parent = opened.trial.record.bracket_values.get("tuner/trial_id")
        if parent is not None:
            parent_run_id = self._ledger.trials[int(parent)].run_id
            disk.inherit_checkpoint(self._ledger.parent.store.work_folder / parent_run_id, opened.run.folder)
        self._work.begin(opened.run, opened.assignment)
        self._observer.trial_started(opened.trial, opened.assignment.epochs)
        self._engine.start(opened.assignment, opened.run.folder)

    def _handle(self, event: Event) -> None:
        opened = self._running[event.key]
        match event.kind:
            case "step":
                self._observer.trial_progressed(opened.trial, event)
            case "epoch":
                assert event.record is not None
                opened.run.log_metrics(event.record.metrics, event.record.epoch, event.record.ended_at_ms)
                opened.trial = self._ledger.count_epoch(opened.trial, event.record.epoch)
                self._observer.trial_progressed(opened.trial, event)
            case "done":
                self._finish(opened)
            case "failed":
                self._end(opened.trial, "failed", None, event.reason)
            case "died":
                opened.trial = self._ledger.count_death(opened.trial, event.reason)
                if opened.trial.num_deaths >= MAX_DEATHS:
                    reason = f"{MAX_DEATHS} deaths without a newly finished epoch: {event.reason}"
                    self._end(opened.trial, "failed", None, reason)
                else:
                    self._observer.died(opened.trial, event.reason)
                    self._attempt(event.key)

    def _finish(self, opened: _Open) -> None:
        trial, run = opened.trial, opened.run
        outcome = read_outcome(run.folder)
        if outcome is None:
            raise TrackingError(f"{run.folder}: the worker reported success but left no result")
        score = self._score(outcome)
        if score is None or not math.isfinite(score):
            # An infinite value comes back from some stores as a finite one: it is not even written.
            self._end(trial, "failed", None, f"{self._template.objective.name} is {score}: no finite score")
            return
        is_kept = self._is_kept(trial, score)
        self._work.finish(run, opened.assignment, outcome, keep_model=is_kept)
        run.log_metrics({"score": score}, outcome.kept_epoch, outcome.ended_at_ms)
        self._end(
            trial,
            "finished",
            score,
            tags={
                "kept_epoch": str(outcome.kept_epoch),
                "epochs_done": str(len(outcome.records)),
                "model": "logged" if is_kept else "none",
            },
        )

    def _score(self, outcome: Outcome) -> float | None:
        name = self._template.objective.name
        return outcome.kept_metrics().get(name, outcome.metrics.get(name))

    def _is_kept(self, trial: LedgerTrial, score: float) -> bool:
        records = [replace(trial.record, score=score), *self._ledger.records]
        kept = disk.kept_models(records, self._template.objective.direction, self._keep_models)
        return trial.record.sequence in kept

    def _end(
        self,
        trial: LedgerTrial,
        status: Literal["finished", "failed"],
        score: float | None,
        reason: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._conclude(self._ledger.end(trial, status, score, reason, tags))

    def _conclude(self, ended: LedgerTrial) -> None:
        opened = self._running.pop(_key(ended), None)
        if opened is not None:
            opened.run.lock.release()
        self._clean_up()
        self._observer.trial_ended(ended)

    def _clean_up(self) -> None:
        disk.remove_work_folders(self._ledger.parent.store, self._ledger.trials, self._template)
        disk.remove_models(self._ledger, self._template.objective.direction, self._keep_models)


def _key(trial: LedgerTrial) -> str:
    return f"trial-{trial.record.sequence}"
