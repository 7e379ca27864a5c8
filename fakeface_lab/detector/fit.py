"""Trains one configuration: batches in a reproducible order, resuming, the kept weights. Does not use MLflow."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fakeface_lab.backend import keras, tf
from fakeface_lab.detector.fast_step import use_fast_step, why_plain
from fakeface_lab.detector.model import augment_batch, build_model, fixed_hyperparameters, image_seeds
from fakeface_lab.evaluation.stress.objective import OBJECTIVES as STRESS_OBJECTIVES
from fakeface_lab.files import file_view
from fakeface_lab.settings import Hyperparameters, Step
from fakeface_lab.training.epochs import Listener
from fakeface_lab.training.objective import VAL_LOSS, Objective
from fakeface_lab.training.outcome import epoch_order
from fakeface_lab.training.recorder import TrainingRecorder

__all__ = ["Training", "evaluation_batches", "predict", "predict_pictures", "train", "training_batches"]

# Inside a tf.function, division becomes multiplication and differs from NumPy's `pixels / 255` in 126 of 256 values; a
# table computed by NumPy has the documented values.
_SCALE = (np.arange(256) / 255).astype(np.float32)


def training_batches(
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    *,
    batch_size: int,
    seed: int,
    epochs: int,
    initial_epoch: int = 0,
    augmentation: float = 0.0,
) -> tf.data.Dataset:
    """Return batches (float32 (b, size, size, 3) in [0, 1], one-hot float32 (b, 2)) for all remaining epochs.

    Each epoch has `ceil(len(rows) / batch_size)` batches, the last one smaller, as in `model.fit`. The order depends on
    seed and epoch only, so a training resumed at `initial_epoch` sees the same batches.
    """

    def batches() -> Iterator[tuple[npt.NDArray[np.int64], int, npt.NDArray[np.int64]]]:
        for epoch in range(initial_epoch, epochs):
            order = epoch_order(len(rows), seed, epoch)
            for first in range(0, len(rows), batch_size):
                positions = order[first : first + batch_size]
                yield rows[positions], epoch, positions

    load = _loader(pixels, labels)

    def batch(wanted: tf.Tensor, epoch: tf.Tensor, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, one_hot = load(wanted)
        if augmentation:
            images = augment_batch(images, image_seeds(seed, epoch, positions), augmentation)
        return images, one_hot

    members = tf.TensorSpec((None,), tf.int64)
    index = tf.data.Dataset.from_generator(
        batches, output_signature=(members, tf.TensorSpec((), tf.int64), members)
    )  # fmt: skip
    # One batch ahead hides the reading; each further one would hold 35 MB (32 float32 images of 300 px).
    return _untuned(index.map(batch, num_parallel_calls=1, deterministic=True).prefetch(1))


def evaluation_batches(
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    batch_size: int = 32,
) -> tf.data.Dataset:
    """Return batches as in `training_batches`, for one pass over `rows` in their order."""
    load = _loader(pixels, labels)
    wanted = tf.constant(rows)
    starts = tf.data.Dataset.range(0, len(rows), batch_size)
    batches = starts.map(
        lambda first: load(wanted[first : first + batch_size]), num_parallel_calls=1, deterministic=True
    )
    return _untuned(batches.prefetch(1))


def _untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return the data set with autotuning off: nothing in it can be tuned.

    With one inter-op thread, an iterator waits at its end for the tuner's next step, and the steps come at doubling
    intervals: 17 s after a training of 24 s, 33 s after one of 48 s.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def _loader(
    pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Return a function from row numbers, int64 (b,), to images and one-hot labels."""
    shape = (None, *pixels.shape[1:])
    scale, known_labels = tf.constant(_SCALE), tf.constant(labels)
    view = file_view(pixels)

    def read(wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        # Touched pages count as this process's memory until their mapping is closed: with a new mapping per batch they
        # do not add up to the whole data set.
        source: npt.NDArray[np.uint8] = pixels if view is None else view.open()
        return source[wanted]

    def load(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        raw = tf.numpy_function(read, [rows], tf.uint8, stateful=False)
        # `gather` does not take uint8 as indices.
        images = tf.gather(scale, tf.cast(raw, tf.int32))
        # `numpy_function` loses the shape, without which the layers cannot be applied.
        return tf.ensure_shape(images, shape), tf.one_hot(tf.gather(known_labels, rows), 2)

    return load


@dataclass(frozen=True)
class Training:
    """One configuration to train; equal ones give equal results with equal numbers of threads.

    Attributes:
        hyperparameters: the values that a search may vary.
        image_size: edge of the images, px.
        seed: of initial weights, data order and dropout.
        epochs: passes over the training images.
        keep: which weights the training ends with: those of the last epoch, or of the best epoch by `objective`.
        objective: an epoch metric, or one of `STRESS_OBJECTIVES`.
        step: Keras's own training step, or that of `fast_step`.
        may_continue: whether a training with more epochs may continue it, as Hyperband's do.
    """

    hyperparameters: Hyperparameters
    image_size: int
    seed: int
    epochs: int
    # As documented, although it is a gamble: with seed 3 the eighth epoch makes no error and the tenth 11
    # (docs/reproduction.md).
    keep: Literal["last", "best"] = "last"
    objective: Objective = VAL_LOSS
    step: Step = "plain"
    may_continue: bool = False

    @property
    def step_taken(self) -> Step:
        """The training step, which is the plain one where the fast one does not serve."""
        return self.step if why_plain(self.hyperparameters) is None else "plain"

    @property
    def epoch_objective(self) -> Objective:
        """The metric that picks the best epoch."""
        if self.objective.name in STRESS_OBJECTIVES:  # measured once, on the kept weights
            return VAL_LOSS
        return self.objective

    @property
    def picks_epoch(self) -> bool:
        """Whether the score was measured on the images that picked the epoch: it is then the best of several."""
        return self.keep == "best" and self.objective.name.startswith("val_")

    def build(self) -> keras.Model:
        """Return the compiled, untrained model."""
        model = build_model(fixed_hyperparameters(self.hyperparameters, self.image_size, self.seed))
        if self.step_taken == "fast":
            use_fast_step(model)
        return model


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
    """Train `model`, or resume from the checkpoint in `folder`; it ends with the kept weights.

    Args:
        model: compiled, as `build_model` returns it.
        training: the configuration.
        pixels: uint8 (num_images, size, size, 3).
        labels: int64 (num_images,), class indices.
        train_rows: rows to train on; their order affects the result.
        validation_rows: rows to validate each epoch on; None for a final training, which has none left.
        folder: where checkpoints are kept; it exists.
        listener: notified of each step and epoch.

    Raises:
        TrainingDivergedError: the loss became NaN or infinite; the message names epoch and step.
    """
    values = training.hyperparameters
    score = _keep_outputs(model) if validation_rows is not None and training.picks_epoch else None
    recorder = TrainingRecorder(
        folder, listener, training.epoch_objective, keep=training.keep, score=score,
        last_epoch=None if training.may_continue else training.epochs,
    )  # fmt: skip
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
            # One data set holds all epochs in a row, each in its own order: `fit` must be told where one ends.
            steps_per_epoch=math.ceil(len(train_rows) / values.batch_size),
            validation_data=validation,
            callbacks=[recorder],
            shuffle=False,
            verbose=0,
        )
    if not recorder.holds_kept_weights:
        recorder.load_kept_weights(model)
    return recorder


def _keep_outputs(model: keras.Model) -> Callable[[], npt.NDArray[np.float32]]:
    """Make each validation of `model` keep its outputs: another pass takes 6 % of an epoch at 300 px (docs/search.md).

    Returns:
        A function that returns the outputs since its last call: class probabilities, float32 (num_images, 2), in the
        order of the images.
    """
    outputs: list[npt.NDArray[np.float32]] = []
    compute_loss = model.compute_loss

    def keep(batch: npt.NDArray[np.float32]) -> None:
        outputs.append(batch.copy())  # the memory is TensorFlow's

    def compute_and_keep(x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool) -> Any:
        if not training:
            tf.numpy_function(keep, [y_pred], [])
        return compute_loss(x, y, y_pred, sample_weight, training)

    def hand_over() -> npt.NDArray[np.float32]:
        kept = np.concatenate(outputs)
        outputs.clear()
        return kept

    # Keras documents it for overriding, and calls it with a batch's outputs in training and in validation.
    model.compute_loss = compute_and_keep
    return hand_over


def predict(
    model: keras.Model, pixels: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], batch_size: int = 32
) -> npt.NDArray[np.float32]:
    """Return the class probabilities of some images: float32 (len(rows), 2), in the order of `rows`."""
    labels = np.zeros(len(pixels), dtype=np.int64)
    batches = evaluation_batches(pixels, labels, rows, batch_size).map(lambda images, _: images)
    return np.asarray(model.predict(batches, verbose=0), dtype=np.float32)


def predict_pictures(
    model: keras.Model, pictures: npt.NDArray[np.uint8], batch_size: int = 32
) -> npt.NDArray[np.float32]:
    """Return the class probabilities of pictures in memory, uint8 (n, size, size, 3): float32 (n, 2)."""
    # Without a data set: that of `predict` takes 0.1 s to make, and TensorFlow keeps 18 kB of each until the process
    # ends, which a server may not.
    batches = [_SCALE[pictures[first : first + batch_size]] for first in range(0, len(pictures), batch_size)]
    return np.concatenate([np.asarray(model.predict_on_batch(batch), dtype=np.float32) for batch in batches])
