"""KerasTuner under its own names, with tuners that keep every trial in MLflow and resume after any kill.

    from fakeface_lab import keras_tuner

instead of `import keras_tuner` is the one changed line of a script. docs/keras-tuner.md has the differences.
"""

import sys

from keras_tuner import (
    HyperModel,
    HyperParameters,
    Objective,
    Oracle,
    __version__,
    applications,
    engine,
    errors,
    oracles,
    synchronized,
)

from fakeface_lab.keras_tuner import tuners
from fakeface_lab.keras_tuner.tuners import (
    BayesianOptimization,
    GridSearch,
    Hyperband,
    RandomSearch,
    SklearnTuner,
    Tuner,
)
from fakeface_lab.training.executions import CrossValidation

__all__ = [
    "BayesianOptimization",
    "CrossValidation",
    "GridSearch",
    "HyperModel",
    "HyperParameters",
    "Hyperband",
    "Objective",
    "Oracle",
    "RandomSearch",
    "SklearnTuner",
    "Tuner",
    "__version__",
    "applications",
    "engine",
    "errors",
    "oracles",
    "synchronized",
    "tuners",
]

# So that `from fakeface_lab.keras_tuner.engine.hyperparameters import Choice` works as with KerasTuner.
# The modules are KerasTuner's own objects, so that `isinstance` holds for what either name gives.
for _name, _module in list(sys.modules.items()):
    if _name.startswith("keras_tuner.") and not _name.startswith(("keras_tuner.src", "keras_tuner.tuners")):
        sys.modules[f"{__name__}.{_name.removeprefix('keras_tuner.')}"] = _module
