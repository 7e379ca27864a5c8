"""Experiment tracking and hyperparameter search that can be believed: KerasTuner on MLflow, with an audit of the data.

Importing this package loads no TensorFlow.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
