"""Several trainings of one configuration: with other seeds, or on other folds."""

import statistics
from pathlib import Path
from typing import Any

import keras_tuner as kerastuners
import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from sklearn.model_selection import KFold

from fakeface_lab import keras_tuner
from fakeface_lab.backend import keras
from fakeface_lab.errors import ConfigError
from fakeface_lab.training.executions import split_rows
from tests.keras_tuner.conftest import RunsOf
from tests.keras_tuner.test_tuners import FIT, X, Y, build

GIVEN: dict[str, Any] = {"objective": "val_loss", "max_trials": 2, "seed": 1, "engine": "inline"}


def curve(client: MlflowClient, run_id: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, "val_loss")]


def test_each_execution_is_a_run_and_the_score_is_their_mean(
    project: Path, runs_of: RunsOf, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    tuner = keras_tuner.RandomSearch(build, executions_per_trial=2, **GIVEN)
    tuner.search(X, Y, **{**FIT, "verbose": 1})
    assert " ± " in capsys.readouterr().out, "the spread is shown"
    executions = runs_of("execution")
    for number, trial in enumerate(runs_of("trial")):
        own = [run for run in executions if run.data.tags["mlflow.parentRunId"] == trial.info.run_id]
        assert [run.info.run_name for run in own] == [f"t00{number} execution 0", f"t00{number} execution 1"]
        assert [run.data.params["seed"] for run in own] == ["0", "1"]
        assert {run.info.status for run in own} == {"FINISHED"}
        assert all(len(run.outputs.model_outputs) == 1 for run in own)
        scores = [min(value for _, value in curve(client, run.info.run_id)) for run in own]
        assert len(set(scores)) == 2, "other seeds"
        assert trial.data.metrics["score"] == pytest.approx(statistics.fmean(scores))
        assert trial.data.metrics["score_std"] == pytest.approx(statistics.stdev(scores))
        curves = [[value for _, value in curve(client, run.info.run_id)] for run in own]
        means = [statistics.fmean(pair) for pair in zip(*curves, strict=True)]
        assert [value for _, value in curve(client, trial.info.run_id)] == pytest.approx(means)
    (model,) = tuner.get_best_models()
    loss = model.evaluate(X[45:], Y[45:], verbose=0)[0]
    best = tuner.oracle.get_best_trials()[0]
    run = runs_of("trial")[int(best.trial_id)]
    own = [one for one in executions if one.data.tags["mlflow.parentRunId"] == run.info.run_id]
    assert loss == pytest.approx(min(value for one in own for _, value in curve(client, one.info.run_id)), abs=1e-6)


class Interrupted(kerastuners.HyperModel):
    """Presses Ctrl-C at one of its builds."""

    def __init__(self, at_build: int) -> None:
        super().__init__()
        self.at_build, self.num_builds = at_build, 0

    def build(self, hp: kerastuners.HyperParameters) -> keras.Model:
        model = build(hp)
        self.num_builds += 1
        if self.num_builds == self.at_build:
            raise KeyboardInterrupt
        return model


@pytest.mark.slow
def test_interrupted_in_its_second_execution_a_trial_resumes_there(
    project: Path, runs_of: RunsOf, client: MlflowClient
) -> None:
    given = {**GIVEN, "executions_per_trial": 2, "max_trials": 1}
    undisturbed = Interrupted(10**6)
    keras_tuner.RandomSearch(undisturbed, project_name="whole", **given).search(X, Y, **FIT)
    whole = [curve(client, run.info.run_id) for run in [*runs_of("trial"), *runs_of("execution")]]

    tuner = keras_tuner.RandomSearch(Interrupted(undisturbed.num_builds), project_name="cut", **given)
    with pytest.raises(KeyboardInterrupt):  # at the last build: that of the second execution
        tuner.search(X, Y, **FIT)
    resumed = Interrupted(10**6)
    keras_tuner.RandomSearch(resumed, project_name="cut", **given).search(X, Y, **FIT)
    cut = [curve(client, run.info.run_id) for run in [runs_of("trial")[1], *runs_of("execution")[2:]]]
    assert cut == whole
    assert {run.info.status for run in [*runs_of("trial"), *runs_of("execution")]} == {"FINISHED"}
    assert resumed.num_builds == undisturbed.num_builds - 1, "the first execution was not trained again"


@pytest.mark.slow
def test_each_fold_is_a_run_and_the_score_is_their_mean(project: Path, runs_of: RunsOf, client: MlflowClient) -> None:
    folded = keras_tuner.CrossValidation(build, folds=3)
    tuner = keras_tuner.RandomSearch(folded, **{**GIVEN, "max_trials": 1})
    tuner.search(X, Y.astype(np.int64), epochs=2, verbose=0)
    (trial,), folds = runs_of("trial"), runs_of("execution")
    assert [run.info.run_name for run in folds] == ["t000 fold 0", "t000 fold 1", "t000 fold 2"]
    assert {run.data.params["seed"] for run in folds} == {"0"}
    scores = [min(value for _, value in curve(client, run.info.run_id)) for run in folds]
    assert trial.data.metrics["score"] == pytest.approx(statistics.fmean(scores))
    rows = split_rows(3, 0, X, Y.astype(np.int64))
    model = tuner.get_best_models()[0]
    best = int(np.argmin(scores))
    held_out = rows[best][1]
    assert model.evaluate(X[held_out], Y[held_out], verbose=0)[0] == pytest.approx(scores[best], abs=1e-6)


def test_folds_cover_every_row_once_and_are_stratified_for_class_labels() -> None:
    labels = np.array([0] * 30 + [1] * 60)
    folds = split_rows(3, 0, np.zeros((90, 2)), labels)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(90))
    assert [int(labels[test].sum()) for _, test in folds] == [20, 20, 20]
    assert all(set(train) | set(test) == set(range(90)) and not set(train) & set(test) for train, test in folds)
    for one, other in zip(split_rows(KFold(2), 0, labels, None), KFold(2).split(labels), strict=True):
        np.testing.assert_array_equal(one[1], other[1])


def test_what_cannot_be_folded_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match="folds = 1: give 2 or more"):
        keras_tuner.CrossValidation(build, folds=1)
    tuner = keras_tuner.RandomSearch(keras_tuner.CrossValidation(build), **GIVEN)
    with pytest.raises(ConfigError, match="validates on its folds; leave validation_data and validation_split out"):
        tuner.search(X, Y, validation_data=(X, Y))
    with pytest.raises(ConfigError, match=r"give search\(\) arrays, whose rows can be dealt into folds"):
        tuner.search(iter([]))

    class OwnFit(kerastuners.HyperModel):
        def build(self, hp: kerastuners.HyperParameters) -> keras.Model:
            return build(hp)

        def fit(self, hp: kerastuners.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any) -> float:
            return 0.0

    with pytest.raises(ConfigError, match=r"OwnFit\.fit would not be called; each fold is trained by Keras's own fit"):
        keras_tuner.CrossValidation(OwnFit())
