"""KerasTuner's `Tuner` with the MLflow store as its memory: any hypermodel, any oracle, the user's own data.

    tuner = fakeface_lab.Tuner(keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials=10), build)
    tuner.search(x, y, epochs=5, validation_split=0.2)

Run the script again to resume. On arrays, trials run in worker processes, which may die; on a data set or a generator
they run in this process. `hypermodel_work` says which trials resume from their last epoch.
"""

import math
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from keras_tuner.engine import trial as kt_trial

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.config import find_project
from fakeface_lab.errors import ConfigError, ModelError, without_credentials
from fakeface_lab.search.hypermodel_work import HypermodelWork
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.ledger.resume import choose_threads, find_search
from fakeface_lab.search.run.engine import Placement
from fakeface_lab.search.session import choose_placement, open_tuner_search, run_tuner_search
from fakeface_lab.search.suggest.oracles import reseeded
from fakeface_lab.terminal import console
from fakeface_lab.tracking.models import as_model_input, fetch_model
from fakeface_lab.tracking.runs import StoredRun
from fakeface_lab.tracking.store import Store, open_store, resolve_tracking_uri
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.fit_arguments import FitArguments, bind_fit_arguments, has_own_fit
from fakeface_lab.training.hypermodel import ModelRecipe, discover_in_build, discover_in_fit

__all__ = ["Tuner"]

_PATIENCE_SECS = 600.0
_HANG_SECS = 1800.0
_STATUSES = {"finished": "COMPLETED", "failed": "FAILED", "running": "RUNNING"}


class Tuner(keras_tuner.Tuner):
    """KerasTuner's Tuner; every trial is a run in MLflow, and the store is the only memory.

    Args:
        oracle: one of KerasTuner's or the user's own; trial 0 always has the default values.
        hypermodel: a `keras_tuner.HyperModel` or a function `build(hp)`.
        max_model_size: a trial whose model has more parameters fails.
        optimizer, loss, metrics: replace those that the hypermodel compiles with.
        project_name: name of the search.
        overwrite: start the search over under the same name; nothing is deleted.
        seed: of initial weights, data order and dropout, the same for every trial.
        experiment: name of the MLflow experiment; `MLFLOW_EXPERIMENT_NAME` wins. Default: `project_name`.
        tracking_uri: the MLflow store; default: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the project folder.
        workers: trials at the same time.
        threads: threads per training; results are only equal with equal threads. 0 shares the cores among the workers.
        engine: `local`: worker processes; `inline`: this process, whose TensorFlow is made deterministic. Default:
            worker processes if everything can be sent to them.
        hang_secs: a worker without a training step for this long is killed and its trial retried. Default: half an
            hour; no limit if `HyperModel.fit` is the user's own, which may never report a step.
        refused: further arguments of KerasTuner's Tuner.

    Raises:
        ConfigError: an argument of KerasTuner's that is not supported; says what to do instead.
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        hypermodel: Any,
        *,
        max_model_size: int | None = None,
        optimizer: Any = None,
        loss: Any = None,
        metrics: Any = None,
        project_name: str | None = None,
        overwrite: bool = False,
        seed: int = 0,
        experiment: str | None = None,
        tracking_uri: str | None = None,
        workers: int = 1,
        threads: int = 0,
        engine: Placement | None = None,
        hang_secs: float | None = None,
        **refused: Any,
    ) -> None:
        _refuse_arguments(type(self), refused)
        if workers < 1 or threads < 0 or engine not in ("local", "inline", None):
            raise ConfigError(
                f"workers = {workers}, threads = {threads}, engine = {engine!r}: give at least 1 worker, 0 or more "
                f"threads, and the engine local or inline"
            )
        if hang_secs is not None and hang_secs <= 0:
            raise ConfigError(f"hang_secs = {hang_secs}: give seconds above 0, or leave it out")
        self._hang_secs = hang_secs
        self._seed, self._experiment, self._tracking_uri = seed, experiment, tracking_uri
        self._workers, self._threads, self._engine, self._restart = workers, threads, engine, overwrite
        self._template: keras_tuner.Oracle | None = None
        self._run_ids: dict[str, str] = {}
        super().__init__(
            oracle, hypermodel, max_model_size=max_model_size, optimizer=optimizer, loss=loss, metrics=metrics,
            project_name=project_name,
        )  # fmt: skip

    @property
    def project_dir(self) -> str:
        """Where the results are: the store and the name of the search; there is no folder."""
        uri = resolve_tracking_uri(self._tracking_uri, find_project())
        return f"{without_credentials(uri)}, search {self.project_name}"

    def search(self, *fit_args: Any, **fit_kwargs: Any) -> None:
        """Run or resume the search; takes the arguments of `HyperModel.fit`, by default those of `keras.Model.fit`.

        Raises:
            AllTrialsFailedError: no trial has a score.
            ConfigError: an argument cannot be used; says why.
            FatalValueError: a callback cannot be copied.
            SearchError: a search of this name has other settings; names them.
            TrackingError: the store was unreachable for too long; run the same script again later.
        """
        was_quiet, console.quiet = console.quiet, console.quiet or fit_kwargs.get("verbose") == 0
        try:
            self._search(fit_args, fit_kwargs)
        finally:
            console.quiet = was_quiet

    def get_best_hyperparameters(self, num_trials: int = 1) -> list[keras_tuner.HyperParameters]:
        """Return the hyperparameters of the best finished trials, the best first."""
        return [trial.hyperparameters for trial in self._best_trials(num_trials)]

    def get_best_models(self, num_models: int = 1) -> list[keras.Model]:
        """Return the compiled models of the best finished trials, the best first, with their recorded weights."""
        return [self.load_model(trial) for trial in self._best_trials(num_models)]

    def load_model(self, trial: kt_trial.Trial) -> keras.Model:
        """Return the model of a trial with the weights that its score describes.

        Raises:
            ModelError: the trial's run has no model.
        """
        store = self._open_store()
        with tempfile.TemporaryDirectory() as folder:
            fetched = fetch_model(store, self._run_ids[trial.trial_id], Path(folder))
            if fetched is None:
                raise ModelError(f"trial {trial.trial_id} of search {self.project_name}: its run has logged no model")
            weights, example = fetched
            recipe = self._recipe()
            model = recipe.build(recipe.hyperparameters(trial.hyperparameters.values), self._seed)
            if not model.built:
                model(as_model_input(example))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the file has no optimizer on purpose
                model.load_weights(str(weights))
        return model

    def results_summary(self, num_trials: int = 10) -> None:
        """Print the best trials as KerasTuner does."""
        self.reload()
        super().results_summary(num_trials)

    def save(self) -> None:
        """Do nothing: the store already has everything."""

    def reload(self) -> None:
        """Fill `oracle.trials` with the trials in the store."""
        store = self._open_store()
        found = find_search(store, self.project_name)
        if found is not None and not self._restart:
            self._show(Ledger(StoredRun(store, _writer(), found)))

    def _get_tuner_fname(self) -> str:
        """Return the name of no file: KerasTuner would reload from it."""
        return ""

    def _populate_initial_space(self) -> None:
        super()._populate_initial_space()
        if self.oracle.tune_new_entries:
            discover_in_build(self.oracle, self.hypermodel)

    def _search(self, fit_args: tuple[Any, ...], fit_kwargs: Mapping[str, Any]) -> None:
        fit = bind_fit_arguments(self.hypermodel, fit_args, fit_kwargs)
        template = self._make_template(fit)
        work, placement = self._make_work(fit)
        ledger, template = open_tuner_search(
            self._open_store(), _writer(), self.project_name, work, template, seed=self._seed, restart=self._restart
        )
        self._restart = False
        hang_secs = self._hang_secs or (math.inf if has_own_fit(self.hypermodel) else _HANG_SECS)
        run_tuner_search(ledger, template, work, placement, workers=self._workers, hang_secs=hang_secs, seed=self._seed)
        self._show(ledger)

    def _make_template(self, fit: FitArguments) -> keras_tuner.Oracle:
        """Return the oracle without trials and with its complete space."""
        if self._template is None:
            if has_own_fit(self.hypermodel) and self.oracle.tune_new_entries:
                discover_in_fit(self.oracle, self.hypermodel, fit.args, dict(fit.kwargs))
            if self.oracle.trials:
                self.reload()
            self.oracle.trials = {}
            self._template = reseeded(self.oracle, self.oracle.seed)
        self._template.max_trials = self.oracle.max_trials
        return self._template

    def _make_work(self, fit: FitArguments) -> tuple[HypermodelWork, Placement]:
        """Return what a trial trains, and where."""
        passes_epochs = fit.epochs is not None or hasattr(self.oracle, "max_epochs")  # Hyperband
        work = HypermodelWork(self._recipe(), self.oracle.objective, fit, passes_epochs, 0, fit.dataset_facts())
        earlier = None if self._restart else find_search(self._open_store(), self.project_name)
        threads = choose_threads(earlier, self._threads)
        placement, num_threads = choose_placement(work, self._engine, self._workers, threads)
        return replace(work, num_threads=num_threads), placement

    def _recipe(self) -> ModelRecipe:
        given = {"optimizer": self.optimizer, "loss": self.loss, "metrics": self.metrics}
        return ModelRecipe(
            self.hypermodel,
            (self._template or self.oracle).get_space(),
            {key: value for key, value in given.items() if value is not None},
            keras.config.dtype_policy().name,
            accepts_undeclared=not self.oracle.tune_new_entries,
            max_model_size=self.max_model_size,
        )

    def _open_store(self) -> Store:
        return open_store(self._tracking_uri, find_project(), self._experiment or self.project_name)

    def _best_trials(self, num_trials: int) -> list[kt_trial.Trial]:
        self.reload()
        # KerasTuner appends failed trials if there are too few finished ones.
        best = self.oracle.get_best_trials(num_trials)
        return [trial for trial in best if trial.status == kt_trial.TrialStatus.COMPLETED]

    def _show(self, ledger: Ledger) -> None:
        """Fill `oracle.trials`, and note which run has the model of each trial."""
        self.oracle.trials, self._run_ids = {}, {}
        for trial in ledger.trials:
            record = trial.record
            hp = self.oracle.get_space()
            hp.values = {**record.values, **record.bracket_values}
            shown = kt_trial.Trial(hp, str(record.sequence), _STATUSES[record.status])
            shown.score = record.score
            shown.best_step = int(trial.tags.get("kept_epoch", "0"))
            shown.message = trial.tags.get("status_reason") or None
            self.oracle.trials[shown.trial_id] = shown
            # A repeated configuration has the result of an earlier trial, and its model.
            source = trial.tags.get("duplicate_of")
            self._run_ids[shown.trial_id] = trial.run_id if source is None else self._run_ids[source]


def _writer() -> PatientWriter:
    return PatientWriter(_PATIENCE_SECS, console.print)


_REFUSED = {
    "directory": "trials are kept in the MLflow store; choose it with tracking_uri= or MLFLOW_TRACKING_URI",
    "logger": "KerasTuner ignores it too; every trial is a run in MLflow",
    "tuner_id": "one process drives a search; for several trials at a time give workers=",
    "distribution_strategy": "each worker process takes one GPU; give workers=",
    "executions_per_trial": "hides their spread in a mean; search again with another seed= and project_name=",
}  # fmt: skip


def _refuse_arguments(tuner: type[keras_tuner.Tuner], given: Mapping[str, Any]) -> None:
    """Raise ConfigError for an argument, or a method of a subclass, that would be ignored."""
    for name, value in given.items():
        if name not in _REFUSED:
            raise ConfigError(f"{name}: unknown argument; see help(fakeface_lab.Tuner)")
        if value is not None and not (name == "executions_per_trial" and value == 1):
            raise ConfigError(f"{name}: not supported; {_REFUSED[name]}")
    if tuner.run_trial is not keras_tuner.Tuner.run_trial:
        raise ConfigError(f"{tuner.__name__}.run_trial: is never called; override HyperModel.fit instead")
