"""What KerasTuner's `Tuner` takes and `fakeface_lab.Tuner` does not, and what to do instead."""

from collections.abc import Mapping
from typing import Any

from fakeface_lab.backend import keras_tuner
from fakeface_lab.errors import ConfigError

__all__ = ["refuse_arguments"]

_REFUSED = {
    "directory": "trials are kept in the MLflow store; choose it with tracking_uri= or MLFLOW_TRACKING_URI",
    "logger": "KerasTuner ignores it too; every trial is a run in MLflow",
    "tuner_id": "one process drives a search; for several trials at a time give workers=",
    "distribution_strategy": "each worker process takes one GPU; give workers=",
    "executions_per_trial": "hides their spread in a mean; search again with another seed= and project_name=",
}  # fmt: skip


def refuse_arguments(tuner: type[keras_tuner.Tuner], given: Mapping[str, Any]) -> None:
    """Pass where nothing is given that would be ignored.

    Raises:
        ConfigError: names the argument, or the method of a subclass, and what to do instead.
    """
    for name, value in given.items():
        if name not in _REFUSED:
            raise ConfigError(f"{name}: unknown argument; see help(fakeface_lab.Tuner)")
        if value is not None and not (name == "executions_per_trial" and value == 1):
            raise ConfigError(f"{name}: not taken; {_REFUSED[name]}")
    if tuner.run_trial is not keras_tuner.Tuner.run_trial:
        raise ConfigError(f"{tuner.__name__}.run_trial: is not called; override HyperModel.fit instead")
