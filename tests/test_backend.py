import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# TensorFlow with one card, as its own code sees it, that refuses to be set up once TensorFlow is at work.
FAKE_CARD = """
import tensorflow as tf
from tensorflow.python.eager import context
card = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
listed = tf.config.list_physical_devices
tf.config.list_physical_devices = lambda kind=None: [card] if kind == "GPU" else listed(kind)
grown = []
def set_memory_growth(device, enable):
    if context.context()._context_handle is not None:
        raise RuntimeError("Physical devices cannot be modified after being initialized")
    grown.append((device.name, enable))
tf.config.experimental.set_memory_growth = set_memory_growth
hidden = []
def set_visible_devices(devices, kind=None):
    hidden.append((devices, kind, context.context()._context_handle is None))
tf.config.set_visible_devices = set_visible_devices
"""

SCRIPT = """
import keras, keras_tuner, numpy as np, fakeface_lab

def build(hp):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(hp.Choice("units", [1, 2]))])
    model.compile("adam", "mse", run_eagerly=True)
    return model

oracle = keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials=1)
"""


def run(program: str, folder: Path) -> None:
    command = [sys.executable, "-c", FAKE_CARD + SCRIPT + textwrap.dedent(program)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("done\n"), done.stderr[-3000:]


@pytest.mark.slow
def test_a_card_is_shared_before_the_first_model_is_built(tmp_path: Path) -> None:
    run(
        """
        tuner = fakeface_lab.Tuner(oracle, build, project_name="card", engine="inline")
        assert grown == [("/physical_device:GPU:0", True)], grown
        x = np.zeros((8, 2), "float32")
        tuner.search(x, x[:, :1], epochs=1, validation_split=0.5, verbose=0)
        assert len(tuner.oracle.trials) == 1
        assert hidden == []
        print("done")
        """,
        tmp_path,
    )


@pytest.mark.slow
def test_a_driver_of_workers_takes_no_card(tmp_path: Path) -> None:
    run(
        """
        fakeface_lab.Tuner(oracle, build, project_name="card", engine="local")
        assert hidden == [([], "GPU", True)], hidden  # before TensorFlow was at work
        assert context.context()._context_handle is not None  # a model has been built
        print("done")
        """,
        tmp_path,
    )
