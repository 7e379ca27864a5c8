"""Trustworthy hyperparameter search: KerasTuner on MLflow, with an audit of the data.

Importing this package does not load TensorFlow; accessing `Tuner` does.
"""

__all__ = ["Tuner", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "Tuner":
        return __import__("fakeface_lab.search.tuner", fromlist=[name]).Tuner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
