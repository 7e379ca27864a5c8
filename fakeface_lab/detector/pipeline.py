"""How pixels reach the model: float32 batches in [0, 1], in an order that is a pure function of seed and epoch."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from fakeface_lab.backend import tf
from fakeface_lab.detector.augmentation import augment_batch, image_seeds
from fakeface_lab.files import file_view
from fakeface_lab.training.order import epoch_order

__all__ = ["evaluation_batches", "training_batches"]

# Division inside a tf.function becomes a multiplication and differs from NumPy's `pixels / 255` in 126 of the 256
# values; a table that NumPy made has the documented ones.
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

    Each epoch has `ceil(len(rows) / batch_size)` batches, the last one smaller, as `model.fit` has them. The order
    depends on seed and epoch alone, so that a training continued at `initial_epoch` sees the same batches.
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
    return _untuned(index.map(batch, num_parallel_calls=1, deterministic=True).prefetch(1))


def evaluation_batches(
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    batch_size: int = 32,
) -> tf.data.Dataset:
    """Return batches like `training_batches`, once through `rows` in their order."""
    load = _loader(pixels, labels)
    wanted = tf.constant(rows)
    starts = tf.data.Dataset.range(0, len(rows), batch_size)
    batches = starts.map(
        lambda first: load(wanted[first : first + batch_size]), num_parallel_calls=1, deterministic=True
    )
    return _untuned(batches.prefetch(1))


def _untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return the data set without autotuning: nothing in it is left to tune.

    With one inter-op thread an iterator waits at its end for the tuner's next turn, and its turns come at doubling
    intervals: after a training of 24 s another 17 s, after one of 48 s another 33.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def _loader(
    pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Return the function from row numbers, int64 (b,), to images and one-hot labels."""
    shape = (None, *pixels.shape[1:])
    scale, known_labels = tf.constant(_SCALE), tf.constant(labels)
    view = file_view(pixels)

    def read(wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        # Pages once touched count as this process's memory until their mapping closes: mapped for each batch anew,
        # they do not add up to the whole data set.
        source: npt.NDArray[np.uint8] = pixels if view is None else view.open()
        return source[wanted]

    def load(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        raw = tf.numpy_function(read, [rows], tf.uint8, stateful=False)
        images = tf.gather(scale, tf.cast(raw, tf.int32))
        return tf.ensure_shape(images, shape), tf.one_hot(tf.gather(known_labels, rows), 2)

    return load
