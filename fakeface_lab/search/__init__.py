"""Hyperparameter search for any Keras model: KerasTuner suggests trials, MLflow stores them.

`Tuner` runs a search, `Search` reads one. Importing this package loads no TensorFlow; accessing these names does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fakeface_lab.search.search import Search
    from fakeface_lab.search.tuner import Tuner

__all__ = ["Search", "Tuner"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{name.lower()}"), name)
