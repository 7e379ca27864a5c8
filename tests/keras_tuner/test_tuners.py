"""KerasTuner's classes under their own names: same arguments, same names, same meaning of failures."""

import importlib
import inspect
import random
from pathlib import Path
from typing import Any

import keras_tuner as kerastuners
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from fakeface_lab import keras_tuner
from fakeface_lab.backend import keras
from fakeface_lab.errors import AllTrialsFailedError, ConfigError, TooManyFailuresError
from fakeface_lab.keras_tuner.store_tuner import Options
from tests.keras_tuner.conftest import RunsOf

RNG = np.random.default_rng(3)
X = RNG.normal(size=(60, 4)).astype(np.float32)
Y = (X[:, :2].sum(axis=1) > 0).astype(np.float32)
FIT: dict[str, Any] = {"epochs": 2, "batch_size": 32, "validation_split": 0.25, "verbose": 0}


def build(hp: kerastuners.HyperParameters) -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(hp.Choice("units", [2, 4, 13]))])
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    optimizer = keras.optimizers.SGD(momentum=0.9)  # has a state, and a quicker step than Adam
    model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"], run_eagerly=True)
    return model


TUNERS = ("Tuner", "RandomSearch", "GridSearch", "BayesianOptimization", "Hyperband", "SklearnTuner")


@pytest.mark.parametrize("name", TUNERS)
def test_arguments_are_kerastuners_in_their_order_with_their_defaults(name: str) -> None:
    theirs = inspect.signature(getattr(kerastuners, name)).parameters
    ours = inspect.signature(getattr(keras_tuner, name)).parameters
    shared = {key: value for key, value in ours.items() if key not in Options.__dataclass_fields__}
    assert [(key, value.default, value.kind) for key, value in shared.items()] == [
        (key, value.default, value.kind) for key, value in theirs.items()
    ]
    added = [value for key, value in ours.items() if key not in shared]
    assert all(value.kind is inspect.Parameter.KEYWORD_ONLY for value in added)


def test_every_public_name_of_kerastuner_is_there() -> None:
    public = {name for name in vars(kerastuners) if not name.startswith("_") and name not in ("src", "distribute")}
    assert public - set(dir(keras_tuner)) == set()
    for name in public - set(TUNERS) - {"tuners"}:
        assert getattr(keras_tuner, name) is getattr(kerastuners, name)
    public_tuners = {name for name in vars(kerastuners.tuners) if not name.startswith("_")}
    assert public_tuners <= set(dir(keras_tuner.tuners))
    module = importlib.import_module("fakeface_lab.keras_tuner.engine.hyperparameters")
    assert module.Choice is importlib.import_module("keras_tuner.engine.hyperparameters").Choice


def test_directory_and_project_name_name_the_search_and_nothing_is_written_there(
    project: Path, runs_of: RunsOf, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {
        "objective": "val_loss",
        "max_trials": 2,
        "seed": 1,
        "directory": "my_dir",
        "project_name": "hello",
    }
    tuner = keras_tuner.RandomSearch(build, engine="inline", **given)
    tuner.search(X, Y, **{**FIT, "verbose": 1})
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"nothing is written to my_dir: this search is kept in sqlite:///{project / 'mlflow.db'}, " + (
        "search my_dir/hello"
    )
    assert not (project / "my_dir").exists()
    (parent,) = runs_of("search")
    assert parent.data.tags["search"] == "my_dir/hello"

    again = keras_tuner.RandomSearch(build, engine="inline", **given)
    again.search(X, Y, **FIT)
    assert len(runs_of("trial")) == 2
    assert sorted(again.oracle.trials) == ["0", "1"]
    other = keras_tuner.RandomSearch(build, engine="inline", **given, overwrite=True)
    other.search(X, Y, **FIT)
    assert len(runs_of("trial")) == 4


def test_trial_names_have_the_width_of_kerastuners(project: Path) -> None:
    for max_trials, name in ((10, "03"), (9, "3"), (None, "0003")):
        tuner = keras_tuner.GridSearch(build, "val_loss", max_trials=max_trials)
        assert tuner.trial_id(3) == name


def test_kerastuners_distributed_mode_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"tuner_id: not supported; one process drives .* give workers="):
        keras_tuner.RandomSearch(build, "val_loss", tuner_id="chief")
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    with pytest.raises(ConfigError, match=r"KERASTUNER_TUNER_ID: KerasTuner's chief and workers .* give workers="):
        keras_tuner.RandomSearch(build, "val_loss")


class Failing(kerastuners.HyperModel):
    """Raises what it is told at the first builds after the one that explores the space."""

    def __init__(self, error: Exception, num_failures: int, when: Path) -> None:
        super().__init__()
        self.error, self.num_failures, self.when = error, num_failures, when

    def build(self, hp: kerastuners.HyperParameters) -> keras.Model:
        return build(hp)

    def fit(self, hp: Any, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        with self.when.open("a") as file:
            file.write("x")
        if len(self.when.read_text()) <= self.num_failures:
            raise self.error
        return model.fit(*args, **kwargs)


def failing(project: Path, error: Exception, num_failures: int, **kwargs: Any) -> kerastuners.Tuner:
    hypermodel = Failing(error, num_failures, project.parent / "fits.txt")
    kwargs = {"max_trials": 2, "seed": 1, "engine": "inline", "defaults_first": True, **kwargs}
    return keras_tuner.RandomSearch(hypermodel, "val_loss", **kwargs)


def test_a_failed_trial_is_tried_again_as_often_as_asked(project: Path, runs_of: RunsOf) -> None:
    # The first fit only explores the space.
    tuner = failing(project, ValueError("no luck"), 3, max_retries_per_trial=2)
    tuner.search(X, Y, **FIT)
    trials = runs_of("trial")
    assert [run.info.status for run in trials] == ["FINISHED", "FINISHED"]
    assert trials[0].data.tags["num_errors"] == "2"


@pytest.mark.slow
@pytest.mark.parametrize("num_initial_points", [None, 1])
def test_a_bayesian_search_that_is_all_random_says_so(
    num_initial_points: int | None, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuner = keras_tuner.BayesianOptimization(
        build, "val_loss", max_trials=2, num_initial_points=num_initial_points, seed=1, engine="inline"
    )
    tuner.search(X, Y, **{**FIT, "verbose": 1})
    said = "all of them are drawn at random: the Gaussian process is asked after 3 trials; give fewer initial points"
    assert (said in capsys.readouterr().out) == (num_initial_points is None)


def test_failed_trial_error_is_not_tried_again(project: Path, runs_of: RunsOf) -> None:
    tuner = failing(project, keras_tuner.errors.FailedTrialError("too large"), 2, max_retries_per_trial=5)
    tuner.search(X, Y, **FIT)
    assert [run.info.status for run in runs_of("trial")] == ["FAILED", "FINISHED"]
    assert runs_of("trial")[0].data.tags["status_reason"] == "FailedTrialError: too large"
    assert tuner.oracle.trials["0"].status == "FAILED"
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    trace = Path(client.download_artifacts(runs_of("trial")[0].info.run_id, "error.txt", str(project)))
    assert trace.read_text(encoding="utf-8").endswith("FailedTrialError: too large\n")


def test_a_fatal_error_ends_the_search_and_the_same_script_resumes(project: Path, runs_of: RunsOf) -> None:
    with pytest.raises(keras_tuner.errors.FatalValueError, match="wrong data"):
        failing(project, keras_tuner.errors.FatalValueError("wrong data"), 2).search(X, Y, **FIT)
    assert [run.info.status for run in runs_of("trial")] == ["KILLED"]
    failing(project, ValueError(), 0).search(X, Y, **FIT)
    assert [run.info.status for run in runs_of("trial")] == ["FINISHED", "FINISHED"]


def test_too_many_failures_in_a_row_end_the_search(project: Path, runs_of: RunsOf) -> None:
    tuner = failing(project, ValueError("no luck"), 99, max_trials=9, max_consecutive_failed_trials=2)
    with pytest.raises(
        TooManyFailuresError, match=r"2 trials in a row failed, the last because: ValueError: no luck; max_consec"
    ) as err:
        tuner.search(X, Y, **FIT)
    assert isinstance(err.value, RuntimeError), "which KerasTuner raises"
    assert len(runs_of("trial")) == 2


def test_what_is_no_model_ends_the_search(project: Path) -> None:
    tuner = keras_tuner.RandomSearch(lambda hp: "no model", "val_loss", engine="inline")
    with pytest.raises(keras_tuner.errors.FatalTypeError, match=r"build\(hp\): returned str; return a keras.Model"):
        tuner.search(X, Y, **FIT)


def test_reported_metrics_are_those_of_the_trial(project: Path, client: MlflowClient) -> None:
    tuner = keras_tuner.RandomSearch(build, "val_accuracy", max_trials=1, engine="inline")
    tuner.search(X, Y, **FIT)
    (trial,) = tuner.oracle.get_best_trials()
    assert trial.metrics.get_best_value("val_accuracy") == trial.score
    assert trial.metrics.get_best_step("val_accuracy") == trial.best_step


def test_the_random_numbers_of_the_script_go_on_as_if_there_had_been_no_search(project: Path) -> None:
    drawn = []
    for has_search in (False, True):
        tuner = keras_tuner.RandomSearch(build, "val_loss", max_trials=1, engine="inline")
        random.seed(5)
        np.random.seed(5)
        if has_search:
            tuner.search(X, Y, **FIT)
        drawn.append((random.random(), np.random.random()))
    assert drawn[0] == drawn[1]


def test_verbose_reaches_a_fit_of_the_users_own(project: Path) -> None:
    class Mine(kerastuners.HyperModel):
        def build(self, hp: kerastuners.HyperParameters) -> keras.Model:
            return build(hp)

        def fit(self, hp: Any, model: keras.Model, *args: Any, **kwargs: Any) -> float:
            return float(kwargs["verbose"])

    tuner = keras_tuner.RandomSearch(Mine(), max_trials=1, engine="inline")
    tuner.search(X, Y, verbose=0)
    assert tuner.oracle.get_best_trials()[0].score == 0.0


def test_a_model_that_learns_its_input_takes_batches_of_any_size_when_loaded(project: Path) -> None:
    def unbuilt(hp: kerastuners.HyperParameters) -> keras.Model:
        model = keras.Sequential([keras.layers.Dense(hp.Choice("units", [2, 4])), keras.layers.Dense(1)])
        model.compile("adam", "mse")
        return model

    tuner = keras_tuner.RandomSearch(unbuilt, "val_loss", max_trials=1, engine="inline")
    tuner.search(X, Y, **FIT)
    model = tuner.get_best_models()[0]
    assert model.input_shape == (None, 4)
    model.build((None, 4))
    assert model.predict(X, verbose=0).shape == (60, 1)


def test_the_trials_of_a_search_that_failed_can_be_looked_at(project: Path) -> None:
    class Fails(kerastuners.HyperModel):
        def build(self, hp: kerastuners.HyperParameters) -> keras.Model:
            return build(hp)

        def fit(self, *args: Any, **kwargs: Any) -> float:
            raise ValueError("no such data")

    tuner = keras_tuner.RandomSearch(Fails(), "val_loss", max_trials=2, engine="inline")
    with pytest.raises(AllTrialsFailedError):
        tuner.search(X, Y)
    assert {trial.status for trial in tuner.oracle.trials.values()} == {"FAILED"}


def test_a_name_shows_whole_values_only(project: Path, runs_of: RunsOf) -> None:
    def many(hp: kerastuners.HyperParameters) -> keras.Model:
        for number in range(6):
            hp.Fixed(f"a_rather_long_name_{number}", 0.000125)
        return build(hp)

    keras_tuner.RandomSearch(many, "val_loss", max_trials=1, engine="inline").search(X, Y, **FIT)
    assert runs_of("trial")[0].info.run_name == "t000 a_rather_long_name_0 0.00013 a_rather_long_name_1 0.00013"
