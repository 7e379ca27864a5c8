"""Trains one configuration: data order, continuation, the weights that count. Knows nothing of MLflow."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fakeface_lab.backend import keras
from fakeface_lab.detector.model import build_model, fixed_hyperparameters
from fakeface_lab.detector.pipeline import evaluation_batches, training_batches
from fakeface_lab.evaluation.stress_objective import OBJECTIVES as STRESS_OBJECTIVES
from fakeface_lab.settings import Hyperparameters
from fakeface_lab.training.recorder import Listener, TrainingRecorder

__all__ = ["STRESS_OBJECTIVES", "Training", "predict", "train"]


@dataclass(frozen=True)
class Training:
    """One configuration to train; equal trainings give equal results on equal numbers of threads.

    Attributes:
        hyperparameters: the values that the search may vary.
        image_size: edge of the pictures, px.
        seed: of initial weights, data order and dropout.
        epochs: passes over the training images.
        keep: which weights count in the end: the last epoch's, or those of the best epoch by `objective`.
        objective: a metric of an epoch, or one of `STRESS_OBJECTIVES`.
        direction: whether a larger or a smaller objective is better.
    """

    hyperparameters: Hyperparameters
    image_size: int
    seed: int
    epochs: int
    keep: Literal["last", "best"] = "last"
    objective: str = "val_loss"
    direction: Literal["min", "max"] = "min"

    def judge(self) -> dict[str, Any]:
        """Return by what an epoch is judged, as `TrainingRecorder` takes it."""
        if self.objective in STRESS_OBJECTIVES:  # measured once, on the kept weights
            return {"objective": "val_loss", "direction": "min"}
        return {"objective": self.objective, "direction": self.direction}

    @property
    def picks_epoch(self) -> bool:
        """Whether the score is a figure of the validation images that chose the epoch as well: the best of several."""
        return self.keep == "best" and self.objective.startswith("val_")

    def build(self) -> keras.Model:
        """Return the compiled, untrained model."""
        return build_model(fixed_hyperparameters(self.hyperparameters, self.image_size, self.seed))


def train(
    model: keras.Model,
    training: Training,
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    train_rows: npt.NDArray[np.int64],
    validation_rows: npt.NDArray[np.int64] | None,
    folder: Path,
    listener: Listener,
) -> TrainingRecorder:
    """Train `model`, or go on from the checkpoint in `folder`; it ends with its kept weights.

    Args:
        model: compiled, as `build_model` returns it.
        training: the configuration.
        pixels: uint8 (num_images, size, size, 3).
        labels: int64 (num_images,), class indices.
        train_rows: rows to learn from; their order is part of the result.
        validation_rows: rows to judge each epoch on; None for a final training, which has none left.
        folder: where checkpoints live; it exists.
        listener: told of each step and epoch.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite; names epoch and step.
    """
    values = training.hyperparameters
    score = None
    if validation_rows is not None and training.picks_epoch:
        score = partial(_positive_scores, pixels=pixels, rows=validation_rows)
    recorder = TrainingRecorder(folder, listener, keep=training.keep, score=score, **training.judge())
    done = recorder.restore(model)
    if done < training.epochs:
        batches = training_batches(
            pixels, labels, train_rows, batch_size=values.batch_size, seed=training.seed, epochs=training.epochs,
            initial_epoch=done, augmentation=values.augmentation,
        )  # fmt: skip
        validation = None
        if validation_rows is not None:
            validation = evaluation_batches(pixels, labels, validation_rows, values.batch_size)
        model.fit(
            batches,
            initial_epoch=done,
            epochs=training.epochs,
            steps_per_epoch=math.ceil(len(train_rows) / values.batch_size),
            validation_data=validation,
            callbacks=[recorder],
            shuffle=False,
            verbose=0,
        )
    recorder.restore_kept(model)
    return recorder


def _positive_scores(
    model: keras.Model, pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    return predict(model, pixels, rows)[:, 0]


def predict(
    model: keras.Model, pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], batch_size: int = 32
) -> npt.NDArray[np.float32]:
    """Return the class probabilities of some images: float32 (len(rows), 2), in the order of `rows`."""
    labels = np.zeros(len(pixels), dtype=np.int64)
    batches = evaluation_batches(pixels, labels, rows, batch_size).map(lambda images, _: images)
    return np.asarray(model.predict(batches, verbose=0), dtype=np.float32)
