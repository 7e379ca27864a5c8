"""KerasTuner's `Tuner` with its state in the MLflow store: any hypermodel, any oracle, the user's own data.

    tuner = fakeface_lab.Tuner(keras_tuner.oracles.RandomSearchOracle("val_loss", max_trials=10), build)
    tuner.search(x, y, epochs=5, validation_split=0.2)

Run the script again to resume. On arrays, trials run in worker processes, which may die; on a data set or a generator
they run in this process. `hypermodel_work` says which trials resume from their last epoch.
"""

import math
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_tuner.engine import trial as kt_trial
from keras_tuner.src.engine import tuner_utils

from fakeface_lab.backend import hide_gpus, keras, keras_tuner
from fakeface_lab.errors import ConfigError
from fakeface_lab.keras_tuner.custom_work import TRIAL_FILES, Attempt, CustomWork, overrides
from fakeface_lab.keras_tuner.discovery import discover_in_build, discover_in_fit
from fakeface_lab.keras_tuner.hypermodel_work import HypermodelWork
from fakeface_lab.keras_tuner.store_tuner import Options, StoreTuner
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.search.run.placement import EngineKind
from fakeface_lab.search.suggest.template import grown_space, set_growth
from fakeface_lab.terminal import console
from fakeface_lab.tracking.lookup import fetch_artifact, get_run
from fakeface_lab.tracking.models import as_model_input, fetch_model, load_logged_model, package_model
from fakeface_lab.training.epochs import Listener
from fakeface_lab.training.executions import CrossValidation, require_foldable, train_trial
from fakeface_lab.training.fit_arguments import FitArguments, bind_fit_arguments, has_own_fit, pass_through
from fakeface_lab.training.hypermodel import ModelRecipe, build_variables, train_hypermodel
from fakeface_lab.training.outcome import MODEL, Outcome

__all__ = ["Tuner"]

_HANG_SECS = 1800.0


class Tuner(StoreTuner, keras_tuner.Tuner):
    """KerasTuner's Tuner; every trial is a run in MLflow, and the store holds all state.

    The arguments up to `executions_per_trial` are KerasTuner's.

    Args:
        oracle: one of KerasTuner's or the user's own.
        hypermodel: a `keras_tuner.HyperModel` or a function `build(hp)`.
        max_model_size: a trial whose model has more parameters fails.
        optimizer, loss, metrics: replace those that the hypermodel compiles with.
        distribution_strategy: refused; each worker process takes one GPU.
        directory: with `project_name` the name of the search; nothing is written there.
        project_name: name of the search.
        logger: ignored, as by KerasTuner.
        tuner_id: refused; one process drives a search.
        overwrite: start the search over under the same name; nothing is deleted.
        executions_per_trial: trainings of each configuration, with different seeds; the score is their mean.
        training_seed: of initial weights, data order and dropout, the same for every trial; execution k of a trial has
            the seed `training_seed` + k.
        experiment: name of the MLflow experiment; `MLFLOW_EXPERIMENT_NAME` wins. Default: `project_name`.
        tracking_uri: the MLflow store; default: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the project folder.
        workers: trials at the same time.
        threads: threads per training; results are only equal with equal threads. 0 shares the cores among the workers.
        engine: `local`: worker processes; `ray`: nodes of a cluster; `inline`: this process, whose TensorFlow is made
            deterministic. Default: worker processes if everything can be sent to them.
        hours: after this time over all restarts no trial is started; None for no limit.
        keep_models: `all`, `best` or `top-K`; the models of other trials are deleted from the store.
        hang_secs: a worker without a training step for this long is killed and its trial retried. Default: half an
            hour; no limit if `HyperModel.fit` is the user's own, which may never report a step.
        defaults_first: whether trial 0 has the default values. Without it the trials are those that KerasTuner's own
            tuner would try with the same seed.
        ray_address: of the cluster: `HOST:PORT`, or `auto` for the one on this machine. Default: `RAY_ADDRESS`, and
            without it a cluster of this machine alone.
        cpus_per_trial: cores that Ray reserves for a trial; default: its threads.
        gpus_per_trial: share of a GPU, 0 to 1; default: one, if there are any.
        memory_per_trial: a trial that uses more memory is ended, GB; Ray also reserves it.
        checkpoint_storage: path or URL that all nodes can write, for the checkpoints of unfinished trials; without it a
            trial whose node is lost starts again.
        kwargs: unknown arguments, which are refused.

    Raises:
        ConfigError: an argument is unknown, out of range, or not supported; says what to do instead.
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        hypermodel: Any = None,
        max_model_size: int | None = None,
        optimizer: Any = None,
        loss: Any = None,
        metrics: Any = None,
        distribution_strategy: Any = None,
        directory: str | os.PathLike[str] | None = None,
        project_name: str | None = None,
        logger: Any = None,
        tuner_id: str | None = None,
        overwrite: bool = False,
        executions_per_trial: int = 1,
        *,
        training_seed: int = 0,
        experiment: str | None = None,
        tracking_uri: str | None = None,
        workers: int = 1,
        threads: int = 0,
        engine: EngineKind | None = None,
        hours: float | None = None,
        keep_models: str = "all",
        hang_secs: float | None = None,
        defaults_first: bool = True,
        ray_address: str | None = None,
        cpus_per_trial: float | None = None,
        gpus_per_trial: float | None = None,
        memory_per_trial: float | None = None,
        checkpoint_storage: str | None = None,
        **kwargs: Any,
    ) -> None:
        _refuse(distribution_strategy, tuner_id, executions_per_trial, kwargs)
        if engine in ("local", "ray"):
            # Before KerasTuner builds the first model, with which TensorFlow would take a GPU for good.
            hide_gpus()
        options = Options(
            training_seed, experiment, tracking_uri, workers, threads, engine, hours, keep_models, hang_secs,
            defaults_first, ray_address, cpus_per_trial, gpus_per_trial, memory_per_trial, checkpoint_storage,
        )  # fmt: skip
        self._template: keras_tuner.Oracle | None = None
        self.attempt: Attempt | None = None
        self._copies = tempfile.TemporaryDirectory(prefix="fakeface-trials-")
        if hypermodel is None and not overrides(type(self), Tuner):
            raise ConfigError("hypermodel: give a build function or HyperModel, or override run_trial")
        super().__init__(
            oracle, hypermodel, directory=directory, project_name=project_name, overwrite=overwrite, options=options,
            max_model_size=max_model_size, optimizer=optimizer, loss=loss, metrics=metrics, logger=logger,
            executions_per_trial=executions_per_trial,
        )  # fmt: skip

    def run_trial(self, trial: kt_trial.Trial, *args: Any, **kwargs: Any) -> Any:
        """Train the executions of a trial; an overridden `run_trial` calls it through `super()`.

        Args:
            trial: as given to the user's `run_trial`.
            args, kwargs: for `HyperModel.fit`.

        Returns:
            A History per execution.
        """
        attempt = self.attempt
        assert attempt is not None, "run_trial is called by search"
        if "tuner/initial_epoch" in trial.hyperparameters.values:
            kwargs.pop("initial_epoch", None)  # the checkpoint says it
        attempt.is_recorded = True
        fit = bind_fit_arguments(self.hypermodel, args, kwargs)
        hook, is_hyperband = tuner_utils.TunerCallback(self, trial), hasattr(self.oracle, "max_epochs")

        def train(number: int, folder: Path, listener: Listener) -> Outcome:
            return train_hypermodel(
                self._recipe(), fit, self.oracle.objective, trial.hyperparameters.values,
                name=trial.trial_id, execution=number, epochs=fit.epochs or 1,
                seed=self.options.training_seed + number, passes_epochs=fit.epochs is not None,
                data_digest=fit.dataset_facts()[1], folder=folder, listener=listener, extra_callbacks=[hook],
                has_checkpoints=is_hyperband and fit.can_resume,
            )  # fmt: skip

        attempt.trained = train_trial(
            train, self.executions_per_trial, self.oracle.objective, attempt.folder, attempt.listener
        )
        return [_as_history(outcome) for outcome in attempt.trained.executions or [attempt.trained]]

    def on_trial_end(self, trial: kt_trial.Trial) -> None:
        """Do nothing: the search has recorded the result."""

    def begin_trial(self, assignment: Assignment) -> kt_trial.Trial:
        """Return the trial that an overridden `run_trial` is given."""
        assert self._ledger is not None
        sequence = int(assignment.key.removeprefix("trial-"))
        assert self._template is not None
        set_growth(self._template, self._ledger.growth)
        hp = grown_space(self._template)
        hp.values = {**assignment.values, **self._ledger.trials[sequence].record.bracket_values}
        trial = kt_trial.Trial(hp, self.trial_id(sequence), kt_trial.TrialStatus.RUNNING)
        self.oracle.trials[trial.trial_id] = trial
        return trial

    def get_trial_dir(self, trial_id: str) -> str:
        """Return a folder for files of a trial; they become artifacts of its run.

        For an earlier trial it is a copy of them.
        """
        if self.attempt is not None and trial_id == self.attempt.trial.trial_id:
            return str(self.attempt.files)
        folder = Path(self._copies.name, trial_id)
        if not folder.exists():
            self.reload()
            store, copies = self.open_store(), folder.with_name(f"{trial_id}.copy")
            copies.mkdir()
            fetch_artifact(store, get_run(store, self._run_ids[trial_id]), TRIAL_FILES, copies)
            (copies / TRIAL_FILES).rename(folder)
        return str(folder)

    def save_model(self, trial_id: str, model: keras.Model, step: int = 0) -> None:
        """Save the model of the running trial; called by an overridden `run_trial`."""
        assert self.attempt is not None, "save_model is called by run_trial"
        package_model(model, self.attempt.folder / MODEL, None, {"objective": self.oracle.objective.name})

    def load_model(self, trial: kt_trial.Trial) -> keras.Model:
        """Return the model of a trial with the weights that its score describes.

        Raises:
            ModelError: the trial's run has no model.
        """
        store = self.open_store()
        with tempfile.TemporaryDirectory() as folder:
            run_id = self._run_ids[trial.trial_id]
            if self.hypermodel is None:
                model = load_logged_model(store, run_id)
                if model is None:
                    raise self.no_model(trial)
                return model
            fetched = fetch_model(store, run_id, Path(folder))
            if fetched is None:
                raise self.no_model(trial)
            weights, example = fetched
            recipe = self._recipe()
            model = recipe.build(recipe.hyperparameters(trial.hyperparameters.values), self.options.training_seed)
            build_variables(model, as_model_input(example))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the file has no optimizer on purpose
                model.load_weights(str(weights))
        return model

    @property
    def _discovers(self) -> bool:
        """Whether the space is searched for more hyperparameters than KerasTuner finds before a search."""
        return self.options.defaults_first and self.oracle.tune_new_entries and self.oracle.allow_new_entries

    def run_search(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Run or resume the search."""
        is_custom = overrides(type(self), Tuner)
        fit = pass_through(args, kwargs) if is_custom else bind_fit_arguments(self.hypermodel, args, kwargs)
        if isinstance(self.hypermodel, CrossValidation):
            require_foldable(fit)
        if fit.obstacle is not None:
            console.print(f"an interrupted trial restarts at its first epoch: {fit.obstacle}", style="yellow")
        passes_epochs = fit.epochs is not None or hasattr(self.oracle, "max_epochs")  # Hyperband
        template = self._make_template(fit)
        facts = (self._recipe(), self.oracle.objective, fit, passes_epochs, 0, fit.dataset_facts())
        hang_secs = self.options.hang_secs or (math.inf if is_custom or has_own_fit(self.hypermodel) else _HANG_SECS)
        work, engine = HypermodelWork(*facts, self.executions_per_trial), self.options.engine
        if is_custom:
            self._require_inline()
            work, engine = CustomWork(*facts, self.executions_per_trial, tuner=self), "inline"
        self.run_work(work, template, engine, hang_secs)

    def _make_template(self, fit: FitArguments) -> keras_tuner.Oracle:
        """Return the oracle without trials, with the space that the search begins with."""
        if self._template is None:
            if self.hypermodel is not None and self._discovers:
                discover_in_build(self.oracle, self.hypermodel)
                if has_own_fit(self.hypermodel):
                    discover_in_fit(self.oracle, self.hypermodel, fit.args, dict(fit.kwargs))
            self._template = self.new_template()
        self._template.max_trials = self.oracle.max_trials
        return self._template

    def _require_inline(self) -> None:
        """Raise ConfigError if worker processes are wanted: the user's methods are those of this object."""
        if self.options.engine in ("local", "ray") or self.options.workers > 1:
            raise ConfigError(
                f"workers = {self.options.workers}, engine = {self.options.engine!r}: {type(self).__name__} overrides "
                f"methods that are called during a trial, so its trials run in this process one by one"
            )

    def _recipe(self) -> ModelRecipe:
        given = {"optimizer": self.optimizer, "loss": self.loss, "metrics": self.metrics}
        return ModelRecipe(
            self.hypermodel,
            (self._template or self.oracle).get_space(),
            {key: value for key, value in given.items() if value is not None},
            keras.config.dtype_policy().name,
            self.oracle.tune_new_entries,
            self.oracle.allow_new_entries,
            max_model_size=self.max_model_size,
        )


def _as_history(outcome: Outcome) -> keras.callbacks.History:
    """Return what `fit` would have returned: the metrics of every epoch."""
    history = keras.callbacks.History()
    history.on_train_begin()
    for record in outcome.records:
        history.epoch.append(record.epoch - 1)
        for name, value in record.metrics.items():
            history.history.setdefault(name, []).append(value)
    return history


_NOT_SUPPORTED = {
    "tuner_id": "one process drives a search; for several trials at a time give workers=, for several machines "
    "engine='ray'",
    "distribution_strategy": "each worker process takes one GPU; give workers=",
}


def _refuse(distribution_strategy: Any, tuner_id: Any, executions: int, unknown: dict[str, Any]) -> None:
    """Raise ConfigError for arguments that would be ignored."""
    for name in unknown:
        raise ConfigError(f"{name}: unknown argument; see help(fakeface_lab.Tuner)")
    for name, value in (("distribution_strategy", distribution_strategy), ("tuner_id", tuner_id)):
        if value is not None:
            raise ConfigError(f"{name}: not supported; {_NOT_SUPPORTED[name]}")
    if executions < 1:
        raise ConfigError(f"executions_per_trial = {executions}: give 1 or more")
