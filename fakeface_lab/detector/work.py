"""What `tune` trains: the documented CNN's builder on the images of one split."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from fakeface_lab.data.images import ImageSet
from fakeface_lab.data.splits import Split
from fakeface_lab.detector import recording
from fakeface_lab.detector.fit import Training
from fakeface_lab.detector.plan import num_parameters
from fakeface_lab.detector.results import produce_outcome
from fakeface_lab.detector.space import to_hyperparameters
from fakeface_lab.errors import ModelError
from fakeface_lab.search.run.work import Assignment
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.seal import seal_key
from fakeface_lab.training.outcome import Outcome, read_whole_outcome
from fakeface_lab.training.recorder import Listener

__all__ = ["DetectorWork"]

# Weights, gradients and Adam's two moments, float32.
_BYTES_A_PARAMETER = 16


@dataclass(frozen=True)
class DetectorWork:
    """Trains one configuration of the documented CNN's builder.

    Attributes:
        images: all images.
        split: who is in which split.
        objective: the metric that is the score.
        direction: whether a larger or a smaller score is better.
        searched: names of the hyperparameters that are searched.
        num_threads: threads of one training.
        settings: resolved settings, logged with each run.
    """

    images: ImageSet
    split: Split
    objective: str
    direction: Literal["min", "max"]
    searched: tuple[str, ...]
    num_threads: int
    settings: Mapping[str, Any]

    @property
    def test_set(self) -> str:
        """The test images, as their openings are counted."""
        return seal_key(self.images.digest, self.split.name, self.split.seed)

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        """Train in this process; results are left in `folder`."""
        finished = read_whole_outcome(folder)
        if finished is not None and len(finished.records) == assignment.epochs:
            return finished
        training = self._training(assignment)
        _require_memory(num_parameters(training.hyperparameters, training.image_size))
        model = training.build()
        final = assignment.role == "final"
        return produce_outcome(
            model, training, self.images, self._split(assignment), folder, listener,
            open_test=final or self.split.test_is_validation,
        )  # fmt: skip

    def params(self, assignment: Assignment) -> dict[str, object]:
        """Return the parameters of a run."""
        return recording.training_params(
            self._training(assignment), self.images, self._split(assignment), self.num_threads
        )

    def label(self, assignment: Assignment) -> str:
        """Return the searched values, short enough for the legend of a chart."""
        short = {"filters_1": "f", "filters_2": "-", "dense_units": " d", "conv_dropout": " cd", "dense_dropout": " dd",
                 "learning_rate": " lr", "batch_size": " b", "augmentation": " aug", "precision": " "}  # fmt: skip
        words = [f"{mark}{_short(assignment.values[name])}" for name, mark in short.items() if name in self.searched]
        return "".join(words).strip()

    def begin(self, run: TrackedRun, assignment: Assignment) -> None:
        """Write parameters, data set, settings and machine."""
        recording.begin_recording(run, self.params(assignment), self.images, self.settings, self.num_threads)

    def finish(self, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool) -> None:
        """Write metrics, artifacts and the model."""
        recording.finish_recording(run, outcome, self.params(assignment), self.images, keep_model=keep_model)

    def _training(self, assignment: Assignment) -> Training:
        final = assignment.role == "final"
        return Training(
            to_hyperparameters(assignment.values),
            self.images.size_px,
            assignment.seed,
            assignment.epochs,
            keep="last" if final else "best",
            objective=self.objective,
            direction=self.direction,
        )

    def _split(self, assignment: Assignment) -> Split:
        """Return the split of a trial, or for a final training the one with nothing left to validate on."""
        if assignment.role == "trial" or self.split.test_is_validation:
            return self.split
        both = np.concatenate([self.split.train, self.split.validation])
        return replace(self.split, train=both, validation=np.empty(0, dtype=np.int64))


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _require_memory(num_params: int) -> None:
    """Refuse a model whose variables alone exceed the machine's memory: it would take other processes down too."""
    needed, present = _BYTES_A_PARAMETER * num_params, psutil.virtual_memory().total
    if needed > present:
        raise ModelError(
            f"model too large: {num_params:,} parameters need {needed / 1e9:.1f} GB to train, this machine "
            f"has {present / 1e9:.1f} GB; narrow the search space"
        )
