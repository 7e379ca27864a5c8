"""Trustworthy hyperparameter search: KerasTuner on MLflow, with an audit of the data.

Importing this package does not load TensorFlow; accessing `Search` or `Tuner` does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fakeface_lab.keras_tuner import Tuner
    from fakeface_lab.search import Search

__all__ = ["Search", "Tuner", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module({"Search": "fakeface_lab.search", "Tuner": "fakeface_lab.keras_tuner"}[name]), name)
