"""Hyperparameter search for any training: KerasTuner's oracles suggest trials, MLflow stores them.

`Search` reads one; `fakeface_lab.Tuner` runs one on any Keras model.
"""

from fakeface_lab.search.search import Search

__all__ = ["Search"]
