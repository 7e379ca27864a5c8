"""One training of the detector and its results, as files in a folder; `mlflow_run` uploads them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import psutil

from fakeface_lab.backend import keras
from fakeface_lab.data.images import ImageSet
from fakeface_lab.data.splits import TEST, VALIDATION, Split, write_split
from fakeface_lab.detector import mlflow_run
from fakeface_lab.detector.fit import Training, predict, train
from fakeface_lab.detector.space import num_parameters, to_hyperparameters
from fakeface_lab.detector.stress import Scored, compare_with_shortcut, score_for_search
from fakeface_lab.errors import ModelError
from fakeface_lab.evaluation.intervals import THRESHOLD
from fakeface_lab.evaluation.scores import detection_scores, documented_scores
from fakeface_lab.evaluation.stress.objective import OBJECTIVES as STRESS_OBJECTIVES
from fakeface_lab.evaluation.stress.suite import SEARCH_CONDITIONS
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.settings import Step
from fakeface_lab.terminal import format_value
from fakeface_lab.tracking.datasets import seal_key
from fakeface_lab.tracking.models import package_model
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.scores import ScoredImage, write_scores
from fakeface_lab.training.epochs import Listener
from fakeface_lab.training.objective import Objective
from fakeface_lab.training.outcome import (
    MODEL,
    Outcome,
    empty_artifacts,
    end_metrics,
    history_of,
    read_whole_outcome,
    write_layers,
    write_outcome,
)
from fakeface_lab.training.recorder import TrainingRecorder

__all__ = ["DetectorWork", "produce_outcome"]


def produce_outcome(
    model: keras.Model,
    training: Training,
    images: ImageSet,
    split: Split,
    folder: Path,
    listener: Listener,
    *,
    open_test: bool,
) -> Outcome:
    """Train `model`, or resume where an earlier process was killed, and leave all results in `folder`.

    Args:
        model: untrained, as `training.build()` returns it; ends with its kept weights.
        training: the configuration.
        images: all images.
        split: the rows of each split; trained on train, judged on validation.
        folder: of the run; it exists. Checkpoints go here as well.
        listener: is called after each step and epoch.
        open_test: whether the test split may be looked at.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite.
    """
    validation = split.validation if len(split.validation) else None
    recorder = train(model, training, images.pixels, images.labels, split.train, validation, folder, listener)
    outcome = _write_outcome(model, recorder, training, images, split, folder, open_test=open_test)
    recorder.report_last()
    return outcome


def _write_outcome(
    model: keras.Model,
    recorder: TrainingRecorder,
    training: Training,
    images: ImageSet,
    split: Split,
    folder: Path,
    *,
    open_test: bool,
) -> Outcome:
    """Score the kept weights; write artifacts, the packaged model and, last, the outcome."""
    artifacts = empty_artifacts(folder)
    history = history_of(recorder.records)
    metrics = _training_metrics(recorder, model)
    epoch_scores = _epoch_scores(recorder, split)
    scored = _score_splits(
        model, images, split, open_test=open_test, has_validation="val_loss" in history,
        known=None if epoch_scores is None else epoch_scores[recorder.kept_epoch - 1],
    )  # fmt: skip
    for part, (rows, probabilities) in scored.items():
        metrics |= _scores(part, rows, probabilities, images, split)
    explained, explanation = _explanation(scored, images, split)
    metrics |= explained
    names = images.source.class_names
    write_scores(artifacts / "scores.csv", [f"probability_{name}" for name in names], _scored_images(scored, images))
    if epoch_scores is not None:
        np.save(artifacts / "epoch_scores.npy", epoch_scores[:, :, 0])
    if training.objective.name in STRESS_OBJECTIVES:
        stress_metrics, stressed = score_for_search(model, images, split, scored)
        metrics |= stress_metrics
        conditions = [condition.name for condition in SEARCH_CONDITIONS]
        write_scores(artifacts / "stress_scores.csv", conditions, _scored_images(stressed, images))
    (artifacts / "metrics.json").write_text(json.dumps(metrics, indent=2))
    write_split(split, images, artifacts / "split.csv")
    write_layers(model, artifacts / "layers.txt")
    package_model(
        model,
        folder / MODEL,
        # Divided by NumPy, as documented.
        example=(images.pixels[split.train[:1]] / 255).astype(np.float32),
        metadata=_model_metadata(images, training, split),
    )
    # Every metric is a chart in MLflow's page; what is read once stays in the artifact.
    charted = {name: value for name, value in metrics.items() if "_ppv_at_" not in name}
    outcome = Outcome(list(recorder.records), recorder.kept_epoch, charted, explanation)
    write_outcome(outcome, folder)
    return outcome


def _explanation(scored: Scored, images: ImageSet, split: Split) -> tuple[dict[str, float], str]:
    """Return how much of the accuracy a simple shortcut also reaches: metrics and a sentence, empty without scores."""
    parts: tuple[Literal["test", "validation"], ...] = (TEST, VALIDATION)
    for part in parts:
        if part in scored:
            rows, probabilities = scored[part]
            is_correct = (probabilities[:, 0] > THRESHOLD) == images.is_positive[rows]
            return compare_with_shortcut(images, split, is_correct, part)
    return {}, ""


def _model_metadata(images: ImageSet, training: Training, split: Split) -> dict[str, Any]:
    """Return what is needed to apply the model to other images."""
    return {
        "class_names": list(images.source.class_names),
        "positive_class": images.source.class_names[0],
        "image_size_px": training.image_size,
        "scale": "uint8 / 255, float32",
        "resize": "nearest",
        "threshold": THRESHOLD,
        "data_digest": images.digest,
        "split": split.name,
        "seed": training.seed,
    }


def _training_metrics(recorder: TrainingRecorder, model: keras.Model) -> dict[str, float]:
    history = history_of(recorder.records)
    metrics = end_metrics(recorder.records, recorder.kept_epoch, model)
    if "val_loss" in history:
        metrics["best_val_loss"] = min(history["val_loss"])
        metrics["best_val_accuracy"] = max(history["val_accuracy"])
        metrics["best_epoch"] = float(1 + int(np.argmin(history["val_loss"])))
    return metrics


def _epoch_scores(recorder: TrainingRecorder, split: Split) -> npt.NDArray[np.float32] | None:
    """Return the class probabilities of the validation images after each epoch: float32 (num_epochs, num_images, 2)."""
    scores = recorder.epoch_scores
    if scores is None or scores.shape[1] != 2 * len(split.validation):
        return None
    return scores.reshape(len(scores), len(split.validation), 2)


def _score_splits(
    model: keras.Model,
    images: ImageSet,
    split: Split,
    *,
    open_test: bool,
    has_validation: bool,
    known: npt.NDArray[np.float32] | None,
) -> dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """Return split name to (rows, probabilities); the images of the documented split are scored once, as test.

    `known` are the probabilities of the validation images, if the kept weights have scored them already.
    """
    wanted: Mapping[str, npt.NDArray[np.int64]] = {}
    if has_validation and not split.test_is_validation:
        wanted = {VALIDATION: split.validation}
    if open_test:
        wanted = {**wanted, TEST: split.test}
    scored = {}
    for part, rows in wanted.items():
        reused = known if np.array_equal(rows, split.validation) else None
        scored[part] = (rows, predict(model, images.pixels, rows) if reused is None else reused)
    return scored


def _scores(
    part: str,
    rows: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float32],
    images: ImageSet,
    split: Split,
) -> dict[str, float]:
    labels = images.labels[rows]
    scores = probabilities[:, 0].astype(np.float64)
    panel = detection_scores(images.is_positive[rows], scores, images.source.class_names)
    metrics = {f"{part}_{name}": value for name, value in panel.metrics().items()}
    if split.test_is_validation:
        metrics |= documented_scores(probabilities, labels)
    return metrics


def _scored_images(scored: Scored, images: ImageSet) -> Iterator[ScoredImage]:
    names = images.source.class_names
    for part, (rows, scores) in scored.items():
        for row, own in zip(rows, scores, strict=True):
            image = images.files[row]
            yield ScoredImage(image.name, image.sha256, names[image.label], part, own)


# Weights, gradients and Adam's two moments, float32.
_BYTES_PER_PARAMETER = 16


@dataclass(frozen=True)
class DetectorWork:
    """Trains one configuration of the documented CNN's builder.

    Attributes:
        images: all images.
        split: the rows of each split.
        objective: the metric that is the score.
        searched: names of the hyperparameters that are searched.
        num_threads: threads of one training.
        settings: resolved settings, logged with each run.
        step: of every training; see `Training`.
        promotes: whether a later trial may continue one, as Hyperband's do.
    """

    images: ImageSet
    split: Split
    objective: Objective
    searched: tuple[str, ...]
    num_threads: int
    settings: Mapping[str, Any]
    step: Step = "plain"
    promotes: bool = False
    execution_names: ClassVar[Sequence[str]] = ()

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
        # Before the build, which would already allocate the weights.
        _require_memory(num_parameters(training.hyperparameters, training.image_size))
        model = training.build()
        final = assignment.role == "final"
        return produce_outcome(
            model, training, self.images, self._split(assignment), folder, listener,
            open_test=final or self.split.test_is_validation,
        )  # fmt: skip

    def params(self, assignment: Assignment) -> dict[str, object]:
        """Return the parameters of a run."""
        return mlflow_run.training_params(
            self._training(assignment), self.images, self._split(assignment), self.num_threads
        )

    def label(self, values: Mapping[str, Any]) -> str:
        """Return the searched values, short enough for the legend of a chart."""
        short = {"filters_1": "f", "filters_2": "-", "dense_units": " d", "conv_dropout": " cd", "dense_dropout": " dd",
                 "learning_rate": " lr", "batch_size": " b", "augmentation": " aug", "precision": " "}  # fmt: skip
        words = [f"{mark}{format_value(values[name], 2)}" for name, mark in short.items() if name in self.searched]
        return "".join(words).strip()

    def begin(self, run: TrackedRun, assignment: Assignment) -> None:
        """Write parameters, data set, settings and machine."""
        mlflow_run.log_start(run, self.params(assignment), self.images, self.settings, self.num_threads)

    def finish(self, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool) -> None:
        """Write metrics, artifacts and the model."""
        mlflow_run.log_results(run, outcome, self.params(assignment), self.images, keep_model=keep_model)

    def _training(self, assignment: Assignment) -> Training:
        final = assignment.role == "final"
        return Training(
            to_hyperparameters(assignment.values),
            self.images.size_px,
            assignment.seed,
            assignment.epochs,
            # A final has no validation images; it trains for exactly the epochs that its trial kept.
            keep="last" if final else "best",
            objective=self.objective,
            step=self.step,
            may_continue=self.promotes and not final,
        )

    def _split(self, assignment: Assignment) -> Split:
        """Return the split of a trial, or for a final training the one with nothing left to validate on."""
        if assignment.role == "trial" or self.split.test_is_validation:
            return self.split
        both = np.concatenate([self.split.train, self.split.validation])
        return replace(self.split, train=both, validation=np.empty(0, dtype=np.int64))


def _require_memory(num_params: int) -> None:
    """Refuse a model whose variables alone exceed the machine's memory: it would take other processes down too."""
    # All of it and not what is free: a trial that fails by a ModelError is not tried again, so the limit must not
    # depend on what else runs.
    needed, present = _BYTES_PER_PARAMETER * num_params, psutil.virtual_memory().total
    if needed > present:
        raise ModelError(
            f"model too large: {num_params:,} parameters need {needed / 1e9:.1f} GB to train, this machine "
            f"has {present / 1e9:.1f} GB; narrow the search space"
        )
