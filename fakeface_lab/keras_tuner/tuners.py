"""KerasTuner's tuners, with `fakeface_lab.Tuner` below them; `**kwargs` are its arguments."""

import keras_tuner

from fakeface_lab.search.sklearn_tuner import SklearnTuner
from fakeface_lab.search.tuner import Tuner

__all__ = ["BayesianOptimization", "GridSearch", "Hyperband", "RandomSearch", "SklearnTuner", "Tuner"]


class RandomSearch(keras_tuner.RandomSearch, Tuner):
    """Random search."""


class GridSearch(keras_tuner.GridSearch, Tuner):
    """Grid search: all combinations."""


class BayesianOptimization(keras_tuner.BayesianOptimization, Tuner):
    """Bayesian optimization with a Gaussian process."""


class Hyperband(keras_tuner.Hyperband, Tuner):
    """Hyperband; a promoted trial resumes with the weights and the optimizer of its parent."""
