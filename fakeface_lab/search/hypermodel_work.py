"""What `Tuner` trains: any hypermodel, on the data given to `search`; and what its runs record.

A trial resumes from its last epoch if the order of its data is under our control (arrays, and no `HyperModel.fit` of
the user's own) and the state of its callbacks is known: they are Keras's own (`callback_state`). Otherwise it restarts
at its first epoch, and ends with the same result if the data come in the same order again.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakeface_lab.backend import keras_tuner
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.training.fit_arguments import FitArguments
from fakeface_lab.training.hypermodel import ModelRecipe, train_hypermodel
from fakeface_lab.training.outcome import ARTIFACTS, Outcome, log_kept_model, log_metrics, log_settings
from fakeface_lab.training.recorder import Listener

__all__ = ["HypermodelWork"]


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
    """

    recipe: ModelRecipe
    objective: keras_tuner.Objective
    fit: FitArguments
    passes_epochs: bool
    num_threads: int
    dataset: tuple[str, str, Mapping[str, str]]

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        """Train in this process and leave the results in `folder`."""
        return train_hypermodel(
            self.recipe, self.fit, self.objective, assignment.values, name=assignment.key.removeprefix("trial-"),
            seed=assignment.seed, epochs=assignment.epochs, passes_epochs=self.passes_epochs,
            data_digest=self.dataset[1], folder=folder, listener=listener,
        )  # fmt: skip

    def params(self, assignment: Assignment) -> dict[str, object]:
        """Return the parameters of a run: every hyperparameter of the space, inactive ones as `-`."""
        values = {
            re.sub(r"[^\w\-. :/]", "_", name): assignment.values.get(name, "-")  # what MLflow takes as a name
            for name in dict.fromkeys(known.name for known in self.recipe.space.space)
        }
        return {"epochs": assignment.epochs, "seed": assignment.seed, "num_threads": self.num_threads, **values}

    def label(self, values: Mapping[str, Any]) -> str:
        """Return the values as a short text."""
        short = {name: f"{value:.2g}" if isinstance(value, float) else value for name, value in values.items()}
        return " ".join(f"{name} {value}" for name, value in short.items())[:60]

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
        """Write metrics, artifacts and the model."""
        log_metrics(run, outcome)
        run.writer.drain()
        run.upload(run.folder / ARTIFACTS)
        if keep_model:
            log_kept_model(run, outcome, self.params(assignment), self.dataset[:2], "keras")
