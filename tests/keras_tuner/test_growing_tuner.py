"""`Tuner` when a trial asks for a hyperparameter that the search did not know: KerasTuner's trials, after stops too."""

import json
import shutil
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import pytest
from keras_tuner import oracles
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from fakeface_lab.backend import keras
from fakeface_lab.keras_tuner.tuner import Tuner
from fakeface_lab.search.search import Search
from fakeface_lab.tracking.store import join_text

X = np.random.default_rng(3).normal(size=(40, 4)).astype(np.float32)
Y = (X[:, :2].sum(axis=1) > 0).astype(np.float32)
FIT = {"epochs": 1, "batch_size": 32, "validation_split": 0.25, "verbose": 0}


@pytest.fixture
def project(project: Path, empty_project: Path) -> Path:
    shutil.copy(empty_project / "mlflow.db", project / "mlflow.db")  # creating the tables takes seconds
    return project


class Branches(keras_tuner.HyperModel):
    """Has a depth only in one branch, of which KerasTuner is not told; can be stopped at a build."""

    def __init__(self, builds_until_stop: int = 1000) -> None:
        super().__init__()
        self._builds_left = builds_until_stop

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        self._builds_left -= 1
        if self._builds_left < 0:
            raise KeyboardInterrupt
        depth = 1
        if hp.Choice("kind", ["a", "b"]) == "b":
            depth = hp.Int("depth", 1, 3)
        units = hp.Choice("units", [2, 3, 4])
        hidden = [keras.layers.Dense(units) for _ in range(depth)]
        model = keras.Sequential([keras.Input((4,)), *hidden, keras.layers.Dense(1, activation="sigmoid")])
        model.compile("sgd", "binary_crossentropy", run_eagerly=True)
        return model


class AskingFit(Branches):
    """Its `fit` asks for a batch size that it does not ask for with the default values."""

    def fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        if hp.get("kind") == "b":
            kwargs["batch_size"] = hp.Choice("batch_size", [8, 16])
        return model.fit(*args, **kwargs)


def oracle_of(algorithm: str, max_trials: int = 6) -> keras_tuner.Oracle:
    if algorithm == "random":
        return oracles.RandomSearchOracle("val_loss", max_trials=max_trials, seed=2)
    return oracles.HyperbandOracle("val_loss", max_epochs=2, factor=2, seed=2)


def search(algorithm: str, name: str, builds_until_stop: int = 1000) -> Tuner:
    tuner = Tuner(
        oracle_of(algorithm), Branches(builds_until_stop), project_name=name, engine="inline", defaults_first=False
    )
    tuner.search(X, Y, **FIT)
    return tuner


def runs_of(name: str) -> list[Run]:
    client = MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(name)
    found = client.search_runs([experiment.experiment_id], "tags.role = 'trial'")
    return sorted(found, key=lambda run: int(run.data.tags["trial"]))


def recorded(name: str) -> list[tuple[Any, ...]]:
    """What is the same however often the search was stopped."""
    return [
        (
            join_text(run.data.tags, "values"), run.data.tags.get("found"), run.data.tags["score"],
            run.data.tags["created_order"], run.data.tags["ended_order"],
        )
        for run in runs_of(name)
    ]  # fmt: skip


@pytest.mark.slow
def test_the_trials_are_those_of_kerastuner_and_show_what_they_found(project: Path, tmp_path: Path) -> None:
    class Own(keras_tuner.Tuner):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            self.hypermodel.build(trial.hyperparameters)
            return {"val_loss": 0.5}

    own = Own(oracle_of("random"), Branches(), directory=str(tmp_path / "own"))
    own.search(verbose=0)
    tuner = search("random", "grown")
    runs = runs_of("grown")
    values = [json.loads(run.data.tags["values"]) for run in runs]
    assert values == [own.oracle.trials[trial_id].hyperparameters.values for trial_id in own.oracle.start_order]

    (first,) = [run for run in runs if "found" in run.data.tags]
    (depth,) = json.loads(first.data.tags["found"])
    assert (depth["class_name"], depth["config"]["name"]) == ("Int", "depth")
    assert values[runs.index(first)] == {"kind": "b", "units": values[runs.index(first)]["units"], "depth": 1}
    assert "depth" not in first.info.run_name
    for run, own_values in zip(runs, values, strict=True):
        assert run.data.params.get("depth") == (str(own_values["depth"]) if "depth" in own_values else None)
    assert runs_of("grown")[-1].data.metrics["hp.depth"] == values[-1]["depth"]
    assert "depth" in Search("grown").leaderboard().columns
    best = tuner.get_best_hyperparameters()[0]
    assert "depth" in {hp.name for hp in best.space}
    if best.get("kind") == "b":
        (model,) = tuner.get_best_models()
        assert len(model.layers) == best.get("depth") + 1


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["random", "hyperband"])
def test_a_growing_search_that_was_stopped_is_the_same(algorithm: str, project: Path) -> None:
    search(algorithm, "whole")
    num_stops = 0
    while True:
        try:
            search(algorithm, "stopped", builds_until_stop=4)
            break
        except KeyboardInterrupt:
            num_stops += 1
    assert num_stops >= 2
    assert recorded("stopped") == recorded("whole")
    assert any(found for _, found, *_ in recorded("whole"))


@pytest.mark.slow
def test_what_a_fit_asks_for_joins_the_space_of_a_search_that_begins_with_the_defaults(project: Path) -> None:
    tuner = Tuner(oracle_of("random", 6), AskingFit(), project_name="asking", engine="inline")
    assert {hp.name for hp in tuner.oracle.get_space().space} == {"kind", "units"}, "as in KerasTuner"
    tuner.search(X, Y, epochs=1, validation_split=0.25, verbose=0)
    assert {hp.name for hp in tuner.oracle.get_space().space} >= {"kind", "units", "depth"}
    values = [json.loads(run.data.tags["values"]) for run in runs_of("asking")]
    assert values[0] == {"kind": "a", "units": 2, "depth": 1}
    assert {one.get("batch_size") for one in values} == {None, 8, 16}


def test_a_hyperparameter_that_is_not_allowed_ends_the_search_in_one_line(project: Path) -> None:
    space = keras_tuner.HyperParameters()
    space.Choice("kind", ["b", "a"], default="a")
    space.Choice("units", [2, 3, 4])
    oracle = oracles.GridSearchOracle("val_loss", hyperparameters=space, allow_new_entries=False)
    tuner = Tuner(oracle, Branches(), engine="inline")
    with pytest.raises(keras_tuner.errors.FatalRuntimeError, match=r"^hyperparameter depth: is not in the oracle's"):
        tuner.search(X, Y, **FIT)
