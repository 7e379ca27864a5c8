"""Several trainings of one configuration, whose mean is the trial's result: with other seeds, or on other folds.

For cross-validation the arrays given to `search` are dealt into folds, and each is validated on once.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from keras_tuner.src.engine.hypermodel import get_hypermodel
from sklearn.model_selection import BaseCrossValidator, KFold, StratifiedKFold

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.errors import ConfigError
from fakeface_lab.training.epochs import EpochRecord, Listener
from fakeface_lab.training.fit_arguments import FitArguments, has_own_fit
from fakeface_lab.training.objective import SPREAD, Objective, best_first
from fakeface_lab.training.outcome import Outcome, mean_metrics, write_outcome

__all__ = [
    "CrossValidation",
    "best_execution",
    "execution_folder",
    "execution_folders",
    "require_foldable",
    "split_rows",
    "train_trial",
    "training_of_fold",
]

Train = Callable[[int, Path, Listener], Outcome]


def execution_folder(folder: Path, number: int) -> Path:
    """Return the folder of one execution within that of its trial."""
    return folder / f"execution-{number}"


def execution_folders(folder: Path) -> list[Path]:
    """Return the existing folders of executions within that of their trial."""
    return sorted(folder.glob("execution-*"))


def train_trial(train: Train, num_executions: int, objective: Objective, folder: Path, listener: Listener) -> Outcome:
    """Train the only execution of a trial; or each that is not finished yet, in its own folder, and write their mean.

    Args:
        train: trains the execution with this number, or resumes it; returns its outcome at once if it is finished.
        num_executions: how many.
        objective: whose spread is measured.
        folder: of the trial.
        listener: is told each epoch with the number of its execution.
    """
    if num_executions == 1:
        return train(0, folder, listener)
    outcomes: list[Outcome] = []
    for number in range(num_executions):
        # A folder each, with the checkpoints and the outcome of a training that stands alone: resuming needs no more.
        own = execution_folder(folder, number)
        own.mkdir(exist_ok=True)
        if outcomes:
            keras.backend.clear_session()  # frees the memory of the training before
        outcomes.append(train(number, own, _ExecutionListener(listener, number)))
    outcome = _mean_outcome(outcomes, objective)
    write_outcome(outcome, folder)
    return outcome


def best_execution(outcome: Outcome, objective: Objective) -> int:
    """Return the number of the execution with the best score; of equal ones the first."""
    scores = {number: _score(execution, objective) for number, execution in enumerate(outcome.executions)}
    return best_first(scores, objective.direction)[0]


def _mean_outcome(outcomes: Sequence[Outcome], objective: Objective) -> Outcome:
    """Return the mean curve, over the executions that reached an epoch, and the mean of what they measured at the end.

    As in KerasTuner, the kept epoch is the whole part of the mean of theirs, and a hyperparameter that several have
    found has the value of the first.
    """
    longest = max((outcome.records for outcome in outcomes), key=len)
    records = []
    # Early stopping may end executions at different epochs: a later point is the mean of those that got there.
    for index, last in enumerate(longest):
        reached = [outcome.records[index] for outcome in outcomes if len(outcome.records) > index]
        records.append(EpochRecord(last.epoch, last.ended_at_ms, mean_metrics([record.metrics for record in reached])))
    scores = [_score(outcome, objective) for outcome in outcomes]
    metrics = mean_metrics([outcome.metrics for outcome in outcomes])
    kept_epoch = int(statistics.mean(outcome.kept_epoch for outcome in outcomes))
    metrics |= {SPREAD: statistics.stdev(scores), "kept_epoch": float(kept_epoch)}
    # Not their mean: it is what the trial has cost.
    metrics["train_secs"] = sum(outcome.metrics["train_secs"] for outcome in outcomes)
    found = {json.dumps(new): new for outcome in outcomes for new in outcome.found}
    found_values = {name: value for outcome in reversed(outcomes) for name, value in outcome.found_values.items()}
    return Outcome(
        records, kept_epoch, metrics, executions=tuple(outcomes), found=[*found.values()], found_values=found_values
    )


def _score(outcome: Outcome, objective: Objective) -> float:
    return outcome.kept_metrics().get(objective.name, outcome.metrics.get(objective.name, float("nan")))


@dataclass(frozen=True)
class _ExecutionListener:
    """Adds the number of the execution to what is reported."""

    listener: Listener
    number: int

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        self.listener.step_ended(epoch, step, num_steps)

    def epoch_ended(self, record: EpochRecord) -> None:
        self.listener.epoch_ended(replace(record, execution=self.number))


class CrossValidation(keras_tuner.HyperModel):
    """A hypermodel whose score is the mean over the folds of the arrays given to `search`.

    Each fold is a training of its own, with a run under its trial; validation data are not given to `search`.

    Args:
        hypermodel: a `keras_tuner.HyperModel` or a function `build(hp)`, with Keras's own `fit`.
        folds: their number, or a splitter of scikit-learn's. For a number, the folds are stratified if the targets are
            integer class labels.
        seed: of the shuffle before the rows are dealt.

    Raises:
        ConfigError: there are fewer than 2 folds, or the hypermodel has a `fit` of its own, which would not be called.
    """

    def __init__(self, hypermodel: Any, folds: int | BaseCrossValidator = 5, seed: int = 0) -> None:
        super().__init__()
        if isinstance(folds, int) and folds < 2:
            raise ConfigError(f"folds = {folds}: give 2 or more")
        self.hypermodel = get_hypermodel(hypermodel)
        if has_own_fit(self.hypermodel):
            raise ConfigError(
                f"CrossValidation: {type(hypermodel).__name__}.fit would not be called; each fold is trained by "
                f"Keras's own fit, so give a hypermodel that only builds"
            )
        self.folds, self.seed = folds, seed

    @property
    def num_folds(self) -> int:
        """Number of folds."""
        return self.folds if isinstance(self.folds, int) else int(self.folds.get_n_splits())

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Build the model."""
        return self.hypermodel.build(hp)

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        """Declare the hyperparameters that the wrapped hypermodel declares."""
        self.hypermodel.declare_hyperparameters(hp)


Rows = npt.NDArray[np.int64]


def split_rows(folds: int | BaseCrossValidator, seed: int, features: Any, labels: Any) -> list[tuple[Rows, Rows]]:
    """Return the rows to train on and to validate on, int64, for each fold.

    Raises:
        ConfigError: the rows cannot be dealt into so many folds.
    """
    flat = None if labels is None else np.asarray(labels)
    if isinstance(folds, int):
        kind = StratifiedKFold if flat is not None and _can_be_stratified(flat, folds) else KFold
        folds = kind(folds, shuffle=True, random_state=seed)
    try:
        return [(train, test) for train, test in folds.split(features, flat)]
    except ValueError as err:
        raise ConfigError(f"folds: {err}") from err


def _can_be_stratified(labels: npt.NDArray[Any], num_folds: int) -> bool:
    if labels.ndim != 1 or labels.dtype.kind not in "biu":
        return False
    return bool(np.unique(labels, return_counts=True)[1].min() >= num_folds)


def training_of_fold(fit: FitArguments, hypermodel: CrossValidation, number: int) -> FitArguments:
    """Return the arguments of the training that validates on a fold."""
    assert fit.train is not None
    # Row numbers stand for the inputs, which may be several arrays: a splitter looks at their number and at the labels.
    rows = np.arange(len(keras.tree.flatten(fit.train[0])[0]))
    labels = fit.train[1] if len(fit.train) > 1 and isinstance(fit.train[1], np.ndarray) else None
    train, test = split_rows(hypermodel.folds, hypermodel.seed, rows, labels)[number]
    held_out = keras.tree.map_structure(lambda array: array[test], fit.train)
    return replace(
        fit,
        train=keras.tree.map_structure(lambda array: array[train], fit.train),
        kwargs={**fit.kwargs, "validation_data": held_out},
    )


def require_foldable(fit: FitArguments) -> None:
    """Raise ConfigError if the arguments of `search` cannot be dealt into folds."""
    if fit.train is None:
        raise ConfigError("CrossValidation: give search() arrays, whose rows can be dealt into folds")
    if fit.kwargs.get("validation_data") is not None:
        raise ConfigError("CrossValidation: validates on its folds; leave validation_data and validation_split out")
