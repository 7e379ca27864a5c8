"""What `Tuner` trains: any hypermodel, on what the user gave to `search`.

A trial goes on from its last epoch where the order of the data is this project's own (arrays, no callbacks of the
user's, no `HyperModel.fit` of the user's); else it begins again at its first epoch, with the same result wherever the
data come in the same order again.
"""

import copy
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from keras_tuner.src.engine import tuner_utils

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.checkpoint import load_weights, save_checkpoint, save_weights
from fakeface_lab.errors import ModelError, SearchError
from fakeface_lab.figures.training import curve_figures
from fakeface_lab.results import ARTIFACTS, MODEL, Outcome, read_outcome
from fakeface_lab.search.fit_arguments import EpochOrder, FitArguments, has_own_fit
from fakeface_lab.search.work import Assignment
from fakeface_lab.tracking.models import INPUT_PREFIX, log_model, package_model
from fakeface_lab.tracking.provenance import host_facts, package_versions
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.training import EpochRecord, Listener, TrainingRecorder

__all__ = ["HypermodelWork", "ImportPath", "ModelRecipe"]

_INACTIVE = "-"
_LABEL_CHARS = 60
_MEASURED = ("epoch_secs",)  # differs between two equal trainings


class ImportPath:
    """When it arrives in a worker process, modules can be imported there from wherever they can here.

    Put it first: pickle goes through an object's attributes in their order.
    """

    def __reduce__(self) -> tuple[Callable[[list[str]], "ImportPath"], tuple[list[str]]]:
        here = str(Path.cwd())
        return _extend_import_path, ([folder or here for folder in sys.path],)


def _extend_import_path(folders: list[str]) -> ImportPath:
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    return ImportPath()


@dataclass(frozen=True)
class ModelRecipe:
    """How a model is made from values.

    Attributes:
        hypermodel: the user's.
        space: all hyperparameters that can appear.
        compile_args: replace what the hypermodel compiles with (`optimizer`, `loss`, `metrics`).
        dtype_policy: of the user's process; Keras forgets it between two models.
        accepts_undeclared: whether a hyperparameter outside the space takes its default, instead of failing.
    """

    hypermodel: keras_tuner.HyperModel
    space: keras_tuner.HyperParameters
    compile_args: Mapping[str, Any]
    dtype_policy: str
    accepts_undeclared: bool

    def hyperparameters(self, values: Mapping[str, Any]) -> keras_tuner.HyperParameters:
        """Return the container that `build` and `fit` of the hypermodel are given."""
        hp = self.space.copy()
        hp.values = dict(values)
        return hp

    def build(self, hp: keras_tuner.HyperParameters, seed: int) -> keras.Model:
        """Return the untrained model, whatever this process has built before.

        Raises:
            ModelError: the hypermodel returns something else.
        """
        keras.backend.clear_session()
        keras.config.set_dtype_policy(self.dtype_policy)
        keras.utils.set_random_seed(seed)
        model = self.hypermodel.build(hp)
        if not isinstance(model, keras.Model):
            raise ModelError(f"build(hp): returned {type(model).__name__}; return a keras.Model")
        if self.compile_args:
            own = {"optimizer": getattr(model, "optimizer", None), "loss": getattr(model, "loss", None)}
            # A metric or optimizer has state: each model needs its own.
            model.compile(**{key: value for key, value in own.items() if value is not None}
                          | copy.deepcopy(dict(self.compile_args)))  # fmt: skip
        return model

    def require_declared(self, hp: keras_tuner.HyperParameters) -> None:
        """Refuse hyperparameters that appeared in a trial and that no trial was ever given a value for."""
        known = {known.name for known in self.space.space}
        unknown = [new.name for new in hp.space if new.name not in known]
        if unknown and not self.accepts_undeclared:
            raise SearchError(
                f"hyperparameter {', '.join(unknown)}: appears for some values only and is not in the search space; "
                f"declare it in HyperModel.declare_hyperparameters or in the oracle's hyperparameters="
            )


class _EpochKeeper(TrainingRecorder):
    """Records epochs by any objective, of any training loop that calls its callbacks.

    An epoch that an earlier attempt has reported is not reported again: it is no progress, and the run has its point.
    With the same figures it keeps its time too, so that the run gets no second point for it in the end.
    """

    def __init__(
        self, folder: Path, listener: Listener, objective: keras_tuner.Objective, begin_epoch: Callable[[int], None],
        *, can_resume: bool, needs_objective: bool,
    ) -> None:  # fmt: skip
        super().__init__(folder, listener, keep="best", objective=objective.name, direction=objective.direction)
        self.params: dict[str, Any] = {}
        self._kt_objective, self._begin_epoch = objective, begin_epoch
        self._can_resume, self._needs_objective = can_resume, needs_objective
        self._journal = folder / "reported.json"
        self._reported = json.loads(self._journal.read_text()) if self._journal.exists() else []

    def set_model(self, model: keras.Model) -> None:
        """Start the clock: a training loop of the user's own may never say that an epoch begins."""
        super().set_model(model)
        super().on_epoch_begin(len(self.records))

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Start the epoch's clock, and take its order of the data."""
        super().on_epoch_begin(len(self.records))
        self._begin_epoch(epoch)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Keep the weights if they are the best, write the checkpoint, then report."""
        record = self._record(logs or {})
        previous, name = self.kept_epoch, self._objective
        if name not in record.metrics or not self.records or self._is_kept(record):
            self._progress.kept_epoch = record.epoch
        if self.kept_epoch == record.epoch:
            save_weights(self._kept_path(record.epoch), self.model)
        self._progress.records.append(record)
        if self._can_resume:
            save_checkpoint(self._folder / "epoch.ckpt", self.model, asdict(self._progress))
        if previous and previous != self.kept_epoch:
            self._kept_path(previous).unlink(missing_ok=True)
        self._report(record)
        super().on_epoch_begin(len(self.records))

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add figures that the user's `fit` returned: they describe the weights as they are in the end."""
        plain = {name: float(value) for name, value in metrics.items()}
        if self.records:
            last = self.records.pop()
            record = EpochRecord(last.epoch, last.ended_at_ms, {**last.metrics, **plain})
        else:
            record = self._same_as_reported(EpochRecord(1, time.time_ns() // 1_000_000, plain))
        save_weights(self._kept_path(record.epoch), self.model)
        self._progress.records.append(record)
        self._progress.kept_epoch = record.epoch
        self._report(record)

    def give_kept(self, model: keras.Model) -> None:
        """Give `model` the kept weights, whatever a callback did to them after the last epoch."""
        load_weights(self._kept_path(self.kept_epoch), model)

    def _record(self, logs: Mapping[str, Any]) -> EpochRecord:
        metrics = {name: float(value) for name, value in logs.items() if np.ndim(value) == 0}
        self._require_finite(metrics, f"epoch {len(self.records) + 1}, validation")
        if self._kt_objective.has_value(metrics):
            metrics[self._objective] = float(self._kt_objective.get_value(metrics))
        elif self._needs_objective:
            raise SearchError(
                f"objective {self._objective}: an epoch has {', '.join(metrics)}; choose one of them, or give "
                f"validation_data for those that begin with val_"
            )
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None:
            metrics["learning_rate"] = float(np.asarray(optimizer.learning_rate))
        metrics["epoch_secs"] = time.perf_counter() - self._started
        return self._same_as_reported(EpochRecord(len(self.records) + 1, time.time_ns() // 1_000_000, metrics))

    def _same_as_reported(self, record: EpochRecord) -> EpochRecord:
        if len(self._reported) < record.epoch:
            return record
        earlier = EpochRecord(**self._reported[record.epoch - 1])
        return earlier if _compared(earlier) == _compared(record) else record

    def _report(self, record: EpochRecord) -> None:
        is_new = record.epoch > len(self._reported)
        self._reported[record.epoch - 1 : record.epoch] = [asdict(record)]
        _replace_text(self._journal, json.dumps(self._reported))
        if is_new:
            self._listener.epoch_ended(record)


@dataclass(frozen=True)
class HypermodelWork:
    """Trains one configuration of any hypermodel.

    Attributes:
        import_path: where the user's modules are found.
        recipe: makes the model.
        objective: what is optimised.
        fit: what the user gave to `search`.
        passes_epochs: whether `fit` is told the number of epochs: it was given, or the oracle decides.
        max_model_size: most parameters of a model, None for no limit.
        num_threads: threads of one training.
        dataset: name, digest and shapes of the data.
    """

    import_path: ImportPath
    recipe: ModelRecipe
    objective: keras_tuner.Objective
    fit: FitArguments
    passes_epochs: bool
    max_model_size: int | None
    num_threads: int
    dataset: tuple[str, str, Mapping[str, str]]

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        """Train in this process; results are left in `folder`."""
        finished = read_outcome(folder)
        if finished is not None:
            return finished
        hp = self.recipe.hyperparameters(assignment.values)
        model = self.recipe.build(hp, assignment.seed)
        self.recipe.require_declared(hp)
        self._require_size(model)
        keeper = self._train(model, hp, assignment, folder, listener)
        self.recipe.require_declared(hp)
        keeper.give_kept(model)
        return self._write_outcome(model, keeper, assignment, folder)

    def params(self, assignment: Assignment) -> dict[str, object]:
        """Return the parameters of a run: every hyperparameter of the space, those that are not active as `-`."""
        values = {
            _param_name(name): assignment.values.get(name, _INACTIVE)
            for name in dict.fromkeys(known.name for known in self.recipe.space.space)
        }
        return {"epochs": assignment.epochs, "seed": assignment.seed, "num_threads": self.num_threads, **values}

    def label(self, assignment: Assignment) -> str:
        """Return the values in few words."""
        words = [f"{name} {_short(value)}" for name, value in assignment.values.items()]
        return " ".join(words)[:_LABEL_CHARS]

    def begin(self, run: TrackedRun, assignment: Assignment) -> None:
        """Write parameters, data, settings and machine."""
        run.log_params(self.params(assignment))
        run.mirror_params(self.params(assignment))
        name, digest, shapes = self.dataset
        used_for = ("training", "validation") if self.fit.kwargs.get("validation_data") is not None else ("training",)
        run.log_dataset(name, digest, "given to Tuner.search", used_for, shapes)
        settings = {"objective": str(self.objective), **self.fit.settings()}
        environment = {"packages": package_versions(), "host": host_facts(), "num_threads": self.num_threads}
        run.log_text(json.dumps(settings, indent=2, default=str), "settings.json")
        run.log_text(json.dumps(environment, indent=2), "environment.json")

    def finish(self, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool) -> None:
        """Write metrics, artifacts and the model."""
        for record in outcome.records:
            run.log_metrics(record.metrics, record.epoch, record.ended_at_ms)
        run.log_metrics(outcome.metrics, outcome.kept_epoch, outcome.ended_at_ms)
        run.writer.drain()
        run.upload(run.folder / ARTIFACTS)
        if keep_model:
            log_model(
                run,
                run.folder / MODEL,
                params=self.params(assignment),
                metrics=outcome.kept_metrics() | outcome.metrics,
                step=outcome.kept_epoch,
                timestamp_ms=outcome.ended_at_ms,
                dataset=self.dataset[:2],
                model_type="keras",
            )

    def _train(
        self, model: keras.Model, hp: keras_tuner.HyperParameters, assignment: Assignment, folder: Path,
        listener: Listener,
    ) -> _EpochKeeper:  # fmt: skip
        kwargs, order = dict(self.fit.kwargs), None
        if self.fit.train is not None:
            order = EpochOrder(self.fit.train, self.fit.batch_size, assignment.seed, shuffle=self.fit.shuffle)
            kwargs |= {"x": order, "shuffle": False}
            if not model.built:  # weights before a checkpoint can be put into them
                model(self.fit.example())
        own_fit = has_own_fit(self.recipe.hypermodel)
        keeper = _EpochKeeper(
            folder, listener, self.objective, order.begin if order else lambda epoch: None,
            can_resume=self.fit.can_resume, needs_objective=not own_fit,
        )  # fmt: skip
        done = keeper.restore(model) if self.fit.can_resume else 0
        if done:
            kwargs["initial_epoch"] = done
            # What is left of an inherited longer budget is nothing.
            if done >= assignment.epochs:
                return keeper
        if self.passes_epochs:
            kwargs["epochs"] = assignment.epochs
        if not own_fit:
            kwargs["verbose"] = 0
        kwargs["callbacks"] = [*copy.deepcopy(list(self.fit.callbacks)), keeper]
        returned = self.recipe.hypermodel.fit(hp, model, *self.fit.args, **kwargs)
        if not keeper.records or self.objective.name not in keeper.records[keeper.kept_epoch - 1].metrics:
            keeper.set_model(model)
            tuner_utils.validate_trial_results(returned, self.objective, "HyperModel.fit()")
            keeper.add(tuner_utils.convert_to_metrics_dict(returned, self.objective))
        return keeper

    def _require_size(self, model: keras.Model) -> None:
        size = model.count_params() if model.built else 0
        if self.max_model_size and size > self.max_model_size:
            raise ModelError(f"oversized model: {size:,} parameters, max_model_size is {self.max_model_size:,}")

    def _write_outcome(self, model: keras.Model, keeper: _EpochKeeper, assignment: Assignment, folder: Path) -> Outcome:
        artifacts = folder / ARTIFACTS
        shutil.rmtree(artifacts, ignore_errors=True)
        artifacts.mkdir()
        (artifacts / "hyperparameters.json").write_text(json.dumps(dict(assignment.values), indent=2))
        lines: list[str] = []
        model.summary(print_fn=lambda line: lines.append(line), line_length=90)
        (artifacts / "layers.txt").write_text("\n".join(lines) + "\n")
        records = keeper.records
        in_all = set(records[0].metrics).intersection(*(record.metrics for record in records))
        history = {name: [record.metrics[name] for record in records] for name in records[0].metrics if name in in_all}
        for name, figure in curve_figures(history, keeper.kept_epoch).items():
            figure.savefig(artifacts / f"curve_{name}.png", dpi=100)
        metadata = {"objective": self.objective.name, "seed": assignment.seed, "data_digest": self.dataset[1]}
        package_model(model, folder / MODEL, _named(self.fit.example()), metadata)
        metrics = {
            "kept_epoch": float(keeper.kept_epoch),
            "num_epochs": float(len(records)),
            "num_params": float(model.count_params()),
            "train_secs": sum(record.metrics.get("epoch_secs", 0.0) for record in records),
        }
        outcome = Outcome(list(records), keeper.kept_epoch, metrics)
        _replace_text(folder / "outcome.json", json.dumps(asdict(outcome)))
        return outcome


def _named(example: Any | None) -> Any | None:
    """Return several inputs by name, those of a tuple by number; a single one as it is."""
    if isinstance(example, tuple):
        return {f"{INPUT_PREFIX}{number}": array for number, array in enumerate(example)}
    return example


def _compared(record: EpochRecord) -> dict[str, float]:
    return {name: value for name, value in record.metrics.items() if name not in _MEASURED}


def _replace_text(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _param_name(name: str) -> str:
    """Return a name that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
