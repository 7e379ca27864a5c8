"""Tuners that override `run_trial` or a hook, as users write them."""

from pathlib import Path
from typing import Any

import keras_tuner as kerastuners
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from fakeface_lab import keras_tuner
from fakeface_lab.backend import keras
from fakeface_lab.errors import ConfigError
from fakeface_lab.search.run.trials import Trials
from tests.keras_tuner.conftest import RunsOf
from tests.keras_tuner.test_tuners import FIT, X, Y, build

LOSS = keras_tuner.Objective("loss", "min")


def history(*losses: float) -> keras.callbacks.History:
    returned = keras.callbacks.History()
    returned.history = {"loss": list(losses)}
    return returned


RETURNED: dict[str, tuple[Any, float, list[tuple[int, float]]]] = {
    "float": (0.5, 0.5, [(1, 0.5)]),
    "numpy float": (np.float32(0.5), 0.5, [(1, 0.5)]),
    "dict": ({"loss": 0.25, "other": 2.0}, 0.25, [(1, 0.25)]),
    "history": (history(3.0, 1.0, 2.0), 1.0, [(1, 3.0), (2, 1.0), (3, 2.0)]),
    "list of floats": ([0.5, 1.5], 1.0, [(1, 1.0)]),
    "list of histories": ([history(4.0, 2.0), history(2.0, 1.0)], 1.5, [(1, 3.0), (2, 1.5)]),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_whatever_kerastuner_takes_is_a_score(kind: str, project: Path, runs_of: RunsOf, client: MlflowClient) -> None:
    returned, score, points = RETURNED[kind]

    class Mine(keras_tuner.RandomSearch):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
            return returned

    tuner = Mine(build, LOSS, max_trials=1)
    tuner.search()
    (run,) = runs_of("trial")
    assert run.data.metrics["score"] == score == tuner.oracle.get_best_trials()[0].score
    assert [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")] == points
    if kind == "dict":
        assert run.data.metrics["other"] == 2.0


def test_metrics_reported_to_the_oracle_are_the_result(project: Path, runs_of: RunsOf, client: MlflowClient) -> None:
    class Mine(keras_tuner.RandomSearch):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> None:
            for step, loss in enumerate([3.0, 1.0]):
                self.oracle.update_trial(trial.trial_id, {"loss": loss}, step=step)

    Mine(build, LOSS, max_trials=1, directory="d").search()
    (run,) = runs_of("trial")
    assert run.data.metrics["score"] == 1.0
    points = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 3.0), (2, 1.0)]
    assert not (project / "d").exists()


def test_nothing_returned_ends_the_search(project: Path) -> None:
    class Mine(keras_tuner.RandomSearch):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> None:
            pass

    with pytest.raises(keras_tuner.errors.FatalTypeError, match="is None"):
        Mine(build, LOSS, max_trials=1).search()


class OwnLoop(keras_tuner.GridSearch):
    """A training loop as in KerasTuner's guide, which calls the hooks and saves its model."""

    calls: list[str]

    def on_search_begin(self) -> None:
        self.calls = ["search begins"]

    def on_search_end(self) -> None:
        self.calls.append("search ends")

    def on_trial_begin(self, trial: Any) -> None:
        self.calls.append(f"trial {trial.trial_id} begins")

    def on_trial_end(self, trial: Any) -> None:
        super().on_trial_end(trial)
        self.calls.append(f"trial {trial.trial_id} ends: {trial.status} {trial.score:.4f}")

    def on_epoch_end(self, trial: Any, model: Any, epoch: int, logs: Any = None) -> None:
        self.calls.append(f"epoch {epoch}")

    def run_trial(self, trial: Any, x: Any, y: Any) -> dict[str, float]:
        model = self.hypermodel.build(trial.hyperparameters)
        loss = np.nan
        for epoch in range(2):
            self.on_epoch_begin(trial, model, epoch, logs={})
            loss = float(model.train_on_batch(x, y)[0])
            self.on_epoch_end(trial, model, epoch, logs={"loss": loss})
        self.save_model(trial.trial_id, model)
        Path(self.get_trial_dir(trial.trial_id), "note.txt").write_text(f"units {model.layers[0].units}")
        return {"loss": float(model.evaluate(x, y, verbose=0)[0])}


def test_a_training_loop_of_the_users_own(project: Path, runs_of: RunsOf, client: MlflowClient) -> None:
    tuner = OwnLoop(build, LOSS, max_trials=2)
    tuner.search(X, Y)
    scores = [run.data.metrics["score"] for run in runs_of("trial")]
    one_trial = ["trial {} begins", "epoch 0", "epoch 1", "trial {} ends: COMPLETED {:.4f}"]
    called = [text.format(number, score) for number, score in enumerate(scores) for text in one_trial]
    assert tuner.calls == ["search begins", *called, "search ends"]
    for run in runs_of("trial"):
        assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]
    again = OwnLoop(build, LOSS, max_trials=2)
    (model,) = again.get_best_models()
    assert model.evaluate(X, Y, verbose=0)[0] == pytest.approx(min(scores), abs=1e-6)
    assert Path(again.get_trial_dir("1"), "note.txt").read_text() == "units 4"


class Prepared(keras_tuner.RandomSearch):
    """Chooses an argument of `fit` and leaves the rest to the tuner."""

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs["batch_size"] = trial.hyperparameters.get("units") * 4
        return super().run_trial(trial, *args, **kwargs)


@pytest.mark.slow
def test_a_run_trial_that_calls_super_trains_as_ever(project: Path, runs_of: RunsOf, client: MlflowClient) -> None:
    given: dict[str, Any] = {"objective": "val_loss", "max_trials": 2, "seed": 1}
    tuner = Prepared(build, executions_per_trial=2, **given)
    tuner.search(X, Y, epochs=2, validation_split=0.25, verbose=0)
    assert len(runs_of("execution")) == 4
    (model,) = tuner.get_best_models()
    assert model.count_params() in (13, 25, 79)
    plain = keras_tuner.GridSearch(build, "val_loss", max_trials=1, engine="inline", project_name="plain")
    plain.search(X, Y, **{**FIT, "batch_size": 8})
    first, alone = runs_of("execution")[0], runs_of("trial")[-1]
    curves = [client.get_metric_history(run.info.run_id, "val_loss") for run in (first, alone)]
    assert [point.value for point in curves[0]] == [point.value for point in curves[1]]


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_finished_trial_is_run_again_only_if_its_model_is_damaged(
    is_damaged: bool, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    class Counted(keras_tuner.RandomSearch):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
            tried.append(trial.trial_id)
            return super().run_trial(trial, *args, **kwargs)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trials, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Counted(build, LOSS, max_trials=1).search(X, Y, **FIT)
    (weights,) = project.rglob("*.keras")
    if is_damaged:
        weights.write_bytes(weights.read_bytes()[:-500])
    tuner = Counted(build, LOSS, max_trials=1)
    tuner.search(X, Y, **FIT)
    assert len(tried) == 1 + is_damaged
    assert tuner.get_best_models(1)[0].predict(X).shape == (len(X), 1)


def test_workers_are_refused_where_methods_of_the_object_are_called(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"workers = 2.*OwnLoop overrides methods .* in this process one by one"):
        OwnLoop(build, LOSS, workers=2).search(X, Y)


def test_no_hypermodel_needs_a_run_trial(project: Path) -> None:
    with pytest.raises(ConfigError, match="hypermodel: give a build function or HyperModel, or override run_trial"):
        keras_tuner.RandomSearch(objective="val_loss")


class Quadratic(keras_tuner.RandomSearch):
    """A function without a model; one of its arguments appears for some values only."""

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
        hp = trial.hyperparameters
        x = hp.Float("x", -2.0, 2.0)
        bonus = hp.Int("bonus", 0, 3, default=1) if hp.Choice("kind", ["a", "b"]) == "b" else 0
        return float(x * x + 2 * x + 1 - bonus)


class AsKerasTunerDoes(kerastuners.RandomSearch):
    run_trial = Quadratic.run_trial


def test_any_function_can_be_tuned_with_the_values_that_kerastuner_tries(
    project: Path, tmp_path: Path, runs_of: RunsOf
) -> None:
    given: dict[str, Any] = {"max_trials": 6, "seed": 4}
    tuner = Quadratic(defaults_first=False, **given)
    tuner.search()
    theirs = AsKerasTunerDoes(directory=tmp_path / "theirs", **given)
    theirs.search(verbose=0)
    tried = [trial.hyperparameters.values for trial in theirs.oracle.trials.values()]
    assert [tuner.oracle.trials[number].hyperparameters.values for number in sorted(tuner.oracle.trials)] == tried
    assert {"x", "kind"} <= set(runs_of("trial")[0].data.params)
    best, other = tuner.oracle.get_best_trials()[0], theirs.oracle.get_best_trials()[0]
    assert (best.trial_id, best.score) == (other.trial_id, pytest.approx(other.score))
