"""SklearnTuner beside KerasTuner's own: the same trials, the same scores; and what it leaves in MLflow."""

from pathlib import Path
from typing import Any

import keras_tuner as kerastuners
import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from sklearn import datasets, ensemble, linear_model, metrics, model_selection, pipeline, preprocessing
from sklearn.base import BaseEstimator, ClassifierMixin

from fakeface_lab import keras_tuner
from fakeface_lab.errors import ConfigError, SearchError
from tests.keras_tuner.conftest import RunsOf

X, Y = datasets.load_iris(return_X_y=True)


def build(hp: kerastuners.HyperParameters) -> Any:
    if hp.Choice("model", ["forest", "ridge"]) == "forest":
        return ensemble.RandomForestClassifier(hp.Int("n_estimators", 2, 5), random_state=0)
    return linear_model.RidgeClassifier(alpha=hp.Float("alpha", 1e-3, 1.0, sampling="log"))


def oracle(max_trials: int = 4) -> kerastuners.Oracle:
    return kerastuners.oracles.RandomSearchOracle(kerastuners.Objective("score", "max"), max_trials=max_trials, seed=3)


def accuracy(labels: Any, predicted: Any, sample_weight: Any = None) -> float:
    return float(metrics.accuracy_score(labels, predicted, sample_weight=sample_weight))


GIVEN: dict[str, dict[str, Any]] = {
    "model's own score": {},
    "scoring and metrics": {"scoring": metrics.make_scorer(metrics.accuracy_score), "metrics": [accuracy]},
    "splitter": {"cv": model_selection.StratifiedKFold(3)},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", GIVEN)
def test_trials_and_scores_are_those_of_kerastuner(kind: str, project: Path, tmp_path: Path, runs_of: RunsOf) -> None:
    weights = np.linspace(0.5, 1.5, len(X))
    tuner = keras_tuner.SklearnTuner(oracle(), build, defaults_first=False, **GIVEN[kind])
    tuner.search(X, Y, sample_weight=weights)
    theirs = kerastuners.SklearnTuner(oracle(), build, directory=tmp_path / "theirs", **GIVEN[kind])
    theirs.oracle.verbose = 0
    theirs.search(X, Y, sample_weight=weights)
    for trial_id, trial in theirs.oracle.trials.items():
        ours = tuner.oracle.trials[trial_id]
        assert ours.hyperparameters.values == trial.hyperparameters.values
        assert ours.score == pytest.approx(trial.score, abs=1e-12)
    if kind == "scoring and metrics":
        assert {run.data.metrics["accuracy"] == run.data.metrics["score"] for run in runs_of("execution")} == {True}


def test_each_fold_is_a_run_with_a_model_that_runs_no_code_when_it_is_read(
    project: Path, runs_of: RunsOf, client: MlflowClient
) -> None:
    tuner = keras_tuner.SklearnTuner(oracle(1), build, cv=model_selection.StratifiedKFold(3), project_name="flowers")
    tuner.search(pd.DataFrame(X), Y)
    folds = runs_of("execution")
    assert [run.info.run_name for run in folds] == ["t000 fold 0", "t000 fold 1", "t000 fold 2"]
    (trial,) = runs_of("trial")
    assert trial.data.metrics["score"] == pytest.approx(np.mean([run.data.metrics["score"] for run in folds]))
    model = tuner.get_best_models()[0]
    best = max(folds, key=lambda run: float(run.data.metrics["score"]))
    loaded = mlflow.pyfunc.load_model(f"models:/{best.outputs.model_outputs[0].model_id}")
    np.testing.assert_array_equal(loaded.predict(pd.DataFrame(X)), model.predict(pd.DataFrame(X)))
    flavor = mlflow.models.get_model_info(f"models:/{best.outputs.model_outputs[0].model_id}").flavors["sklearn"]
    assert flavor["serialization_format"] == "skops"


class Constant(ClassifierMixin, BaseEstimator):
    """A class that skops does not know."""

    def fit(self, x: Any, y: Any) -> "Constant":
        self.classes_, self.most_ = np.unique(y), np.bincount(y).argmax()
        return self

    def predict(self, x: Any) -> Any:
        return np.full(len(x), self.most_)


def test_a_pipeline_and_a_class_of_ones_own_are_kept_too(project: Path) -> None:
    def build_any(hp: kerastuners.HyperParameters) -> Any:
        if hp.Choice("model", ["pipeline", "constant"]) == "constant":
            return Constant()
        return pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression())

    given = {"max_trials": 2, "seed": 1}
    grid = kerastuners.oracles.GridSearchOracle(kerastuners.Objective("score", "max"), **given)
    tuner = keras_tuner.SklearnTuner(grid, build_any)
    tuner.search(X, Y)
    first, second = tuner.get_best_models(2)
    assert first.score(X, Y) > 0.9
    assert isinstance(second, Constant)


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"cv": model_selection.StratifiedKFold(4)}, "folds"),
        ({"scoring": metrics.make_scorer(metrics.balanced_accuracy_score)}, "scoring"),
        ({"metrics": [accuracy]}, "metrics"),
    ],
)
def test_a_search_with_other_folds_or_scores_is_another_search(
    changed: dict[str, Any], name: str, project: Path
) -> None:
    keras_tuner.SklearnTuner(oracle(1), build, cv=model_selection.StratifiedKFold(3), project_name="s").search(X, Y)
    given = {"cv": model_selection.StratifiedKFold(3), **changed}
    with pytest.raises(SearchError, match=name):
        keras_tuner.SklearnTuner(oracle(1), build, project_name="s", **given).search(X, Y)


def test_a_splitter_without_a_seed_deals_the_same_folds_when_a_search_is_resumed(project: Path) -> None:
    scores = []
    for max_trials in (1, 2):
        tuner = keras_tuner.SklearnTuner(
            oracle(max_trials), build, cv=model_selection.StratifiedKFold(3, shuffle=True), project_name="s"
        )
        tuner.search(X, Y)
        scores.append(tuner.oracle.trials[tuner.trial_id(0)].score)
        np.random.random(7)
    assert scores[0] == scores[1]
    assert len(tuner.oracle.trials) == 2


def test_what_is_not_supported_is_refused(project: Path) -> None:
    class Mine(keras_tuner.SklearnTuner):
        def run_trial(self, *args: Any, **kwargs: Any) -> float:
            return 1.0

    with pytest.raises(ConfigError, match=r"Mine\.run_trial: is not called; override fakeface_lab\.Tuner\.run_trial"):
        Mine(oracle(), build)
    with pytest.raises(ConfigError, match="workers = 0, threads = 0"):
        keras_tuner.SklearnTuner(oracle(), build, workers=0)
