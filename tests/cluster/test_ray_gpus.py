"""Trials on a node that says it has two GPUs, which need not exist: Ray tells each trial which one it may use."""

from pathlib import Path

import pytest

from tests.cluster.ray_nodes import ray_nodes
from tests.cluster.test_ray_programs import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = """
import os, sys, time
import keras
import numpy as np
from fakeface_lab import keras_tuner

class Seeing(keras_tuner.HyperModel):
    def build(self, hp):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(hp.Int("units", 1, 90))])
        model.compile("sgd", "mse")
        return model

    def fit(self, hp, model, *args, **kwargs):
        began = time.time()
        time.sleep(1)
        history = model.fit(*args, **kwargs)
        print("saw", os.environ["CUDA_VISIBLE_DEVICES"] or "none", began, time.time(), os.getpid())
        return history

share = float(sys.argv[1]) if sys.argv[1] != "default" else None
tuner = keras_tuner.RandomSearch(Seeing(), "loss", max_trials=8, seed=1, engine="ray", workers=4, threads=1,
                                 gpus_per_trial=share, project_name="gpus")
tuner.search(np.zeros((8, 2)), np.zeros((8, 1)), epochs=1)
"""


@pytest.mark.parametrize(("share", "most_at_once"), [("default", 1), ("0.5", 2), ("0", 4)])
def test_trials_have_a_gpu_each_or_share_one(share: str, most_at_once: int, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "nodes").mkdir()
    with ray_nodes(tmp_path / "nodes", 1, head_cpus=4, num_gpus=2) as nodes:
        variables = {name: value for name, value in nodes.environment.items() if name.startswith("RAY_")}
        printed = run(tmp_path, "script.py", share, **variables, RAY_ADDRESS=nodes.address)
    lines = [line.partition("saw ")[2].split() for line in printed.splitlines() if "saw " in line]
    assert len(lines) == 8, printed
    trainings = [(gpu, float(began), float(ended)) for gpu, began, ended, _ in lines]
    assert {gpu for gpu, _, _ in trainings} == ({"none"} if share == "0" else {"0", "1"})
    # TensorFlow keeps the GPU that a process has begun with.
    assert len({(gpu, process) for gpu, *_, process in lines}) == len({process for *_, process in lines})
    for gpu, began, _ in trainings:
        at_once = [other for other, start, end in trainings if other == gpu and start <= began < end]
        assert len(at_once) <= most_at_once
