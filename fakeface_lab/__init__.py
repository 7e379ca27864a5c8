"""Trustworthy hyperparameter search: KerasTuner on MLflow, with an audit of the data.

Importing this package does not load TensorFlow; accessing `Tuner` does.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fakeface_lab.search.tuner import Tuner

__all__ = ["Tuner", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "Tuner":
        from fakeface_lab.search.tuner import Tuner

        return Tuner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
