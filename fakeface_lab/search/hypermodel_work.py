"""What `Tuner` trains: any hypermodel, on what the user gave to `search`.

A trial goes on from its last epoch where the order of the data is this project's own (arrays, no callbacks of the
user's, no `HyperModel.fit` of the user's); else it begins again at its first epoch, with the same result wherever the
data come in the same order again.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.tracking.models import INPUT_PREFIX, log_model, package_model
from fakeface_lab.tracking.owner import host_facts, package_versions
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.training.fit_arguments import FitArguments
from fakeface_lab.training.hypermodel import ModelRecipe, train_hypermodel
from fakeface_lab.training.outcome import (
    ARTIFACTS,
    MODEL,
    Outcome,
    curve_figures,
    empty_artifacts,
    end_metrics,
    read_whole_outcome,
    write_layers,
    write_outcome,
)
from fakeface_lab.training.recorder import Listener, TrainingRecorder

__all__ = ["HypermodelWork"]

_INACTIVE = "-"
_LABEL_CHARS = 60


@dataclass(frozen=True)
class HypermodelWork:
    """Trains one configuration of any hypermodel.

    Attributes:
        recipe: makes the model.
        objective: what is optimised.
        fit: what the user gave to `search`.
        passes_epochs: whether `fit` is told the number of epochs: it was given, or the oracle decides.
        max_model_size: most parameters of a model, None for no limit.
        num_threads: threads of one training.
        dataset: name, digest and shapes of the data.
    """

    recipe: ModelRecipe
    objective: keras_tuner.Objective
    fit: FitArguments
    passes_epochs: bool
    max_model_size: int | None
    num_threads: int
    dataset: tuple[str, str, Mapping[str, str]]

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        """Train in this process; results are left in `folder`."""
        finished = read_whole_outcome(folder)
        if finished is not None:
            return finished
        model, recorder = train_hypermodel(
            self.recipe, self.fit, self.objective, assignment.values, seed=assignment.seed, epochs=assignment.epochs,
            passes_epochs=self.passes_epochs, max_model_size=self.max_model_size, folder=folder, listener=listener,
        )  # fmt: skip
        return self._write_outcome(model, recorder, assignment, folder)

    def params(self, assignment: Assignment) -> dict[str, object]:
        """Return the parameters of a run: every hyperparameter of the space, those that are not active as `-`."""
        values = {
            _param_name(name): assignment.values.get(name, _INACTIVE)
            for name in dict.fromkeys(known.name for known in self.recipe.space.space)
        }
        return {"epochs": assignment.epochs, "seed": assignment.seed, "num_threads": self.num_threads, **values}

    def label(self, values: Mapping[str, Any]) -> str:
        """Return the values in few words."""
        words = [f"{name} {_short(value)}" for name, value in values.items()]
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

    def _write_outcome(
        self, model: keras.Model, recorder: TrainingRecorder, assignment: Assignment, folder: Path
    ) -> Outcome:
        artifacts, records = empty_artifacts(folder), recorder.records
        (artifacts / "hyperparameters.json").write_text(json.dumps(dict(assignment.values), indent=2))
        write_layers(model, artifacts / "layers.txt")
        names = dict.fromkeys(name for record in records for name in record.metrics)
        # Not each epoch need be validated.
        history = {name: [record.metrics.get(name, math.nan) for record in records] for name in names}
        for name, figure in curve_figures(history, recorder.kept_epoch).items():
            figure.savefig(artifacts / f"curve_{name}.png", dpi=100)
        metadata = {"objective": self.objective.name, "seed": assignment.seed, "data_digest": self.dataset[1]}
        package_model(model, folder / MODEL, _named(self.fit.example()), metadata)
        outcome = Outcome(list(records), recorder.kept_epoch, end_metrics(records, recorder.kept_epoch, model))
        write_outcome(outcome, folder)
        return outcome


def _named(example: Any | None) -> Any | None:
    """Return several inputs by name, those of a tuple by number; a single one as it is."""
    if isinstance(example, tuple):
        return {f"{INPUT_PREFIX}{number}": array for number, array in enumerate(example)}
    return example


def _param_name(name: str) -> str:
    """Return a name that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)
