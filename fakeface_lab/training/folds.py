"""Cross-validation: the arrays given to `search` are dealt into folds, and each is validated on once."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import BaseCrossValidator, KFold, StratifiedKFold

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.errors import ConfigError
from fakeface_lab.training.fit_arguments import FitArguments

__all__ = ["CrossValidation", "require_foldable", "split_rows", "training_of_fold"]


class CrossValidation(keras_tuner.HyperModel):
    """A hypermodel whose score is the mean over the folds of the arrays given to `search`.

    Each fold is a training of its own, with a run under its trial; validation data are not given to `search`.

    Args:
        hypermodel: a `keras_tuner.HyperModel` or a function `build(hp)`, with Keras's own `fit`.
        folds: their number, or a splitter of scikit-learn's. For a number, the folds are stratified if the targets are
            integer class labels.
        seed: of the shuffle before the rows are dealt.
    """

    def __init__(self, hypermodel: Any, folds: int | BaseCrossValidator = 5, seed: int = 0) -> None:
        super().__init__()
        if isinstance(folds, int) and folds < 2:
            raise ConfigError(f"folds = {folds}: give 2 or more")
        self.hypermodel = hypermodel if isinstance(hypermodel, keras_tuner.HyperModel) else _Build(hypermodel)
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


@dataclass(frozen=True)
class _Build:
    """A build function as a hypermodel, for `CrossValidation`."""

    function: Any

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        return self.function(hp)

    def declare_hyperparameters(self, hp: keras_tuner.HyperParameters) -> None:
        """Declare nothing."""


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
