"""What users run, on a Ray cluster of this machine alone: a script with a module beside it, and `tune`."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from fakeface_lab.errors import ConfigError
from fakeface_lab.keras_tuner.tuner import Tuner
from fakeface_lab.tune import main
from tests.cluster.machines import can_make_machines, machines
from tests.cluster.ray_nodes import ray_nodes
from tests.keras_tuner.tiny_tuner import random_oracle, small

MODELS = """
import keras

def build(hp):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(hp.Int("units", 2, 40), "relu"),
                              keras.layers.Dropout(0.2), keras.layers.Dense(1, "sigmoid")])
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model
"""

SCRIPT = """
import json, sys
import numpy as np
from fakeface_lab import keras_tuner
from my_models import build

rng = np.random.default_rng(0)
x = rng.normal(size=(400, 4)).astype("float32")
y = (x.sum(axis=1) > 0).astype("float32")
engine, num_trials = sys.argv[1], int(sys.argv[2])
tuner = keras_tuner.RandomSearch(build, "val_accuracy", max_trials=num_trials, seed=1, project_name=engine,
                                 engine=engine, workers=2, threads=1)
tuner.search(x, y, epochs=2, validation_split=0.25, verbose=0)
model = tuner.get_best_models()[0]
loss, accuracy = model.evaluate(x[300:], y[300:], verbose=0)
print(json.dumps({"scores": {trial.trial_id: trial.score for trial in tuner.oracle.trials.values()},
                  "accuracy": accuracy, "best": max(trial.score for trial in tuner.oracle.trials.values())}))
"""


def run(folder: Path, *words: str, prefix: Sequence[str] = (), **variables: str) -> str:
    """Run Python in a folder and return what it prints; no store or cluster is set but by the variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment |= variables
    done = subprocess.run(
        [*prefix, sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def searched(
    folder: Path, engine: str, num_trials: int, prefix: Sequence[str] = (), **variables: str
) -> dict[str, Any]:
    """Run the script with an engine and return what it has found."""
    folder.mkdir(exist_ok=True)
    (folder / "my_models.py").write_text(MODELS)
    (folder / "script.py").write_text(SCRIPT)
    printed = run(folder, "script.py", engine, str(num_trials), prefix=prefix, **variables)
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert len(found["scores"]) == num_trials
    return found


@pytest.mark.slow
def test_a_script_and_the_module_beside_it_run_on_ray_with_the_same_scores(tmp_path: Path) -> None:
    local, ray = (searched(tmp_path, engine, 3) for engine in ("local", "ray"))
    assert ray["scores"] == local["scores"]
    assert ray["accuracy"] == pytest.approx(ray["best"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not can_make_machines(), reason="needs root, and `ip` and `unshare` of Linux")
def test_a_script_runs_on_nodes_that_share_no_network_stack_and_no_temporary_files(tmp_path: Path) -> None:
    local = searched(tmp_path / "local", "local", 8)
    (tmp_path / "nodes").mkdir()
    with machines(3) as made, ray_nodes(tmp_path / "nodes", 3, head_cpus=0, machines=made) as nodes:
        variables = {name: value for name, value in nodes.environment.items() if name.startswith("RAY_")}
        ray = searched(tmp_path / "ray", "ray", 8, made[0].prefix, **variables, RAY_ADDRESS=nodes.address)
    assert ray["scores"] == local["scores"]
    assert ray["accuracy"] == pytest.approx(ray["best"])


@pytest.mark.slow
def test_tune_on_ray_finds_what_worker_processes_find(tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    words = "--data demo --image-size 32 --epochs 1 --trials 2 --algorithm random --final-seeds 1 --threads 1"
    metrics = []
    for engine in ("local", "ray"):
        run(tmp_path, "-m", "fakeface_lab.tune", *words.split(), "--engine", engine, "--name", engine)
        client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        parent = client.search_runs(experiments, f"tags.search = '{engine}' and tags.role = 'search'")[0]
        children = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        metrics.append(
            {
                (child.data.tags["role"], child.data.tags.get("trial"), child.data.tags.get("final")): {
                    name: value
                    for name, value in child.data.metrics.items()
                    if not name.endswith("_secs") and name != "peak_rss_bytes"
                }
                for child in children
            }
        )
    assert len(metrics[0]) > 3
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_settings_of_other_engines_are_refused_at_once(
    words: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", "demo", "--ray-address", "auto", *words]) == 2
    assert "ray_address = auto: only for engine ray, not local; leave it out" in capsys.readouterr().err
    assert not (project / "mlflow.db").exists()


def test_a_tuners_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"^gpus_per_trial = 2: give a share of a GPU, 0 to 1$"):
        Tuner(random_oracle(), small, gpus_per_trial=2)
    with pytest.raises(ConfigError, match=r"^memory_per_trial = 0: give a number above 0, or leave it out$"):
        Tuner(random_oracle(), small, memory_per_trial=0)
    with pytest.raises(ConfigError, match=r"^tuner_id: not supported; .* for several machines engine='ray'$"):
        Tuner(random_oracle(), small, tuner_id="chief")
