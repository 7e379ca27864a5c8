"""KerasTuner's `Tuner` with the MLflow store as its memory: any hypermodel, any oracle, the user's own data.

    tuner = fakeface_lab.Tuner(keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials=10), build)
    tuner.search(x, y, epochs=5, validation_split=0.2)

Started again, the script goes on where it was. Arrays are trained on in worker processes, which may die; a data set or
a generator stays in this process. See `hypermodel_work` for which trials go on from their last epoch.
"""

import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import cloudpickle
import numpy as np
import psutil
from keras_tuner.engine import trial as kt_trial

from fakeface_lab.backend import keras, keras_tuner, set_up_process, tf
from fakeface_lab.config import find_project
from fakeface_lab.console import console, print_places
from fakeface_lab.errors import ConfigError, ModelError
from fakeface_lab.recording import remove_work_folder
from fakeface_lab.search.counts import num_trials_at_most
from fakeface_lab.search.discovery import discover_in_build, discover_in_fit
from fakeface_lab.search.driver import Driver, Limits
from fakeface_lab.search.engines import Engine, Event, InlineEngine, LocalEngine
from fakeface_lab.search.fit_arguments import FitArguments, bind_fit_arguments, has_own_fit
from fakeface_lab.search.hypermodel_work import HypermodelWork, ImportPath, ModelRecipe
from fakeface_lab.search.ledger import Ledger, find_search, open_search
from fakeface_lab.search.oracles import default_values, reseeded
from fakeface_lab.search.progress import SearchProgress
from fakeface_lab.search.work import save_work
from fakeface_lab.tracking.models import as_model_input, fetch_model
from fakeface_lab.tracking.patience import PatientWriter
from fakeface_lab.tracking.runs import TrackedRun, sweep_dead_runs
from fakeface_lab.tracking.store import Store, open_store, resolve_tracking_uri

__all__ = ["Tuner"]

_PATIENCE_SECS = 600.0
_HANG_SECS = 1800.0

# What KerasTuner's Tuner takes and this one does not, and what to do instead.
_REFUSED = {
    "directory": "trials are kept in the MLflow store; choose it with tracking_uri= or MLFLOW_TRACKING_URI",
    "logger": "KerasTuner ignores it too; every trial is a run in MLflow",
    "tuner_id": "one process drives a search; for several trials at a time give workers=",
    "distribution_strategy": "each worker process takes one GPU; give workers=",
    "executions_per_trial": "hides their spread in a mean; search again with another seed= and project_name=",
}  # fmt: skip

# Settings of an oracle that may change while its search goes on, or that have no meaning here.
_FREE_ORACLE_SETTINGS = (
    "max_trials", "seed", "verbose", "max_retries_per_trial", "max_consecutive_failed_trials", "multi_worker",
    "should_report",
)  # fmt: skip


class Tuner(keras_tuner.Tuner):
    """KerasTuner's Tuner; every trial is a run in MLflow, and the store is the only memory.

    Args:
        oracle: any of KerasTuner's, or the user's own; it suggests, and trial 0 has all defaults.
        hypermodel: a `keras_tuner.HyperModel` or a function `build(hp)`.
        max_model_size: a trial whose model has more parameters fails.
        optimizer: replaces what the hypermodel compiles with; so do `loss` and `metrics`.
        loss: see `optimizer`.
        metrics: see `optimizer`.
        project_name: name of the search.
        overwrite: begin the search again under the same name; nothing is deleted.
        seed: of initial weights, data order and dropout, the same for every trial.
        experiment: name of the MLflow experiment, the project's name if not given; `MLFLOW_EXPERIMENT_NAME` wins.
        tracking_uri: the MLflow store; default: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the project folder.
        workers: trials at the same time.
        threads: of one training; equal results need equal threads; 0 shares the cores among the workers.
        engine: `local`: worker processes; `inline`: this process, whose TensorFlow is made deterministic; default:
            worker processes where everything can be sent to them.
        refused: what else KerasTuner's Tuner takes.

    Raises:
        ConfigError: an argument of KerasTuner's that has no meaning here; says what to do instead.
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
        engine: Literal["local", "inline"] | None = None,
        **refused: Any,
    ) -> None:
        _refuse(type(self), refused)
        if workers < 1 or threads < 0 or engine not in ("local", "inline", None):
            raise ConfigError(
                f"workers = {workers}, threads = {threads}, engine = {engine!r}: give at least 1 worker, 0 or more "
                f"threads, and the engine local or inline"
            )
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
        """Where the results are: the store and the name of the search. There is no folder."""
        return f"{resolve_tracking_uri(self._tracking_uri, find_project())}, search {self.project_name}"

    def search(self, *fit_args: Any, **fit_kwargs: Any) -> None:
        """Run the search, or go on with it; takes what `HyperModel.fit` takes, by default that of `keras.Model.fit`.

        Raises:
            AllTrialsFailedError: no trial has a score.
            ConfigError: an argument that cannot be used; says why.
            SearchError: a search of this name has other settings; names them.
            TrackingError: the store stayed away too long; run the same script again later.
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
        """Return the compiled models of the best finished trials, the best first, with the weights of their run."""
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
                warnings.simplefilter("ignore", UserWarning)  # that the file has no optimizer, which is meant
                model.load_weights(str(weights))
        return model

    def results_summary(self, num_trials: int = 10) -> None:
        """Print the best trials as KerasTuner does."""
        self.reload()
        super().results_summary(num_trials)

    def save(self) -> None:
        """Do nothing: the store has everything already."""

    def reload(self) -> None:
        """Show the trials that the store has, in `oracle.trials`."""
        store = self._open_store()
        found = find_search(store, self.project_name)
        if found is None or self._restart:
            return
        parent = TrackedRun(store, _writer(), found, store.work_folder, None)  # type: ignore[arg-type]  # read only
        self._show(Ledger(parent))

    def _get_tuner_fname(self) -> str:
        """Return no file: KerasTuner looks for one to reload."""
        return ""

    def _populate_initial_space(self) -> None:
        super()._populate_initial_space()
        if self.oracle.tune_new_entries:
            discover_in_build(self.oracle, self.hypermodel)

    def _search(self, fit_args: tuple[Any, ...], fit_kwargs: Mapping[str, Any]) -> None:
        fit = bind_fit_arguments(self.hypermodel, fit_args, fit_kwargs)
        template = self._make_template(fit)
        work, is_local = self._make_work(fit)
        num_trials = num_trials_at_most(template)
        store = self._open_store()
        ledger = open_search(
            store,
            _writer(),
            self.project_name,
            self._identity(work, template),
            {"seed": str(self._seed), "oracle_seed": str(template.seed), "data_digest": work.dataset[1]},
            restart=self._restart,
            existing_run_id=os.environ.get("MLFLOW_RUN_ID"),
        )
        self._restart = False
        parent = ledger.parent
        # An oracle without a seed draws one in each process.
        template = reseeded(template, int(parent.run.data.tags.get("oracle_seed", template.seed)))
        sweep_dead_runs(store)
        console.print(
            f"[bold]search[/]    {self.project_name}: {type(template).__name__}, {num_trials or 'any number of'} "
            f"trials, {len(ledger.trials)} recorded so far"
        )
        print_places(store, parent.name, parent.run_id)
        objective = work.objective
        progress_lines = SearchProgress(ledger, objective.name, objective.direction, num_trials, "the defaults")
        with parent.ending(), progress_lines as progress:
            make_engine = self._engine_maker(work, ledger) if is_local else _inline_maker(work)
            Driver(
                ledger, template, work, make_engine, Limits(fit.epochs or 1), seed=self._seed, observer=progress
            ).run()
        self._show(ledger)
        remove_work_folder(parent)

    def _make_template(self, fit: FitArguments) -> keras_tuner.Oracle:
        """Return the oracle as it is before any trial, its space complete."""
        if self._template is None:
            if has_own_fit(self.hypermodel) and self.oracle.tune_new_entries:
                discover_in_fit(self.oracle, self.hypermodel, fit.args, dict(fit.kwargs))
            if self.oracle.trials:
                self.reload()
            self.oracle.trials = {}
            self._template = reseeded(self.oracle, self.oracle.seed)
        self._template.max_trials = self.oracle.max_trials
        return self._template

    def _make_work(self, fit: FitArguments) -> tuple[HypermodelWork, bool]:
        """Return what a trial trains, and whether it can be done in worker processes."""
        hyperband = hasattr(self.oracle, "max_epochs")
        dataset = fit.dataset_facts()

        def make(num_threads: int) -> HypermodelWork:
            return HypermodelWork(
                ImportPath(), self._recipe(), self.oracle.objective, fit, hyperband or fit.epochs is not None,
                self.max_model_size, num_threads, dataset,
            )  # fmt: skip

        obstacle = "engine='inline'" if self._engine == "inline" else _obstacle(make(0))
        if obstacle is None:
            return make(self._threads or max(1, _num_cores() // self._workers)), True
        if self._engine == "local":
            raise ConfigError(
                f"engine='local': {obstacle} cannot be sent to a worker process; give arrays, or 'inline'"
            )
        if self._engine is None:
            console.print(
                f"trials run in this process: {obstacle} cannot be sent to a worker process. A crash ends the search "
                f"(start it again, it goes on)",
                style="yellow",
            )
        return make(_set_up_here(self._threads)), False

    def _recipe(self) -> ModelRecipe:
        given = {"optimizer": self.optimizer, "loss": self.loss, "metrics": self.metrics}
        return ModelRecipe(
            self.hypermodel,
            (self._template or self.oracle).get_space(),
            {key: value for key, value in given.items() if value is not None},
            keras.config.dtype_policy().name,
            accepts_undeclared=not self.oracle.tune_new_entries,
        )

    def _identity(self, work: HypermodelWork, template: keras_tuner.Oracle) -> dict[str, Any]:
        """Return what must be equal for trials to belong to one search."""
        settings = {
            key: value
            for key, value in vars(template).items()
            if key not in _FREE_ORACLE_SETTINGS and not key.startswith("_")
            and (value is None or isinstance(value, (int, float, str)))
        }  # fmt: skip
        return {
            "oracle": {"class": type(template).__name__, **settings},
            "objective": str(work.objective),
            "space": {hp.name: hp.get_config() for hp in template.hyperparameters.space},
            "model": _model_digest(work.recipe, self._seed),
            "data_digest": work.dataset[1],
            "fit": work.fit.settings(),
            "epochs": work.fit.epochs,
            "seed": self._seed,
            "num_threads": work.num_threads,
        }

    def _engine_maker(self, work: HypermodelWork, ledger: Ledger) -> Callable[[Callable[[Event], None]], Engine]:
        path = save_work(work, ledger.parent.folder)
        gpus = [str(index) for index, _ in enumerate(tf.config.list_physical_devices("GPU"))]
        return lambda handler: LocalEngine(
            path, handler, num_workers=self._workers, num_threads=work.num_threads, hang_secs=_HANG_SECS, gpus=gpus
        )

    def _open_store(self) -> Store:
        return open_store(self._tracking_uri, find_project(), self._experiment or self.project_name)

    def _best_trials(self, num_trials: int) -> list[kt_trial.Trial]:
        self.reload()
        # KerasTuner fills up with failed ones.
        best = self.oracle.get_best_trials(num_trials)
        return [trial for trial in best if trial.status == kt_trial.TrialStatus.COMPLETED]

    def _show(self, ledger: Ledger) -> None:
        statuses = {"finished": "COMPLETED", "failed": "FAILED", "running": "RUNNING"}
        self.oracle.trials, self._run_ids = {}, {}
        for trial in ledger.trials:
            record = trial.record
            hp = self.oracle.get_space()
            hp.values = {**record.values, **record.bracket_values}
            shown = kt_trial.Trial(hp, str(record.sequence), statuses[record.status])
            shown.score = record.score
            shown.best_step = int(trial.tags.get("kept_epoch", "0"))
            shown.message = trial.tags.get("status_reason") or None
            self.oracle.trials[shown.trial_id] = shown
            # A repeated configuration has the result of an earlier trial, and its model.
            source = trial.tags.get("duplicate_of")
            self._run_ids[shown.trial_id] = self._run_ids[source] if source is not None else trial.run_id


def _refuse(tuner: type[Tuner], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name not in _REFUSED:
            raise ConfigError(f"{name}: unknown argument; see help(fakeface_lab.Tuner)")
        if value is not None and not (name == "executions_per_trial" and value == 1):
            raise ConfigError(f"{name}: not taken; {_REFUSED[name]}")
    if tuner.run_trial is not keras_tuner.Tuner.run_trial:
        raise ConfigError(f"{tuner.__name__}.run_trial: is not called; override HyperModel.fit instead")


def _writer() -> PatientWriter:
    return PatientWriter(_PATIENCE_SECS, console.print)


def _inline_maker(work: HypermodelWork) -> Callable[[Callable[[Event], None]], Engine]:
    return lambda handler: InlineEngine(work, handler)


class _Sendable(cloudpickle.Pickler):
    """Tries whether something can be pickled, without its arrays."""

    def persistent_id(self, obj: object) -> str | None:
        return "array" if isinstance(obj, np.ndarray) and not obj.dtype.hasobject else None


def _obstacle(work: HypermodelWork) -> str | None:
    """Return what keeps the work from being sent to a worker process, or None."""
    parts = {
        "the hypermodel": work.recipe,
        "a callback": work.fit.callbacks,
        "what search() was given": (work.fit.args, work.fit.kwargs),
    }
    for name, part in parts.items():
        try:
            _Sendable(io.BytesIO()).dump(part)
        except Exception as err:  # whatever the user's object raises
            return f"{name} ({str(err).partition(chr(10))[0]})"
    return None


def _num_cores() -> int:
    process = psutil.Process()
    # macOS has no affinity.
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1


def _set_up_here(threads: int) -> int:
    """Make this process deterministic, and return its number of threads: fixed once TensorFlow has begun to work."""
    try:
        return set_up_process(threads)
    except RuntimeError as err:
        fixed = int(tf.config.threading.get_intra_op_parallelism_threads()) or _num_cores()
        if threads not in (0, fixed):
            raise ConfigError(
                f"threads = {threads}: TensorFlow already runs with {fixed} in this process; leave threads out"
            ) from err
        tf.config.experimental.enable_op_determinism()
        return fixed


def _model_digest(recipe: ModelRecipe, seed: int) -> str:
    """Return a digest of the model at all defaults; empty where it cannot be described."""
    try:
        model = recipe.build(recipe.hyperparameters(default_values(recipe.space)), seed)
        return hashlib.sha256(model.to_json().encode()).hexdigest()[:16]
    except Exception:  # a subclass without a description, or a build that fails: its trial will tell
        return ""
