"""`Tuner` as a user of KerasTuner meets it: every oracle, any model and data, refusals, and restarts."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import pandas as pd
import pytest
from keras_tuner import oracles
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

import fakeface_lab
from fakeface_lab.backend import keras
from fakeface_lab.compare import main as compare
from fakeface_lab.errors import AllTrialsFailedError, ConfigError, SearchError
from fakeface_lab.keras_tuner.tuner import Tuner
from tests.keras_tuner.tiny_tuner import EAGERLY, FIT, X, Y, build, history, inline, random_oracle, runs_of, small

pytestmark = pytest.mark.usefixtures("project_with_tables")

ORACLES: dict[str, Callable[[], keras_tuner.Oracle]] = {
    "random": random_oracle,
    "grid": lambda: oracles.GridSearchOracle("val_loss", max_trials=4, seed=5),
    "bayesian": lambda: oracles.BayesianOptimizationOracle("val_loss", max_trials=4, num_initial_points=2, seed=5),
    "hyperband": lambda: oracles.HyperbandOracle("val_loss", max_epochs=2, factor=2, seed=5),
    "of RandomSearch": lambda: keras_tuner.RandomSearch(build, "val_accuracy", max_trials=2, seed=5).oracle,
    "of GridSearch": lambda: keras_tuner.GridSearch(build, "val_loss", max_trials=2, seed=5).oracle,
    "of BayesianOptimization": lambda: keras_tuner.BayesianOptimization(build, "val_loss", max_trials=2, seed=5).oracle,
    "of Hyperband": lambda: keras_tuner.Hyperband(build, "val_loss", max_epochs=2, factor=2, seed=5).oracle,
}


@pytest.mark.parametrize(
    "kind", ["random", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grid", "bayesian", "hyperband"))]
)
def test_every_oracle(kind: str, project: Path) -> None:
    tuner = inline(oracle=ORACLES[kind](), project_name=kind)
    tuner.search(X, Y, **FIT)
    runs = runs_of(tuner)
    assert len(runs) == {"random": 3, "grid": 4, "bayesian": 4, "hyperband": 6}[kind]
    (parent,) = runs_of(tuner, "search")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert {run.info.status for run in [parent, *runs]} == {"FINISHED"}
    for run in runs:
        names = {"layers", "units_0", "units_1", "activation", "slope", "epochs", "seed", "num_threads"}
        assert set(run.data.params) == names, "every run has the same keys"
        assert (run.data.params["slope"] == "-") == (run.data.params["activation"] == "relu")
        epochs = int(run.data.params["epochs"])
        assert [step for step, _ in history(run, "val_loss")] == list(range(1, epochs + 1))
        assert run.data.metrics["hp.units_0"] == float(run.data.params["units_0"])
        assert run.data.metrics["score"] == min(value for _, value in history(run, "val_loss"))
        assert 1e8 < run.data.metrics["peak_rss_bytes"] < 1e11
        assert run.data.tags["num_restarts"] == "0"
    assert_reported(parent, runs, "val_loss")
    assert parent.data.tags["num_restarts"] == "0"
    assert runs[0].data.params["activation"] == "relu", "trial 0 has the defaults"
    assert {path.name for path in project.iterdir()} == {"experiments", "mlflow.db", "mlflow.db.lock", "mlruns"}
    assert list((project / "mlruns" / ".work").iterdir()) == []

    again = inline(oracle=ORACLES[kind](), project_name=kind)
    again.search(X, Y, **FIT)
    assert [run.info.run_id for run in runs_of(again)] == [run.info.run_id for run in runs]
    assert again.get_best_hyperparameters()[0].values == tuner.get_best_hyperparameters()[0].values
    (parent,) = runs_of(again, "search")
    assert parent.data.tags["num_restarts"] == "1"
    assert_reported(parent, runs, "val_loss")


def assert_reported(parent: Run, runs: list[Run], objective: str) -> None:
    """The parent run has table, figures and description, which agree with the trials."""
    client = MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"leaderboard.csv", "history.png", "cost.png", "summary.md"} <= files
    assert "best.toml" not in files
    assert ("importance.png" in files) == (len(runs) > 3)
    path = client.download_artifacts(parent.info.run_id, "leaderboard.csv", str(Path.cwd().parent))
    table = pd.read_csv(path)
    best = max if parent.data.tags["direction"] == "max" else min
    scores = {int(run.data.tags["trial"]): run.data.metrics["score"] for run in runs}
    assert table["score"].iloc[0] == best(scores.values()) == parent.data.metrics["best_score"]
    assert parent.data.metrics["defaults_score"] == scores[0]
    note = parent.data.tags["mlflow.note.content"]
    assert f"the best {objective}, {best(scores.values()):.4f}; with all hyperparameters at their defaults" in note
    num_tried = len([run for run in runs if "duplicate_of" not in run.data.tags])
    assert f"Picked as the best of {num_tried}, it looks better than it is" in note
    assert "0 (defaults)" in note
    assert "documented" not in note
    assert "final" not in note


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in ORACLES if kind.startswith("of ")])
def test_oracles_of_tuner_classes(kind: str, project: Path, tmp_path: Path) -> None:
    os.chdir(tmp_path)  # KerasTuner's own tuner creates a folder
    oracle = ORACLES[kind]()
    os.chdir(project)
    tuner = inline(oracle=oracle)
    tuner.search(X, Y, **FIT)
    assert {run.info.status for run in runs_of(tuner)} == {"FINISHED"}
    assert {path.name for path in project.iterdir()} == {"experiments", "mlflow.db", "mlflow.db.lock", "mlruns"}


def test_objective_directions_are_those_of_kerastuner(project: Path) -> None:
    tuner = inline(small, random_oracle(objective="val_accuracy"))
    tuner.search(X, Y, **FIT)
    scores = [run.data.metrics["score"] for run in runs_of(tuner)]
    assert scores == [max(value for _, value in history(run, "val_accuracy")) for run in runs_of(tuner)]
    assert tuner.oracle.get_best_trials()[0].score == max(scores)
    assert_reported(runs_of(tuner, "search")[0], runs_of(tuner), "val_accuracy")


def test_multiple_objectives_are_summed_as_in_kerastuner(project: Path) -> None:
    both = [keras_tuner.Objective("val_loss", "min"), keras_tuner.Objective("val_accuracy", "max")]
    tuner = inline(small, random_oracle(1, both))
    tuner.search(X, Y, **FIT)
    (run,) = runs_of(tuner)
    sums = [
        loss - acc for (_, loss), (_, acc) in zip(history(run, "val_loss"), history(run, "val_accuracy"), strict=True)
    ]
    assert run.data.metrics["score"] == pytest.approx(min(sums), abs=1e-7)


def test_summaries_equal_those_of_kerastuner_and_compare_shows_the_trials(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuner = inline(small)
    tuner.search_space_summary()
    assert "Default search space size: 1\nunits (Choice)" in capsys.readouterr().out
    tuner.search(X, Y, **FIT)
    assert capsys.readouterr().out == "", "verbose=0"
    tuner.results_summary(1)
    text = capsys.readouterr().out
    best = tuner.oracle.get_best_trials()[0]
    assert f"Results in sqlite:///{project / 'mlflow.db'}, search untitled_project" in text
    assert f"Trial {best.trial_id} summary\nHyperparameters:\nunits: " in text
    assert f"Score: {best.score}\n" in text

    assert compare(["untitled_project"]) == 0
    text = capsys.readouterr().out
    assert text.count("&viewStateShareKey=") == 2
    assert "defaults" in text
    assert "verdict   none: its test data are not in the store; evaluate the best model on held-out data" in text
    assert compare([]) == 0
    assert "it ran on a user's own data, so it cannot be compared with other runs" in " ".join(
        capsys.readouterr().out.split()
    )


class Subclassed(keras.Model):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.hidden, self.last = keras.layers.Dense(units), keras.layers.Dense(1, activation="sigmoid")

    def call(self, inputs: Any) -> Any:
        return self.last(self.hidden(inputs))


def build_subclassed(hp: keras_tuner.HyperParameters) -> keras.Model:
    model = Subclassed(hp.Choice("units", [2, 4]))
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy"], run_eagerly=EAGERLY)
    return model


def build_without_input(hp: keras_tuner.HyperParameters) -> keras.Model:
    model = keras.Sequential([keras.layers.Dense(hp.Choice("units", [2, 4])), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=EAGERLY)
    return model


def build_two_inputs(hp: keras_tuner.HyperParameters) -> keras.Model:
    left, right = keras.Input((2,), name="left"), keras.Input((2,), name="right")
    hidden = keras.layers.Dense(hp.Choice("units", [2, 4]))(keras.layers.Concatenate()([left, right]))
    model = keras.Model({"left": left, "right": right}, keras.layers.Dense(1)(hidden))
    model.compile("sgd", "mse", run_eagerly=EAGERLY)
    return model


SHAPES: dict[str, tuple[Any, Any]] = {
    "sequential": (build, X),
    "without input": (build_without_input, X),
    "subclassed": (build_subclassed, X),
    "two inputs": (build_two_inputs, {"left": X[:, :2], "right": X[:, 2:]}),
}


@pytest.mark.parametrize(
    "shape",
    [
        "sequential",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("two inputs", "without input", "subclassed")),
    ],
)
def test_best_model_loads_from_mlflow_and_scores_what_the_run_says(shape: str, project: Path) -> None:
    build_it, inputs = SHAPES[shape]
    validation = (keras.tree.map_structure(lambda array: array[40:], inputs), Y[40:])
    training = keras.tree.map_structure(lambda array: array[:40], inputs)
    inline(build_it, random_oracle(2)).search(
        training, Y[:40], epochs=3, batch_size=8, validation_data=validation, verbose=0
    )
    other = inline(build_it, random_oracle(2))
    (model,) = other.get_best_models()
    scores = [run.data.metrics["score"] for run in runs_of(other)]
    loss = model.evaluate(*validation, verbose=0, return_dict=True)["loss"]
    assert loss == pytest.approx(min(scores), abs=1e-6)
    import mlflow

    (best,) = [run for run in runs_of(other) if run.data.metrics["score"] == min(scores)]
    served = mlflow.pyfunc.load_model(f"models:/{best.outputs.model_outputs[0].model_id}")
    np.testing.assert_allclose(served.predict(validation[0]), model.predict(validation[0], verbose=0), atol=1e-6)


def test_all_trials_failing_is_reported(project: Path) -> None:
    with pytest.raises(AllTrialsFailedError, match=r"all 2 trials failed .*objective val_f1: an epoch has"):
        inline(small, random_oracle(2, keras_tuner.Objective("val_f1", "max"))).search(X, Y, **FIT)


REFUSED: dict[str, tuple[Any, str]] = {
    "tuner_id": ("x", r"tuner_id: not supported; one process drives a search; .* give workers="),
    "distribution_strategy": (object(), r"distribution_strategy: not supported; each worker process takes one GPU"),
    "executions_per_trial": (0, r"executions_per_trial = 0: give 1 or more"),
    "hours": (0, r"hours = 0: give hours above 0, or leave it out"),
    "keep_models": ("top-0", r"keep_models = 'top-0': give all, best, or top-K such as top-3"),
    "max_trails": (2, r"max_trails: unknown argument; see help\(fakeface_lab\.Tuner\)"),
    "workers": (0, r"workers = 0, threads = 0, engine = None: give at least 1 worker"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_arguments_are_refused(name: str, project: Path) -> None:
    value, message = REFUSED[name]
    given: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=message) as err:
        Tuner(random_oracle(), small, **given)
    assert "\n" not in str(err.value)


BAD_SEARCHES = {
    "initial_epoch": r"initial_epoch: the search counts the epochs of a trial from its first; leave it out",
    "epohcs": r"search\(\): got an unexpected keyword argument 'epohcs'; it takes what keras\.Model\.fit takes",
}


@pytest.mark.parametrize("name", BAD_SEARCHES)
def test_bad_arguments_of_search_are_refused(name: str, project: Path) -> None:
    with pytest.raises(ConfigError, match=BAD_SEARCHES[name]):
        inline(small).search(X, Y, **{name: 1})


def test_other_data_under_the_same_name_are_refused_and_overwrite_starts_over(project: Path) -> None:
    first = inline(small, random_oracle(1), project_name="mine")
    first.search(X, Y, **FIT)
    with pytest.raises(
        SearchError, match=r"search 'mine' exists with other settings .*data_digest.*project_name=.*overwrite=True"
    ):
        inline(small, random_oracle(1), project_name="mine").search(X + 1, Y, **FIT)
    inline(small, random_oracle(1), project_name="mine", overwrite=True).search(X + 1, Y, **FIT)
    parents = runs_of(first, "search")
    assert len(parents) == 2
    assert sum("superseded_by" in run.data.tags for run in parents) == 1


@pytest.mark.slow
def test_an_oracle_without_a_seed_resumes_with_its_first_one(project: Path) -> None:
    one = oracles.RandomSearchOracle("val_loss", max_trials=2, seed=11)
    inline(oracle=one).search(X, Y, **FIT)
    drawn_anew = oracles.RandomSearchOracle("val_loss", max_trials=4, seed=12)
    tuner = inline(oracle=drawn_anew)
    tuner.search(X, Y, **FIT)
    assert len(runs_of(tuner)) == 4


def test_project_experiment_and_store_can_be_named(project: Path) -> None:
    uri = f"sqlite:///{project / 'other.db'}"
    tuner = inline(small, random_oracle(1), project_name="mine", experiment="faces", tracking_uri=uri)
    tuner.search(X, Y, **FIT)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("faces")
    names = {run.info.run_name for run in client.search_runs([experiment.experiment_id])}
    assert names == {"mine", "t000 units 2"}


def test_a_hang_limit_of_zero_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match="hang_secs = 0: give seconds above 0"):
        inline(hang_secs=0)


def test_the_package_exports_the_tuner() -> None:
    assert fakeface_lab.Tuner is Tuner
    with pytest.raises(AttributeError, match="module 'fakeface_lab' has no attribute 'Tunner'"):
        fakeface_lab.Tunner  # noqa: B018
