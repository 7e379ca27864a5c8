"""What `Tuner` trains: any hypermodel, on the data given to `search`; and what its runs record.

A trial resumes from its last epoch if the order of its data is known (`data_order`), its `fit` is not custom, and its
callbacks are Keras's own (`callback_state`). Otherwise it restarts at its first epoch, and ends with the same result if
the data come in the same order again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from fakeface_lab.backend import keras_tuner
from fakeface_lab.figures import save_figures
from fakeface_lab.figures.curves import curve_figures
from fakeface_lab.search.ledger.executions import BEST_EXECUTION, execution_run
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.terminal import format_value
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import param_name
from fakeface_lab.training.epochs import Listener
from fakeface_lab.training.executions import CrossValidation, best_execution, train_trial, training_of_fold
from fakeface_lab.training.fit_arguments import FitArguments
from fakeface_lab.training.hypermodel import ModelRecipe, train_hypermodel
from fakeface_lab.training.outcome import (
    ARTIFACTS,
    MODEL,
    Outcome,
    history_of,
    log_kept_model,
    log_metrics,
    log_settings,
)

__all__ = ["HypermodelWork"]

_LABEL_LENGTH = 60


@dataclass(frozen=True)
class HypermodelWork:
    """Trains one configuration of any hypermodel; see `run.engine.Work`.

    Attributes:
        recipe: builds the model.
        objective: what is optimized.
        fit: the arguments of `search`.
        passes_epochs: whether `fit` is passed the number of epochs: the user gave one, or the oracle decides.
        num_threads: threads per training.
        dataset: name, digest and shapes of the data.
        num_executions: trainings per trial and fold, with different seeds.
        id_width: digits of a trial's number in the paths of callbacks, as in KerasTuner's trial ids.
    """

    recipe: ModelRecipe
    objective: keras_tuner.Objective
    fit: FitArguments
    passes_epochs: bool
    num_threads: int
    dataset: tuple[str, str, Mapping[str, str]]
    num_executions: int = 1
    id_width: int = 1
    model_type: ClassVar[str] = "keras"

    @property
    def _num_folds(self) -> int:
        return self.recipe.hypermodel.num_folds if isinstance(self.recipe.hypermodel, CrossValidation) else 1

    @property
    def execution_names(self) -> Sequence[str]:
        """Names of the trainings of a trial, execution by execution and fold by fold; empty if it has only one."""
        names = []
        for execution in range(self.num_executions):
            for fold in range(self._num_folds):
                parts = [f"execution {execution}"] if self.num_executions > 1 else []
                parts += [f"fold {fold}"] if self._num_folds > 1 else []
                names.append(" ".join(parts))
        return names if len(names) > 1 else []

    def executions_settings(self) -> dict[str, Any]:
        """Return what the trainings of a trial are: part of a search's identity."""
        hypermodel = self.recipe.hypermodel
        is_folded = isinstance(hypermodel, CrossValidation)
        # Left out if there is only one, as in searches that began before there could be several.
        return {
            **({"executions_per_trial": self.num_executions} if self.num_executions > 1 else {}),
            **({"folds": str(hypermodel.folds), "folds_seed": hypermodel.seed} if is_folded else {}),
        }

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        """Train in this process and leave the results in `folder`."""
        name = assignment.key.removeprefix("trial-").zfill(self.id_width)

        def train(number: int, folder: Path, listener: Listener) -> Outcome:
            execution, fold = divmod(number, self._num_folds)
            hypermodel, fit = self.recipe.hypermodel, self.fit
            if isinstance(hypermodel, CrossValidation):
                fit = training_of_fold(fit, hypermodel, fold)
            return train_hypermodel(
                self.recipe, fit, self.objective, assignment.values, name=name,
                execution=number, seed=assignment.seed + execution,
                epochs=assignment.epochs, passes_epochs=self.passes_epochs, data_digest=self.dataset[1], folder=folder,
                listener=listener,
            )  # fmt: skip

        return train_trial(train, self.num_executions * self._num_folds, self.objective, folder, listener)

    def params(self, assignment: Assignment) -> dict[str, object]:
        """Return the parameters of a run: its values, and `-` for what else the search began with."""
        known = dict.fromkeys((hp.name for hp in self.recipe.space.space), "-")
        values = {param_name(name): value for name, value in {**known, **assignment.values}.items()}
        return {"epochs": assignment.epochs, "seed": assignment.seed, "num_threads": self.num_threads, **values}

    def label(self, values: Mapping[str, Any]) -> str:
        """Return as many of the values as a short text holds."""
        shown = ""
        for name, value in values.items():
            longer = f"{shown} {name} {format_value(value, 2)}".lstrip()
            if len(longer) > _LABEL_LENGTH:
                break
            shown = longer
        return shown

    def begin(self, run: TrackedRun, assignment: Assignment) -> None:
        """Write parameters, data, settings and machine."""
        run.log_params(self.params(assignment))
        run.mirror_params(self.params(assignment))
        name, digest, shapes = self.dataset
        used_for = ("training", "validation") if self.fit.kwargs.get("validation_data") is not None else ("training",)
        run.log_dataset(name, digest, "given to Tuner.search", used_for, shapes)
        settings = {"objective": str(self.objective), **self.fit.settings()}
        log_settings(run, settings, self.num_threads)

    def finish(self, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool) -> None:
        """Write metrics, artifacts and the model; of several trainings to the run of each, and their mean."""
        log_metrics(run, outcome)
        begun = self.params(assignment)
        assignment = replace(assignment, values={**assignment.values, **outcome.found_values})
        found = {name: value for name, value in self.params(assignment).items() if name not in begun}
        run.log_params(found)
        run.mirror_params(found)
        if not outcome.executions:
            self._upload(run, outcome, self.params(assignment), keep_model=keep_model)
            return
        runs = [execution_run(run, number, name) for number, name in enumerate(self.execution_names)]
        for number, (execution, own) in enumerate(zip(outcome.executions, runs, strict=True)):
            params = {**self.params(assignment), "seed": assignment.seed + number // self._num_folds}
            own.log_params(params)
            log_metrics(own, execution)
            self._upload(own, execution, params, keep_model=keep_model)
            own.set_status("FINISHED")
        run.writer.drain()
        run.set_tags({BEST_EXECUTION: runs[best_execution(outcome, self.objective)].run_id})

    def _upload(self, run: TrackedRun, outcome: Outcome, params: Mapping[str, object], *, keep_model: bool) -> None:
        run.writer.drain()
        # Here, beside the next training, as a figure takes as long as an epoch of a small model.
        save_figures(curve_figures(history_of(outcome.records), outcome.kept_epoch), run.folder / ARTIFACTS)
        run.upload(run.folder / ARTIFACTS)
        if keep_model and (run.folder / MODEL).is_dir():
            log_kept_model(run, outcome, params, self.dataset[:2], self.model_type)
