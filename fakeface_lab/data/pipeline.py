"""How pixels reach the model: float32 batches in [0, 1], in an order that is a pure function of seed and epoch."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fakeface_lab.backend import tf

__all__ = ["epoch_order", "evaluation_batches", "training_batches"]

# Division inside a tf.function becomes a multiplication and differs from NumPy's `pixels / 255` in 126 of the 256
# values; a table that NumPy made has the documented ones.
_SCALE = (np.arange(256) / 255).astype(np.float32)


def epoch_order(num_images: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of the training images in one epoch (0-based): int64 (num_images,), a permutation."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


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

    def batches() -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]]:
        for epoch in range(initial_epoch, epochs):
            order = epoch_order(len(rows), seed, epoch)
            for first in range(0, len(rows), batch_size):
                positions = order[first : first + batch_size]
                # One pair of seeds an image: what is drawn for it depends on nothing but seed, epoch and image.
                image_seeds = np.stack([np.full_like(positions, seed * 100_003 + epoch), positions], axis=1)
                yield rows[positions], (image_seeds % 2**31).astype(np.int32)

    index = tf.data.Dataset.from_generator(
        batches,
        output_signature=(tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None, 2), tf.int32)),
    )
    loaded = _load(index, pixels, labels)
    if augmentation:
        from fakeface_lab.augmentation import augment_batch

        loaded = loaded.map(
            lambda images, one_hot, seeds: (augment_batch(images, seeds, augmentation), one_hot),
            num_parallel_calls=1,
            deterministic=True,
        )
    else:
        loaded = loaded.map(lambda images, one_hot, seeds: (images, one_hot))
    return loaded.prefetch(1)


def evaluation_batches(
    pixels: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    batch_size: int = 32,
) -> tf.data.Dataset:
    """Return batches like `training_batches`, once through `rows` in their order."""
    starts = tf.data.Dataset.range(0, len(rows), batch_size)
    index = starts.map(lambda first: (tf.constant(rows)[first : first + batch_size], tf.zeros((0, 2), tf.int32)))
    return _load(index, pixels, labels).map(lambda images, one_hot, seeds: (images, one_hot)).prefetch(1)


def _load(index: tf.data.Dataset, pixels: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> tf.data.Dataset:
    height, width = pixels.shape[1:3]

    def load(rows: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        raw = tf.numpy_function(lambda wanted: pixels[wanted], [rows], tf.uint8, stateful=False)
        images = tf.gather(tf.constant(_SCALE), tf.cast(raw, tf.int32))
        return (
            tf.ensure_shape(images, (None, height, width, 3)),
            tf.one_hot(tf.gather(tf.constant(labels), rows), 2),
            seeds,
        )

    return index.map(load, num_parallel_calls=1, deterministic=True)
