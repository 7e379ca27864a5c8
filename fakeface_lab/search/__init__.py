"""Hyperparameter search for any training: KerasTuner's oracles suggest trials, MLflow stores them.

`Search` reads one; `fakeface_lab.Tuner` runs one on any Keras model. Importing this package loads no TensorFlow;
accessing `Search` does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fakeface_lab.search.search import Search

__all__ = ["Search"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fakeface_lab.search.search import Search

    return Search
