"""KerasTuner's SklearnTuner on MLflow: each fold of a trial is a run of its own, with its scores and its model."""

import inspect
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import keras_tuner
from keras_tuner.engine import trial as kt_trial
from keras_tuner.src.tuners.sklearn_tuner import split_data
from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline

from fakeface_lab.backend import keras
from fakeface_lab.errors import ConfigError
from fakeface_lab.keras_tuner.hypermodel_work import HypermodelWork
from fakeface_lab.keras_tuner.store_tuner import Options, StoreTuner
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.tracking.models import load_sklearn_model, package_sklearn_model
from fakeface_lab.training.epochs import EpochRecord, Listener
from fakeface_lab.training.executions import train_trial
from fakeface_lab.training.fit_arguments import array_facts, pass_through
from fakeface_lab.training.hypermodel import ModelRecipe, found_in
from fakeface_lab.training.outcome import (
    MODEL,
    Outcome,
    empty_artifacts,
    peak_rss_bytes,
    read_whole_outcome,
    write_outcome,
)

__all__ = ["SklearnTuner", "SklearnWork"]


@dataclass(frozen=True)
class SklearnWork(HypermodelWork):
    """Fits one configuration of a scikit-learn model on each fold.

    Attributes:
        folds: rows to fit on and to score, for each fold.
        scoring: as of `SklearnTuner`.
        metrics: as of `SklearnTuner`.
    """

    folds: Sequence[tuple[Any, Any]] = field(kw_only=True)
    scoring: Any = field(kw_only=True)
    metrics: Sequence[Any] = field(kw_only=True)
    model_type: ClassVar[str] = "sklearn"

    @property
    def execution_names(self) -> Sequence[str]:
        """Names of the folds."""
        return [f"fold {number}" for number in range(len(self.folds))]

    def executions_settings(self) -> dict[str, Any]:
        """Return the digest of the folds' rows and the names of the scores."""
        return {
            "folds": array_facts({"folds": self.folds})[0],
            "scoring": _name(self.scoring),
            "metrics": [_name(metric) for metric in self.metrics],
        }

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        """Fit and score in this process and leave the results in `folder`."""

        def train(number: int, folder: Path, listener: Listener) -> Outcome:
            # Many models draw from NumPy's global state.
            keras.utils.set_random_seed(assignment.seed)
            return read_whole_outcome(folder) or self._fit(assignment.values, number, folder, listener)

        return train_trial(train, len(self.folds), self.objective, folder, listener)

    def _fit(self, values: Mapping[str, Any], number: int, folder: Path, listener: Listener) -> Outcome:
        given, (rows, held_out) = self.fit.kwargs, self.folds[number]
        weights = given["sample_weight"]
        hp = self.recipe.hyperparameters(values)
        model = self.recipe.hypermodel.build(hp)
        began = time.perf_counter()
        x, y = split_data(given["X"], rows), split_data(given["y"], rows)
        # KerasTuner's rule: a pipeline takes weights under the name of one of its steps only.
        takes_weights = "sample_weight" in inspect.getfullargspec(model.fit).args and not isinstance(model, Pipeline)
        model.fit(x, y, **({"sample_weight": None if weights is None else weights[rows]} if takes_weights else {}))
        metrics = self._score(model, held_out)
        metrics["epoch_secs"] = secs = time.perf_counter() - began
        artifacts = empty_artifacts(folder)
        (artifacts / "hyperparameters.json").write_text(json.dumps(dict(values), indent=2))
        package_sklearn_model(model, folder / MODEL, x[:1])
        record = EpochRecord(1, time.time_ns() // 1_000_000, metrics)
        ended = {"kept_epoch": 1.0, "num_epochs": 1.0, "train_secs": secs, "peak_rss_bytes": float(peak_rss_bytes())}
        outcome = Outcome([record], 1, ended, **found_in(self.recipe, hp))
        write_outcome(outcome, folder)
        listener.epoch_ended(record)
        return outcome

    def _score(self, model: BaseEstimator, rows: Any) -> dict[str, float]:
        given = self.fit.kwargs
        x, y = split_data(given["X"], rows), split_data(given["y"], rows)
        weights = None if given["sample_weight"] is None else given["sample_weight"][rows]
        score = (
            model.score(x, y, sample_weight=weights)
            if self.scoring is None
            else self.scoring(model, x, y, sample_weight=weights)
        )
        predicted = model.predict(x) if self.metrics else None
        others = {metric.__name__: float(metric(y, predicted, sample_weight=weights)) for metric in self.metrics}
        return {"score": float(score), **others}


class SklearnTuner(keras_tuner.SklearnTuner, StoreTuner):
    """KerasTuner's SklearnTuner; every fold is a run in MLflow, and the store holds all state.

    Args:
        oracle: one of KerasTuner's or the user's own; its objective is `Objective("score", "max")`.
        hypermodel: a `keras_tuner.HyperModel` or a function `build(hp)` that returns a scikit-learn model.
        scoring, metrics, cv: as in KerasTuner.
        kwargs: `directory`, `project_name`, `overwrite`, and this project's arguments as in `fakeface_lab.Tuner`.

    Raises:
        ConfigError: an argument is unknown or out of range, or `run_trial` is overridden.
    """

    def __init__(
        self, oracle: keras_tuner.Oracle, hypermodel: Any, scoring: Any = None, metrics: Any = None, cv: Any = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        if type(self).run_trial is not keras_tuner.SklearnTuner.run_trial:
            raise ConfigError(f"{type(self).__name__}.run_trial: is not called; override fakeface_lab.Tuner.run_trial")
        own = {name: kwargs.pop(name) for name in list(kwargs) if name in Options.__dataclass_fields__}
        super().__init__(
            oracle=oracle,
            hypermodel=hypermodel,
            scoring=scoring,
            metrics=metrics,
            cv=cv,
            options=Options(**own),
            **kwargs,
        )

    def search(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> None:
        """Run or resume the search.

        Args:
            X, y, sample_weight, groups: as in KerasTuner: arrays or tables of the same number of rows.

        Raises:
            AllTrialsFailedError, ConfigError, SearchError, TrackingError: as `fakeface_lab.Tuner.search`.
        """
        StoreTuner.search(self, X=X, y=y, sample_weight=sample_weight, groups=groups)

    def run_search(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Run or resume the search with the arguments of `search`."""
        given, options = dict(kwargs), self.options
        groups = given.pop("groups")
        by_group = {"groups": groups} if groups is not None else {}
        fit, template = pass_through((), given), self.new_template()
        # A splitter without a seed of its own draws from NumPy's state, and must deal the same folds when resumed.
        keras.utils.set_random_seed(options.training_seed)
        recipe = ModelRecipe(
            self.hypermodel, template.get_space(), {}, "float32", template.tune_new_entries, template.allow_new_entries
        )
        work = SklearnWork(
            recipe, self.oracle.objective, fit, passes_epochs=False, num_threads=0, dataset=fit.dataset_facts(),
            folds=list(self.cv.split(given["X"], given["y"], **by_group)), scoring=self.scoring, metrics=self.metrics,
        )  # fmt: skip
        # Most fits take less time than a worker process takes to start.
        engine = options.engine or ("local" if options.workers > 1 else "inline")
        self.run_work(work, template, engine, options.hang_secs or math.inf)

    def load_model(self, trial: kt_trial.Trial) -> BaseEstimator:
        """Return the model that was fitted on the fold with the best score.

        Raises:
            ModelError: the trial's runs have no model.
        """
        model = load_sklearn_model(self.open_store(), self._run_ids[trial.trial_id])
        if model is None:
            raise self.no_model(trial)
        return model


def _name(scorer: Any) -> str:
    """Return what a scorer or a metric is called in every process: the text of a function has its address."""
    return getattr(scorer, "__qualname__", None) or str(scorer)
