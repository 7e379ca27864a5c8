"""Scripts with KerasTuner's tuners, killed at random moments: what is in the store equals an undisturbed search."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

import fakeface_lab

ROOT = Path(fakeface_lab.__file__).parents[1]
NUM_KILLS = 5

DATA = """
import numpy as np
import keras
from fakeface_lab import keras_tuner

x = np.random.default_rng(3).normal(size=(1200, 4)).astype("float32")
y = (x[:, :2].sum(axis=1) > 0).astype("float32")

def build(hp):
    units = hp.Choice("units", [4, 8, 16])
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, "relu"), keras.layers.Dropout(0.2)])
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    model.compile(keras.optimizers.Adam(hp.Float("rate", 1e-4, 1e-2)), "binary_crossentropy", metrics=["accuracy"])
    return model
"""

SCRIPTS = {
    "executions and callbacks": DATA
    + """
callbacks = [
    # The loss falls, so that the first epoch is the best one.
    keras.callbacks.EarlyStopping("loss", mode="max", patience=5, restore_best_weights=True),
    keras.callbacks.ReduceLROnPlateau("loss", mode="max", factor=0.5, patience=1),
]
tuner = keras_tuner.RandomSearch(
    build, "val_accuracy", max_trials=3, executions_per_trial=2, seed=4, directory="searches", project_name="killed",
    threads=1,
)
tuner.search(x, y, epochs=9, batch_size=16, validation_split=0.2, callbacks=callbacks)
""",
    "own run_trial": DATA
    + """
class Loop(keras_tuner.BayesianOptimization):
    def run_trial(self, trial, x, y):
        keras.utils.set_random_seed(7)
        model = build(trial.hyperparameters)
        for epoch in range(6):
            loss, _ = [model.train_on_batch(x[n : n + 16], y[n : n + 16]) for n in range(0, len(x), 16)][-1]
            model.reset_metrics()
            self.on_epoch_end(trial, model, epoch, logs={"loss": float(loss)})
        self.save_model(trial.trial_id, model)
        return {"loss": float(loss)}

tuner = Loop(
    objective=keras_tuner.Objective("loss", "min"), max_trials=4, num_initial_points=2, seed=4, project_name="killed",
)
tuner.search(x, y)
""",
}


def start(folder: Path, script: str) -> "subprocess.Popen[str]":
    path = folder / "script.py"
    path.write_text(script)
    # As in the tests: with one thread the sums of a Gaussian process come in one order.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(path)], cwd=folder, env=environment, text=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def runs(folder: Path) -> tuple[MlflowClient, list[Run]]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client, list(client.search_runs(experiments, max_results=1000))


def recorded(folder: Path) -> dict[str, Any]:
    """Everything of each run by its name that two equal searches have in common."""
    client, found = runs(folder)
    names = [run.info.run_name for run in found]
    assert len(names) == len(set(names)), "nothing twice"
    return {
        run.info.run_name: {
            "status": run.info.status,
            "params": run.data.params,
            "values": run.data.tags.get("values"),
            "curves": {
                name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
                if not name.endswith(("_secs", "_bytes"))
            },
            "artifacts": sorted(artifact.path for artifact in client.list_artifacts(run.info.run_id)),
            "num_models": 0 if run.outputs is None else len(run.outputs.model_outputs),
        }
        for run in found
    }


@pytest.mark.timeout(1200)
@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_killed_at_random_moments_a_script_ends_the_same(name: str, new_project: Callable[[str], Path]) -> None:
    folders = {kind: new_project(kind) for kind in ("whole", "killed")}
    began = time.monotonic()
    process = start(folders["whole"], SCRIPTS[name])
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    life_secs = time.monotonic() - began
    moments, num_killed = random.Random(f"{name} 1"), 0
    while True:
        process = start(folders["killed"], SCRIPTS[name])
        try:
            # Not while the libraries load, where there is nothing to lose.
            _, errors = process.communicate(
                timeout=moments.uniform(0.4, 1.0) * life_secs if num_killed < NUM_KILLS else None
            )
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            num_killed += 1
            continue
        assert process.returncode == 0, errors[-2000:]
        break
    assert num_killed >= 2
    assert recorded(folders["killed"]) == recorded(folders["whole"])
