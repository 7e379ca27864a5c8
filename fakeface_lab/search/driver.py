"""The loop of a search: ask what to try next, have it trained, write down what came of it.

It keeps nothing in memory that the ledger does not hold, apart from what is running right now: killed at any point
and started again, it goes on where it was.
"""

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from keras_tuner import oracles as kt_oracles

from fakeface_lab.backend import keras_tuner
from fakeface_lab.errors import AllTrialsFailedError, TrackingError
from fakeface_lab.results import Outcome, read_outcome
from fakeface_lab.search.engines import Engine, Event
from fakeface_lab.search.ledger import Ledger, LedgerTrial
from fakeface_lab.search.suggestion import Exhausted, Suggestion, Wait, suggest
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
        hours: over all restarts; None for no limit.
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
    ) -> None:
        self._ledger, self._template, self._work, self._limits = ledger, template, work, limits
        self._seed, self._observer = seed, observer
        self._running: dict[str, tuple[LedgerTrial, Assignment, TrackedRun]] = {}
        self._engine = make_engine(self._handle)
        self._clock = _Clock(ledger)

    def run(self) -> None:
        """Run all trials.

        Raises:
            AllTrialsFailedError: no trial has a score.
            TrackingError: the store stayed away too long; start again later.
        """
        try:
            while self._fill() or self._running:
                self._engine.wait(_POLL_SECS)
                self._clock.save()
        finally:
            self._engine.stop()
            for _, _, run in self._running.values():
                run.lock.release()
            self._clock.save(now=True)
        finished = [trial for trial in self._ledger.trials if trial.record.status == "finished"]
        if not finished and self._ledger.trials:
            reasons = "; ".join(sorted({trial.run.data.tags.get("status_reason", "") for trial in self._ledger.trials}))
            raise AllTrialsFailedError(
                f"search {self._ledger.parent.name!r}: all {len(self._ledger.trials)} trials failed ({reasons}); "
                f"nothing was registered"
            )

    def _fill(self) -> bool:
        """Start what can be started; return whether there may be more to start later."""
        while self._engine.num_free():
            if self._limits.hours is not None and self._clock.used_secs() > 3600 * self._limits.hours:
                return False
            trial = self._next()
            if trial is None:
                return False
            if trial.record.status == "running":
                self._start(trial)
        return True

    def _next(self) -> LedgerTrial | None:
        """Return a trial to start (or one just recorded as failed or repeated); None if there is none now."""
        for trial in self._ledger.trials:
            if trial.record.status == "running" and _key(trial) not in self._running:
                return trial
        match suggest(self._template, self._ledger.records):
            case Suggestion() as suggestion:
                return self._create(suggestion)
            case Wait() | Exhausted():
                return None

    def _create(self, suggestion: Suggestion) -> LedgerTrial:
        sequence = len(self._ledger.trials)
        epochs = self._epochs(suggestion.bracket_values)
        assignment = Assignment(f"trial-{sequence}", suggestion.values, epochs, self._seed)
        name = f"t{sequence:03d} {self._work.label(assignment)}"
        trial = self._ledger.create(suggestion, name, {"seed": str(self._seed), "epochs_planned": str(epochs)})
        if suggestion.failed_parent is not None:
            reason = f"its parent, trial {suggestion.failed_parent}, failed"
            return self._end(trial, "failed", None, reason)
        return trial

    def _epochs(self, bracket_values: object) -> int:
        if isinstance(bracket_values, dict) and "tuner/epochs" in bracket_values:
            return int(bracket_values["tuner/epochs"])
        return self._limits.epochs

    def _start(self, trial: LedgerTrial) -> None:
        if trial.num_starts >= MAX_STARTS:
            self._end(trial, "failed", None, f"started {MAX_STARTS} times without finishing an epoch")
            return
        epochs = self._epochs(dict(trial.record.bracket_values))
        assignment = Assignment(_key(trial), trial.record.values, epochs, self._seed)
        run = TrackedRun.reopen(self._ledger.parent.store, self._ledger.parent.writer, trial.run)
        trial = self._ledger.count_start(trial)
        if trial.num_starts == 1 and trial.epochs_done == 0:
            self._inherit(trial, run.folder)
        self._work.begin(run, assignment)
        self._running[_key(trial)] = (trial, assignment, run)
        self._observer.trial_started(trial, epochs)
        self._engine.start(assignment, run.folder)

    def _inherit(self, trial: LedgerTrial, folder: Path) -> None:
        """Let a promoted trial go on from its parent's checkpoint.

        Without one (another machine, a cleaned disk) it starts at its first epoch and arrives at the same result.
        """
        parent = trial.record.bracket_values.get("tuner/trial_id")
        if parent is None or (folder / "epoch.ckpt").exists():
            return
        run_id = self._ledger.trials[int(parent)].run_id
        source = self._ledger.parent.store.work_folder / run_id
        partial = folder.with_suffix(".partial")
        if (source / "epoch.ckpt").exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            for path in [*source.glob("kept-*.weights"), source / "epoch.ckpt"]:
                shutil.copy2(path, partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)

    def _handle(self, event: Event) -> None:
        trial, assignment, run = self._running[event.key]
        match event.kind:
            case "step":
                self._observer.trial_progressed(trial, event)
            case "epoch":
                assert event.record is not None
                run.log_metrics(event.record.metrics, event.record.epoch, event.record.ended_at_ms)
                trial = self._ledger.count_epoch(trial, event.record.epoch)
                self._running[event.key] = (trial, assignment, run)
                self._observer.trial_progressed(trial, event)
            case "done":
                self._finish(trial, assignment, run)
            case "failed":
                self._release(event.key)
                self._end(trial, "failed", None, event.reason)
            case "died":
                self._release(event.key)
                trial = self._ledger.count_death(trial, event.reason)
                if trial.num_deaths >= MAX_DEATHS:
                    self._end(trial, "failed", None, f"{MAX_DEATHS} deaths without a finished epoch: {event.reason}")
                else:
                    self._observer.died(trial, event.reason)

    def _finish(self, trial: LedgerTrial, assignment: Assignment, run: TrackedRun) -> None:
        outcome = read_outcome(run.folder)
        if outcome is None:
            raise TrackingError(f"{run.folder}: the worker reported success but left no result")
        score = self._score(outcome)
        self._work.finish(run, assignment, outcome, keep_model=True)
        self._release(_key(trial))
        if score is None or not math.isfinite(score):
            self._end(trial, "failed", None, f"{self._template.objective.name} is {score}: no finite score")
        else:
            run.log_metrics({"score": score}, outcome.kept_epoch, outcome.ended_at_ms)
            self._end(trial, "finished", score, kept_epoch=outcome.kept_epoch)

    def _score(self, outcome: Outcome) -> float | None:
        name = self._template.objective.name
        return outcome.kept_metrics().get(name, outcome.metrics.get(name))

    def _end(
        self,
        trial: LedgerTrial,
        status: Literal["finished", "failed"],
        score: float | None,
        reason: str = "",
        kept_epoch: int = 0,
    ) -> LedgerTrial:
        ended = self._ledger.end(trial, status, score, reason, {"kept_epoch": str(kept_epoch)})
        self._clean_up(ended)
        self._observer.trial_ended(ended)
        return ended

    def _release(self, key: str) -> None:
        _, _, run = self._running.pop(key)
        run.lock.release()

    def _clean_up(self, ended: LedgerTrial) -> None:
        """Delete local files that nothing needs any more; Hyperband may still promote a finished trial."""
        hyperband = isinstance(self._template, kt_oracles.HyperbandOracle)
        store = self._ledger.parent.store
        keep = hyperband and ended.record.status == "finished"
        folder = store.work_folder / ended.run_id
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)


class _Clock:
    """Counts the time of a search over all its restarts, in a tag of the parent run."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._before = float(ledger.parent.run.data.tags.get("used_secs", "0"))
        self._started = self._saved = time.monotonic()

    def used_secs(self) -> float:
        return self._before + time.monotonic() - self._started

    def save(self, now: bool = False) -> None:
        """Write the tag, at most twice a minute."""
        if now or time.monotonic() - self._saved > 30:
            self._saved = time.monotonic()
            parent = self._ledger.parent
            text = f"{self.used_secs():.1f}"
            parent.writer.submit(lambda: parent.store.client.set_tag(parent.run_id, "used_secs", text))


def _key(trial: LedgerTrial) -> str:
    return f"trial-{trial.record.sequence}"
