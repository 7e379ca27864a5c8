"""Trials of a tuner that overrides `run_trial`, or a method that is called during it. They run in this process.

What the user's code reports becomes the trial's metrics: `on_epoch_end(logs)` or `oracle.update_trial` by step, the
values of a returned History by epoch, else the returned numbers. An interrupted trial restarts at its first epoch.
"""

import contextlib
import json
import math
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_tuner.engine import trial as kt_trial
from keras_tuner.src.engine import tuner_utils

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.keras_tuner.hypermodel_work import HypermodelWork
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.training.checkpoint import CHECKPOINT, read_state
from fakeface_lab.training.epochs import EpochJournal, EpochRecord, Listener
from fakeface_lab.training.executions import execution_folders
from fakeface_lab.training.hypermodel import found_in
from fakeface_lab.training.outcome import (
    ARTIFACTS,
    MODEL,
    Outcome,
    mean_metrics,
    peak_rss_bytes,
    read_outcome,
    read_whole_outcome,
    write_outcome,
)

if TYPE_CHECKING:
    from fakeface_lab.keras_tuner.tuner import Tuner

__all__ = ["TRIAL_FILES", "Attempt", "CustomWork", "overrides"]

TRIAL_FILES = "files"  # folder among a run's artifacts with what the user's code has left in `get_trial_dir`

_HOOKS = (
    "on_trial_begin", "on_trial_end", "on_epoch_begin", "on_epoch_end", "on_batch_begin", "on_batch_end",
)  # fmt: skip


def overrides(tuner: type["Tuner"], own: type["Tuner"]) -> bool:
    """Return whether a class overrides `run_trial` or a hook of `own`, this project's class."""
    # KerasTuner's Hyperband only passes the budget on, which the search does by itself.
    known = {own.run_trial, keras_tuner.Hyperband.run_trial}
    return tuner.run_trial not in known or any(getattr(tuner, name) is not getattr(own, name) for name in _HOOKS)


@dataclass
class Attempt:
    """One attempt at a trial, while the user's code runs.

    Attributes:
        trial: what the user's code is given.
        assignment: of the trial.
        folder: of the trial's run.
        listener: follows the training.
        journal: takes the epochs that the user's code reports.
        records: those epochs.
        trained: what `Tuner.run_trial` has trained and recorded, if it was called.
        is_recorded: whether `Tuner.run_trial` was called, whose recorder reports the epochs.
    """

    trial: kt_trial.Trial
    assignment: Assignment
    folder: Path
    listener: Listener
    journal: EpochJournal
    records: list[EpochRecord] = field(default_factory=list)
    trained: Outcome | None = None
    is_recorded: bool = False

    @property
    def files(self) -> Path:
        """The trial's folder for the user's code."""
        folder = self.folder / TRIAL_FILES
        folder.mkdir(exist_ok=True)
        return folder

    def note(self, epoch: int, logs: Mapping[str, Any] | None) -> None:
        """Record an epoch, counted from 0, that the user's code reports."""
        # KerasTuner's callback calls the hook for epochs that the recorder has reported.
        if not self.is_recorded:
            metrics = {name: float(value) for name, value in (logs or {}).items()}
            record = self.journal.as_reported(EpochRecord(epoch + 1, time.time_ns() // 1_000_000, metrics))
            self.records.append(record)
            self.journal.report(record)


@dataclass(frozen=True)
class CustomWork(HypermodelWork):
    """Calls a tuner's own `run_trial`.

    Attributes:
        tuner: whose.
    """

    tuner: "Tuner" = field(kw_only=True)

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        """Run the trial in this process and leave the results in `folder`."""
        # A training loop of the user's own may leave no model.
        finished = read_whole_outcome(folder) if (folder / MODEL).exists() else read_outcome(folder)
        if finished is not None:
            return finished
        tuner = self.tuner
        trial = tuner.begin_trial(assignment)
        _forget_epochs(folder, int(trial.hyperparameters.values.get("tuner/initial_epoch", 0)))
        attempt = Attempt(trial, assignment, folder, listener, EpochJournal(folder, listener))
        began = time.perf_counter()
        with _recording(tuner, attempt):
            tuner.on_trial_begin(trial)
            # As in KerasTuner, the hook after a trial is called for a failed one too, but not after a fatal error.
            try:
                results = tuner.run_trial(trial, *self.fit.args, **self.fit.kwargs)
                outcome = _conclude(tuner.oracle, attempt, results)
                outcome = _with_found(outcome, found_in(self.recipe, trial.hyperparameters))
            except Exception as err:
                _end_failed(tuner, trial, err)
                raise
            tuner.on_trial_end(trial)
        outcome.metrics.setdefault("train_secs", time.perf_counter() - began)
        outcome.metrics.setdefault("peak_rss_bytes", float(peak_rss_bytes()))
        _write_artifacts(folder, trial)
        write_outcome(outcome, folder)
        return outcome

    def finish(self, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool) -> None:
        """Write metrics, artifacts, the user's files and, if one was saved, the model."""
        super().finish(run, assignment, outcome, keep_model=keep_model)
        if (run.folder / TRIAL_FILES).is_dir():
            run.upload(run.folder / TRIAL_FILES, TRIAL_FILES)


def _forget_epochs(folder: Path, initial_epoch: int) -> None:
    """Delete what an earlier attempt has left, except for the checkpoint that a promoted trial inherits."""
    # The user's code may have passed other arguments before the kill, and hooks may have filled its own attributes: no
    # epoch of an earlier attempt can be continued.
    for own in (folder, *execution_folders(folder)):
        state = read_state(own / CHECKPOINT)
        if state is None or len(state["records"]) != initial_epoch:
            (own / CHECKPOINT).unlink(missing_ok=True)
        for name in (TRIAL_FILES, ARTIFACTS):
            shutil.rmtree(own / name, ignore_errors=True)


@contextlib.contextmanager
def _recording(tuner: "Tuner", attempt: Attempt) -> Iterator[None]:
    """Record what the tuner's `on_epoch_end` is told, and keep its oracle from writing files."""
    own = tuner.on_epoch_end

    def on_epoch_end(trial: Any, model: Any, epoch: int, logs: Mapping[str, Any] | None = None) -> Any:
        attempt.note(epoch, logs)
        return own(trial, model, epoch, logs=logs)

    # On the object and not the class: the user's override stays what it is, and KerasTuner's callback finds this one.
    tuner.attempt, tuner.on_epoch_end = attempt, on_epoch_end
    tuner.oracle._save_trial = tuner.oracle.save = lambda *_: None
    try:
        yield
    finally:
        # Uncovers the methods of the classes.
        del tuner.on_epoch_end, tuner.oracle._save_trial, tuner.oracle.save
        tuner.attempt = None


def _conclude(oracle: keras_tuner.Oracle, attempt: Attempt, results: Any) -> Outcome:
    """Return the outcome of what `run_trial` returned, and complete the trial as KerasTuner does.

    Raises:
        FatalTypeError, FatalValueError: KerasTuner's; the results lack the objective.
    """
    objective, trial = oracle.objective, attempt.trial
    if not trial.metrics.exists(objective.name):
        tuner_utils.validate_trial_results(results, objective, "Tuner.run_trial()")
        step = tuner_utils.get_best_step(results, objective)
        returned = tuner_utils.convert_to_metrics_dict(results, objective)
        for name, value in returned.items():
            if not trial.metrics.exists(name):
                trial.metrics.register(name, objective.direction if name == objective.name else None)
            trial.metrics.update(name, float(value), step=step)
    trial.status = kt_trial.TrialStatus.COMPLETED
    trial.score = trial.metrics.get_best_value(objective.name)
    trial.best_step = trial.metrics.get_best_step(objective.name)
    # A run_trial may return another score than that of the training it asked for, such as a sum with a penalty.
    if attempt.trained is not None:
        return replace(attempt.trained, score=float(trial.score))
    records = attempt.records or _epochs_of(results) or _steps_of(trial)
    returned = {name: trial.metrics.get_best_value(name) for name in trial.metrics.metrics}
    measured = {name for record in records for name in record.metrics}
    rest = {name: float(value) for name, value in returned.items() if name not in measured and math.isfinite(value)}
    kept_epoch = min(max(int(trial.best_step) + 1, 1), len(records))
    metrics = {**rest, "num_epochs": float(len(records)), "kept_epoch": float(kept_epoch)}
    return Outcome(records, kept_epoch, metrics, score=float(trial.score))


def _with_found(outcome: Outcome, found: Mapping[str, Any]) -> Outcome:
    """Add what `run_trial` has asked for to what `build` and `fit` have."""
    names = {one["config"]["name"] for one in found["found"]}
    rest = [one for one in outcome.found if one["config"]["name"] not in names]
    values = {**outcome.found_values, **found["found_values"]}
    return replace(outcome, found=[*found["found"], *rest], found_values=values)


def _epochs_of(results: Any) -> list[EpochRecord]:
    """Return the epochs of returned Histories; of several their mean."""
    histories = [one.history for one in _as_list(results) if isinstance(one, keras.callbacks.History)]
    now_ms, records = time.time_ns() // 1_000_000, []
    for epoch in range(max((len(values) for history in histories for values in history.values()), default=0)):
        measured = [
            {name: float(values[epoch]) for name, values in history.items() if len(values) > epoch}
            for history in histories
        ]
        records.append(EpochRecord(epoch + 1, now_ms, mean_metrics(measured)))
    return records


def _steps_of(trial: kt_trial.Trial) -> list[EpochRecord]:
    """Return what the trial has been updated with, by step; the steps are numbered from 1."""
    steps: dict[int, dict[str, float]] = {}
    for name in trial.metrics.metrics:
        for observation in trial.metrics.get_history(name):
            steps.setdefault(observation.step, {})[name] = float(observation.mean())
    now_ms = time.time_ns() // 1_000_000
    return [EpochRecord(number, now_ms, steps[step]) for number, step in enumerate(sorted(steps), start=1)]


def _as_list(results: Any) -> Sequence[Any]:
    return results if isinstance(results, list) else [results]


def _end_failed(tuner: "Tuner", trial: kt_trial.Trial, err: Exception) -> None:
    """Tell the tuner's hook of a failed attempt, as KerasTuner does."""
    if isinstance(err, keras_tuner.errors.FatalError):
        return
    is_failed = isinstance(err, keras_tuner.errors.FailedTrialError)
    trial.status = kt_trial.TrialStatus.FAILED if is_failed else kt_trial.TrialStatus.INVALID
    trial.message = traceback.format_exc()
    tuner.on_trial_end(trial)


def _write_artifacts(folder: Path, trial: kt_trial.Trial) -> None:
    artifacts = folder / ARTIFACTS
    artifacts.mkdir(exist_ok=True)
    values = {name: value for name, value in trial.hyperparameters.values.items() if not name.startswith("tuner/")}
    (artifacts / "hyperparameters.json").write_text(json.dumps(values, indent=2, default=str))
