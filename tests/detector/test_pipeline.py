"""Batches are bit-equal to `img / 255`, in an order that seed and epoch alone decide."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fakeface_lab.backend import tf
from fakeface_lab.detector.fit import evaluation_batches, training_batches
from fakeface_lab.detector.model import augment_batch, image_seeds
from fakeface_lab.training.outcome import epoch_order

Batch = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]

# Every row holds its own number, so that a batch says which rows it is made of.
NUM_IMAGES = 23
PIXELS = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 16, 16, 3), dtype=np.uint8)
PIXELS[:, 0, 0, 0] = np.arange(NUM_IMAGES)
LABELS = (np.arange(NUM_IMAGES) % 3 == 0).astype(np.int64)
ROWS = np.array([20, 3, 5, 0, 11, 17, 8, 9, 1, 14], dtype=np.int64)


def _train(**changes: object) -> list[Batch]:
    arguments: dict[str, object] = {"batch_size": 4, "seed": 5, "epochs": 2} | changes
    batches = training_batches(PIXELS, LABELS, ROWS, **arguments)  # type: ignore[arg-type]
    return [(images.numpy(), one_hot.numpy()) for images, one_hot in batches]


def _rows(images: npt.NDArray[np.float32]) -> list[int]:
    return [int(value) for value in np.rint(images[:, 0, 0, 0] * 255)]


def test_every_byte_becomes_what_numpy_makes_of_it() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    labels, rows = np.zeros(1, np.int64), np.zeros(1, np.int64)
    documented = pixels.astype(np.float32) / 255  # what `img_to_array(img) / 255` is
    for batches in (
        evaluation_batches(pixels, labels, rows),
        training_batches(pixels, labels, rows, batch_size=1, seed=0, epochs=1),
    ):
        ((images, _),) = list(batches)
        assert images.dtype == tf.float32
        np.testing.assert_array_equal(images.numpy(), documented)
    # The trap that the table avoids: a division inside a graph is not the same.
    inside = tf.function(lambda values: tf.cast(values, tf.float32) / 255.0)(pixels).numpy()
    assert (inside != documented).any()


def test_an_epoch_has_each_training_image_once_and_a_smaller_last_batch() -> None:
    batches = _train(epochs=3)
    assert [len(images) for images, _ in batches] == [4, 4, 2] * 3
    epochs = [[row for images, _ in batches[first : first + 3] for row in _rows(images)] for first in (0, 3, 6)]
    assert all(sorted(epoch) == sorted(ROWS.tolist()) for epoch in epochs)
    assert epochs[0] != epochs[1]
    for number, epoch in enumerate(epochs):
        assert epoch == ROWS[epoch_order(len(ROWS), 5, number)].tolist()


def test_images_and_labels_stay_together() -> None:
    for images, one_hot in _train(epochs=1):
        rows = _rows(images)
        np.testing.assert_array_equal(images, (PIXELS[rows] / 255).astype(np.float32))
        np.testing.assert_array_equal(one_hot, np.eye(2, dtype=np.float32)[LABELS[rows]])


@pytest.mark.parametrize("augmentation", [0.0, 1.0])
@pytest.mark.parametrize("done", [1, 2, 3])
def test_training_continued_at_an_epoch_sees_the_same_batches(augmentation: float, done: int) -> None:
    whole = _train(epochs=4, augmentation=augmentation)
    rest = _train(epochs=4, initial_epoch=done, augmentation=augmentation)
    assert len(rest) == len(whole) - 3 * done
    for (images, one_hot), (images_before, one_hot_before) in zip(rest, whole[3 * done :], strict=True):
        np.testing.assert_array_equal(images, images_before)
        np.testing.assert_array_equal(one_hot, one_hot_before)


def test_augmentation_of_an_image_follows_from_seed_epoch_and_image_alone() -> None:
    alone = {}
    for epoch in (0, 1):
        for position in range(len(ROWS)):
            seeds = image_seeds(5, epoch, tf.constant([position]))
            original = tf.constant((PIXELS[ROWS[position]][None] / 255).astype(np.float32))
            alone[epoch, position] = augment_batch(original, seeds, 1.0).numpy()[0]
    for batch_size in (1, 4, 10):
        batches = _train(batch_size=batch_size, augmentation=1.0)
        num_steps = math.ceil(len(ROWS) / batch_size)
        for epoch in (0, 1):
            images = np.concatenate([images for images, _ in batches[epoch * num_steps :][:num_steps]])
            for picture, position in zip(images, epoch_order(len(ROWS), 5, epoch), strict=True):
                np.testing.assert_array_equal(picture, alone[epoch, int(position)])
    assert (alone[0, 0] != alone[1, 0]).any()


def test_augmented_batches_keep_shape_and_range() -> None:
    for images, _ in _train(augmentation=2.0):
        assert images.shape[1:] == (16, 16, 3)
        assert images.dtype == np.float32
        assert 0 <= images.min() <= images.max() <= 1


def test_evaluation_goes_through_the_rows_in_their_order() -> None:
    batches = list(evaluation_batches(PIXELS, LABELS, ROWS, batch_size=4))
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    np.testing.assert_array_equal(
        np.concatenate([images.numpy() for images, _ in batches]), (PIXELS[ROWS] / 255).astype(np.float32)
    )
    np.testing.assert_array_equal(np.concatenate([one_hot.numpy() for _, one_hot in batches]), np.eye(2)[LABELS[ROWS]])
    assert list(evaluation_batches(PIXELS, LABELS, ROWS[:0])) == []


def test_batches_have_a_known_shape() -> None:
    training = training_batches(PIXELS, LABELS, ROWS, batch_size=4, seed=0, epochs=1, augmentation=1.0)
    for batches in (training, evaluation_batches(PIXELS, LABELS, ROWS)):
        images, one_hot = batches.element_spec
        assert (images.shape.as_list(), one_hot.shape.as_list()) == ([None, 16, 16, 3], [None, 2])


def test_nothing_is_tuned_whose_end_would_be_waited_for() -> None:
    for batches in (
        training_batches(PIXELS, LABELS, ROWS, batch_size=4, seed=0, epochs=1),
        evaluation_batches(PIXELS, LABELS, ROWS, 4),
    ):
        assert batches.options().autotune.enabled is False


FLAT = """
import sys
import numpy as np, psutil
from fakeface_lab.detector.fit import training_batches
num_images = int(sys.argv[2])
pixels = np.lib.format.open_memmap(sys.argv[1], mode="w+", dtype=np.uint8, shape=(num_images, 128, 128, 3))
del pixels
pixels = np.load(sys.argv[1], mmap_mode="r")
rows = np.arange(num_images)
labels = rows % 2
private = lambda: (lambda memory: memory.rss - memory.shared)(psutil.Process().memory_info())
sizes = []
batches = training_batches(pixels, labels, rows, batch_size=32, seed=0, epochs=2)
for number, _ in enumerate(batches):
    sizes.append(private())
print((max(sizes) - sizes[5]) // 2**20)
"""


@pytest.mark.slow
def test_memory_stays_flat_however_many_images_there_are(tmp_path: Path) -> None:
    # 4,000 images are 197 MB as bytes and 786 MB as float32.
    command = [sys.executable, "-c", FLAT, str(tmp_path / "pixels.npy"), "4000"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(output.stdout) < 100
