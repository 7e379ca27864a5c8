"""What every tuner of this project shares: its name, options and results are those of a search in the MLflow store."""

import os
import random
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from keras_tuner.engine import base_tuner
from keras_tuner.engine import trial as kt_trial

from fakeface_lab.backend import keras_tuner
from fakeface_lab.config import find_project
from fakeface_lab.errors import (
    AllTrialsFailedError,
    ConfigError,
    ModelError,
    TooManyFailuresError,
    without_credentials,
)
from fakeface_lab.keras_tuner.hypermodel_work import HypermodelWork
from fakeface_lab.keras_tuner.tuner_search import (
    choose_engine,
    choose_num_threads,
    open_tuner_search,
    run_tuner_search,
)
from fakeface_lab.search.ledger.executions import BEST_EXECUTION
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.ledger.resume import choose_threads, find_search
from fakeface_lab.search.run.placement import EngineKind, EngineSettings
from fakeface_lab.search.run.worker import launched_ahead
from fakeface_lab.search.search import Search
from fakeface_lab.search.suggest.oracles import reseeded
from fakeface_lab.search.suggest.template import deserialized
from fakeface_lab.terminal import console
from fakeface_lab.tracking.runs import StoredRun
from fakeface_lab.tracking.store import Store, open_store, resolve_tracking_uri
from fakeface_lab.tracking.writer import PatientWriter

__all__ = ["Options", "StoreTuner", "patient_writer"]

_PATIENCE_SECS = 600.0
_STATUSES = {"finished": "COMPLETED", "failed": "FAILED", "running": "RUNNING"}

# KerasTuner's distributed mode: a dead worker would hang its chief, and the port has no authentication.
_CHIEF_VARIABLES = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")


@dataclass(frozen=True)
class Options:
    """The arguments that KerasTuner's tuners do not have; see `Tuner`. A value out of range raises ConfigError."""

    training_seed: int = 0
    experiment: str | None = None
    tracking_uri: str | None = None
    workers: int = 1
    threads: int = 0
    engine: EngineKind | None = None
    hours: float | None = None
    keep_models: str = "all"
    hang_secs: float | None = None
    defaults_first: bool = True
    ray_address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    memory_per_trial: float | None = None
    checkpoint_storage: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1 or self.threads < 0 or self.engine not in ("local", "inline", "ray", None):
            raise ConfigError(
                f"workers = {self.workers}, threads = {self.threads}, engine = {self.engine!r}: give at least 1 "
                f"worker, 0 or more threads, and the engine local, ray or inline"
            )
        for name in ("cpus_per_trial", "memory_per_trial"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ConfigError(f"{name} = {value}: give a number above 0, or leave it out")
        if self.gpus_per_trial is not None and not 0 <= self.gpus_per_trial <= 1:
            raise ConfigError(f"gpus_per_trial = {self.gpus_per_trial}: give a share of a GPU, 0 to 1")
        if self.hang_secs is not None and self.hang_secs <= 0:
            raise ConfigError(f"hang_secs = {self.hang_secs}: give seconds above 0, or leave it out")
        if self.hours is not None and self.hours <= 0:
            raise ConfigError(f"hours = {self.hours}: give hours above 0, or leave it out")
        top = self.keep_models.removeprefix("top-")
        if self.keep_models not in ("all", "best") and not (top != self.keep_models and top.isdigit() and int(top)):
            raise ConfigError(f"keep_models = {self.keep_models!r}: give all, best, or top-K such as top-3")

    def engine_settings(self, kind: EngineKind, num_threads: int, hang_secs: float) -> EngineSettings:
        """Return the settings of an engine of this kind."""
        return EngineSettings(
            kind, self.workers, num_threads, hang_secs, self.ray_address, self.cpus_per_trial, self.gpus_per_trial,
            self.memory_per_trial, self.checkpoint_storage,
        )  # fmt: skip


class StoreTuner(base_tuner.BaseTuner):
    """A KerasTuner tuner that keeps all state in the MLflow store. Nothing is written to `directory`.

    Args:
        oracle: one of KerasTuner's or the user's own.
        hypermodel: what KerasTuner's tuner of the same name takes.
        directory: with `project_name` the name of the search, as in KerasTuner.
        project_name: name of the search.
        overwrite: start the search over under the same name; nothing is deleted.
        options: this project's own arguments.
        kwargs: further arguments of KerasTuner's class.

    Raises:
        ConfigError: KerasTuner's distributed mode is asked for.
    """

    def __init__(
        self,
        oracle: keras_tuner.Oracle,
        hypermodel: Any = None,
        *,
        directory: str | os.PathLike[str] | None = None,
        project_name: str | None = None,
        overwrite: bool = False,
        options: Options,
        **kwargs: Any,
    ) -> None:
        _refuse_chief()
        self.options, self._restart = options, overwrite
        self._ledger: Ledger | None = None
        self._earlier: list[Search] = []
        self._run_ids: dict[str, str] = {}
        self._found: list[dict[str, Any]] = []
        # Without `overwrite`, with which KerasTuner would delete the folder that the project's name denotes.
        super().__init__(oracle, hypermodel, directory=directory, project_name=project_name, **kwargs)

    @property
    def search_name(self) -> str:
        """Name of the search: directory and project name, as far as they are given."""
        folder = os.path.normpath(self.directory)
        return str(self.project_name) if folder == os.curdir else f"{Path(folder).as_posix()}/{self.project_name}"

    @property
    def project_dir(self) -> str:
        """Where the results are: the store and the name of the search; there is no folder."""
        uri = resolve_tracking_uri(self.options.tracking_uri, find_project())
        return f"{without_credentials(uri)}, search {self.search_name}"

    def search(self, *fit_args: Any, **fit_kwargs: Any) -> None:
        """Run or resume the search; the arguments are those of `HyperModel.fit` or of an overridden `run_trial`.

        Raises:
            AllTrialsFailedError: no trial has a score.
            ConfigError: an argument cannot be used; says why.
            FatalValueError: KerasTuner's; a callback cannot be copied.
            SearchError: a search of this name has other settings; names them.
            TrackingError: the store was unreachable for too long; run the same script again later.
        """
        was_quiet, console.quiet = console.quiet, console.quiet or fit_kwargs.get("verbose") == 0
        # Each training sets the seeds of both: the script's own random numbers go on as if there had been none.
        states = random.getstate(), np.random.get_state()
        try:
            if self.directory != os.curdir:
                console.print(f"nothing is written to {self.directory}: this search is kept in {self.project_dir}")
            self.on_search_begin()
            self.run_search(fit_args, fit_kwargs)
            self.on_search_end()
        finally:
            console.quiet = was_quiet
            random.setstate(states[0])
            np.random.set_state(states[1])

    def warm_start(self, search: str | Search, *, tracking_uri: str | None = None) -> None:
        """Tell the oracle of an older search's finished trials, where the spaces overlap; call it before `search`.

        The Bayesian oracle learns from them, random search and Hyperband do not try them again. They are kept with the
        new search, so that it resumes the same when the older one has grown meanwhile.

        Args:
            search: the older search: its name, the id of its parent run, or a `Search`.
            tracking_uri: the store of the older search; default: that of this one.

        Raises:
            NotFoundError: there is no such search.
            TrackingError: the store does not answer.
        """
        uri = tracking_uri or self.options.tracking_uri
        self._earlier.append(search if isinstance(search, Search) else Search(search, tracking_uri=uri))

    def run_search(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Run or resume the search with the arguments of `search`."""
        raise NotImplementedError

    def run_work(
        self, work: HypermodelWork, template: keras_tuner.Oracle, wanted: EngineKind | None, hang_secs: float
    ) -> None:
        """Run or resume the search whose trials `work` trains.

        Args:
            work: without the number of threads, which is chosen here.
            template: the oracle without trials.
            wanted: the kind of engine; None to choose.
            hang_secs: a worker without a training step for this long is killed.
        """
        kind = choose_engine(work, wanted)
        # A worker loads TensorFlow while the store is opened.
        with launched_ahead() if kind == "local" else nullcontext():
            self._run_by(kind, work, template, hang_secs)

    def _run_by(self, kind: EngineKind, work: HypermodelWork, template: keras_tuner.Oracle, hang_secs: float) -> None:
        store, options, seed = self.open_store(), self.options, self.options.training_seed
        threads = choose_threads(None if self._restart else find_search(store, self.search_name), options.threads)
        num_threads = choose_num_threads(kind, options.workers, threads)
        engine = options.engine_settings(kind, num_threads, hang_secs)
        work = replace(work, num_threads=num_threads, id_width=self.id_width)
        self._ledger, template = open_tuner_search(
            store, patient_writer(), self.search_name, work, template, self._earlier, seed=seed, restart=self._restart
        )
        self._restart = False
        try:
            run_tuner_search(
                self._ledger, template, work, engine, seed=seed, hours=options.hours, keep_models=options.keep_models
            )
        except (AllTrialsFailedError, TooManyFailuresError, keras_tuner.errors.FatalError):
            self.reload()  # for a script that looks at the trials of a search that has failed
            raise
        self.reload()

    def get_best_hyperparameters(self, num_trials: int = 1) -> list[keras_tuner.HyperParameters]:
        """Return the hyperparameters of the best finished trials, the best first."""
        return [trial.hyperparameters for trial in self.best_trials(num_trials)]

    def get_best_models(self, num_models: int = 1) -> list[Any]:
        """Return the models of the best finished trials, the best first, with their recorded weights."""
        return [self.load_model(trial) for trial in self.best_trials(num_models)]

    def results_summary(self, num_trials: int = 10) -> None:
        """Print the best trials as KerasTuner does."""
        self.reload()
        super().results_summary(num_trials)

    def save(self) -> None:
        """Do nothing: the store already has everything."""

    def reload(self) -> None:
        """Fill `oracle.trials` with the trials in the store."""
        store = self.open_store()
        found = find_search(store, self.search_name)
        if found is not None and not self._restart:
            self.show(Ledger(StoredRun(store, patient_writer(), found)))

    def open_store(self) -> Store:
        """Return the store, with the experiment of this search."""
        name = self.options.experiment or str(self.project_name)
        return open_store(self.options.tracking_uri, find_project(), name)

    def new_template(self) -> keras_tuner.Oracle:
        """Return a copy of the oracle without trials."""
        if self.oracle.trials:
            self.reload()
        self.oracle.trials = {}
        template = reseeded(self.oracle, self.oracle.seed)
        if not self.options.defaults_first:  # no attribute otherwise: it is part of the search's identity
            template.defaults_first = False
        return template

    def best_trials(self, num_trials: int) -> list[kt_trial.Trial]:
        """Return the best finished trials in the store, the best first."""
        self.reload()
        # KerasTuner appends failed trials if there are too few finished ones.
        best = self.oracle.get_best_trials(num_trials)
        return [trial for trial in best if trial.status == kt_trial.TrialStatus.COMPLETED]

    @property
    def id_width(self) -> int:
        """Digits of a trial id: those of the largest number of trials."""
        return len(str(self.oracle.max_trials))

    def trial_id(self, sequence: int) -> str:
        """Return KerasTuner's name of a trial: its number, padded to the width of the largest."""
        return str(sequence).zfill(self.id_width)

    def show(self, ledger: Ledger) -> None:
        """Fill `oracle.trials`, and note which run has the model of each trial."""
        self.oracle.trials, self._run_ids = {}, {}
        self._found = [hp for _, found in sorted(ledger.growth.items()) for hp in found]
        for trial in ledger.trials:
            shown = self.as_kerastuners(trial)
            self.oracle.trials[shown.trial_id] = shown
            # A repeated configuration has the result of an earlier trial, and its model.
            source = trial.tags.get("duplicate_of")
            own = trial.tags.get(BEST_EXECUTION, trial.run_id)
            self._run_ids[shown.trial_id] = own if source is None else self._run_ids[self.trial_id(int(source))]

    def as_kerastuners(self, trial: LedgerTrial) -> kt_trial.Trial:
        """Return a trial as KerasTuner represents it, with its metrics."""
        record, step = trial.record, int(trial.tags.get("kept_epoch", "0"))
        hp = self.oracle.get_space()
        hp.merge(deserialized(self._found), overwrite=False)
        hp.values = {**record.values, **record.bracket_values}
        # The default values, with which trial 0 begins, are those of inactive hyperparameters too.
        inactive = {one.name for one in hp.space} - {one.name for one in hp.space if hp.is_active(one)}
        hp.values = {name: value for name, value in hp.values.items() if name not in inactive}
        shown = kt_trial.Trial(hp, self.trial_id(record.sequence), _STATUSES[record.status])
        shown.score, shown.best_step = record.score, step
        shown.message = trial.tags.get("status_reason") or None
        if record.score is not None:
            objective = self.oracle.objective
            shown.metrics.register(objective.name, objective.direction)
            shown.metrics.update(objective.name, record.score, step=step)
        return shown

    def no_model(self, trial: kt_trial.Trial) -> ModelError:
        """Return the error that a trial has no model."""
        return ModelError(f"trial {trial.trial_id} of search {self.search_name}: its run has logged no model")

    def _get_tuner_fname(self) -> str:
        """Return the name of no file: KerasTuner would reload from it."""
        return ""


def patient_writer() -> PatientWriter:
    """Return the writer of a tuner: it waits ten minutes for a store that does not answer."""
    return PatientWriter(_PATIENCE_SECS, console.print)


def _refuse_chief() -> None:
    """Raise ConfigError if the environment asks for KerasTuner's distributed mode."""
    for name in _CHIEF_VARIABLES:
        if name in os.environ:
            raise ConfigError(
                f"{name}: KerasTuner's chief and workers are not supported; for several trials at a time unset it "
                f"and give workers="
            )
