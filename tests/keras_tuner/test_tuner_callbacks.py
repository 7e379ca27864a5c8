"""`Tuner.search` with callbacks: a killed search goes on with their state, and what cannot be copied is refused."""

import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

import fakeface_lab
from fakeface_lab.backend import keras
from fakeface_lab.keras_tuner.tuner import Tuner
from tests.keras_tuner.conftest import RunsOf
from tests.training.callback_files import event_points, file_contents

ROOT = Path(fakeface_lab.__file__).parents[1]

SCRIPT = """
import keras
import keras_tuner
import numpy as np
import fakeface_lab

def build(hp):
    units = hp.Choice("units", [4, 8])
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dropout(0.2)])
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    model.compile(keras.optimizers.Adam(0.001), "binary_crossentropy", metrics=["accuracy"])
    return model

x = np.random.default_rng(3).normal(size=(3000, 4))
y = (x[:, :2].sum(axis=1) > 0).astype("float32")
callbacks = [
    # The loss falls, so that the first epoch is the best one.
    keras.callbacks.EarlyStopping("loss", mode="max", patience=7, restore_best_weights=True),
    keras.callbacks.ReduceLROnPlateau("loss", mode="max", factor=0.5, patience=2, cooldown=1),
    keras.callbacks.ModelCheckpoint("written/best.keras", "loss", mode="max", save_best_only=True),
    keras.callbacks.CSVLogger("written/log.csv"),
    keras.callbacks.TensorBoard("written/logs", update_freq=50),
]
tuner = fakeface_lab.Tuner(keras_tuner.oracles.GridSearchOracle("val_loss"), build, threads=1, engine="local")
tuner.search(x, y, epochs=11, batch_size=8, validation_split=0.2, callbacks=callbacks)
"""


def start(folder: Path) -> "subprocess.Popen[str]":
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(script)], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def curves(folder: Path, *names: str) -> list[dict[str, list[tuple[int, float]]]]:
    """The points of each trial by metric, apart from times."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.role = 'trial'")
    return [
        {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in names
        }
        for run in sorted(runs, key=lambda run: int(run.data.tags["trial"]))
    ]


def num_epochs(folder: Path) -> list[int]:
    return [len(trial["loss"]) for trial in curves(folder, "loss")]


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_killed_search_with_callbacks_equals_an_undisturbed_one(new_project: Callable[[str], Path]) -> None:
    cut, whole = new_project("cut"), new_project("whole")
    driver = start(cut)
    while sum(num_epochs(cut)) < 3 and driver.poll() is None:
        time.sleep(0.1)
    assert driver.poll() is None, driver.communicate()[1][-2000:]
    driver.kill()
    driver.communicate()
    (path,) = (cut / "mlruns" / ".work").rglob("epoch.ckpt")
    with zipfile.ZipFile(path) as archive:
        state = json.loads(archive.read("state.json"))
    assert 3 <= len(state["records"]) < 8, "killed in the middle of a trial"
    assert state["callbacks"][0]["values"]["wait"] == len(state["records"]) - 1
    drivers = [start(cut), start(whole)]
    for process in drivers:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-2000:]
    assert num_epochs(cut) == [8, 8]
    names = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "score", "kept_epoch")
    assert curves(cut, *names) == curves(whole, *names)
    rates = [value for _, value in curves(cut, "learning_rate")[0]["learning_rate"]]
    assert rates == pytest.approx([0.001 * 0.5**cuts for cuts in (0, 0, 1, 1, 2, 2, 3, 3)], rel=1e-6)
    assert file_contents(cut / "written") == file_contents(whole / "written")
    files = {f"{trial}/execution0/{name}" for trial in ("0000", "0001") for name in ("best.keras", "log.csv")}
    assert set(file_contents(cut / "written")) == files
    assert event_points(cut / "written") == event_points(whole / "written")
    assert event_points(cut / "written")


class Locked(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_a_callback_that_cannot_be_copied_is_refused(project: Path, runs_of: RunsOf) -> None:
    given: dict[str, Any] = {"callbacks": [keras.callbacks.EarlyStopping(), Locked()]}
    tuner = Tuner(keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials=1), lambda hp: None)
    with pytest.raises(
        keras_tuner.errors.FatalValueError,
        match=r"callback Locked: copy\.deepcopy fails \(cannot pickle '_thread\.lock' object\), but callbacks are "
        r"copied for each trial; create what cannot be copied, such as an open file or a lock, in on_train_begin",
    ) as err:
        tuner.search(np.zeros((4, 2)), np.zeros(4), **given)
    assert "\n" not in str(err.value)
    assert runs_of("search") == []
