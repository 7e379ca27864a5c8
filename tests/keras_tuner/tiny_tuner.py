"""Tuners of a tiny model for short searches in this process, and what MLflow says of them."""

from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner import oracles
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from fakeface_lab.backend import keras
from fakeface_lab.keras_tuner.tuner import Tuner

RNG = np.random.default_rng(3)
X = RNG.normal(size=(60, 4)).astype(np.float32)
Y = (X[:, :2].sum(axis=1) > 0).astype(np.float32)

# For so little training, tracing a graph would take longer, and so would a step of Adam.
EAGERLY = True

FIT = {"epochs": 2, "batch_size": 32, "validation_split": 0.25, "verbose": 0}


def build(hp: keras_tuner.HyperParameters) -> keras.Model:
    """Two activations, one with its own hyperparameter; the number of layers sets the number of hyperparameters."""
    model = keras.Sequential([keras.Input((4,))])
    for number in range(hp.Choice("layers", [1, 2])):
        model.add(keras.layers.Dense(hp.Choice(f"units_{number}", [2, 4])))
        if hp.Choice("activation", ["relu", "leaky"]) == "leaky":
            with hp.conditional_scope("activation", ["leaky"]):
                model.add(keras.layers.LeakyReLU(hp.Choice("slope", [0.1, 0.3])))
        else:
            model.add(keras.layers.ReLU())
    model.add(keras.layers.Dropout(0.2))
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy"], run_eagerly=EAGERLY)
    return model


def small(hp: keras_tuner.HyperParameters) -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(hp.Choice("units", [2, 4, 13]))])
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy"], run_eagerly=EAGERLY)
    return model


def random_oracle(max_trials: int = 3, objective: Any = "val_loss") -> keras_tuner.Oracle:
    return oracles.RandomSearchOracle(objective, max_trials=max_trials, seed=5)


def inline(build: Any = build, oracle: keras_tuner.Oracle | None = None, **kwargs: Any) -> Tuner:
    return Tuner(oracle or random_oracle(), build, engine="inline", **kwargs)


def runs_of(tuner: Tuner, role: str = "trial") -> list[Run]:
    """The runs of a search in MLflow, the oldest first, read with MLflow's own client."""
    client = MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.role = '{role}'")
    return sorted(found, key=lambda run: int(run.data.tags.get("trial", "0")))


def history(run: Run, key: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
