"""Training is plain `model.fit` to the last digits, on batches bit-equal to `img / 255` in a seeded order."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fakeface_lab.backend import keras, tf
from fakeface_lab.detector.fit import Training, evaluation_batches, predict, train, training_batches
from fakeface_lab.detector.model import augment_batch, image_seeds
from fakeface_lab.settings import Hyperparameters
from fakeface_lab.training.outcome import epoch_order
from tests.detector.small_training import (
    LABELS,
    PIXELS,
    RESUMABLE,
    SIZE_PX,
    SMALL,
    TRAIN_ROWS,
    VALIDATION_ROWS,
    Heard,
    run,
)

pytestmark = pytest.mark.usefixtures("deterministic")


def documented_model() -> keras.Model:
    """The document's listing, written out by hand."""
    layers = keras.layers
    model = keras.Sequential()
    model.add(keras.Input(shape=(SIZE_PX, SIZE_PX, 3)))
    model.add(layers.Conv2D(32, (3, 3), padding="same"))
    model.add(layers.Activation("relu"))
    model.add(layers.MaxPooling2D(pool_size=(2, 2)))
    model.add(layers.Dropout(0.25))
    model.add(layers.Conv2D(64, (3, 3), padding="same"))
    model.add(layers.Activation("relu"))
    model.add(layers.MaxPooling2D(pool_size=(2, 2)))
    model.add(layers.Dropout(0.25))
    model.add(layers.Flatten())
    model.add(layers.Dense(128))
    model.add(layers.Activation("relu"))
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(2))
    model.add(layers.Activation("softmax"))
    optimizer = keras.optimizers.Adam(learning_rate=1e-4)
    model.compile(loss="categorical_crossentropy", optimizer=optimizer, metrics=["accuracy"], jit_compile=False)
    return model


def test_loss_trace_is_that_of_plain_fit_on_the_documented_model(tmp_path: Path) -> None:
    seed, epochs = 7, 3
    training = Training(Hyperparameters(), SIZE_PX, seed, epochs)
    model, recorder = run(training, tmp_path / "run")

    keras.utils.set_random_seed(seed)
    by_hand = documented_model()
    images, one_hot = (PIXELS / 255).astype(np.float32), keras.utils.to_categorical(LABELS, 2)
    validation = (images[VALIDATION_ROWS], one_hot[VALIDATION_ROWS])
    trace = []
    for epoch in range(epochs):
        rows = TRAIN_ROWS[epoch_order(len(TRAIN_ROWS), seed, epoch)]
        history = by_hand.fit(
            images[rows], one_hot[rows], batch_size=32, shuffle=False, validation_data=validation, verbose=0
        ).history
        trace.append({name: values[0] for name, values in history.items()})

    assert len(TRAIN_ROWS) % 32, "the last batch must be a partial one"
    for expected, record in zip(trace, recorder.records, strict=True):
        assert {name: record.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert int(np.asarray(model.optimizer.iterations)) == epochs * 2
    for one, other in zip(model.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_an_epoch_reports_what_evaluate_finds(tmp_path: Path) -> None:
    model, recorder = run(Training(SMALL, SIZE_PX, seed=0, epochs=2), tmp_path)
    images, one_hot = (PIXELS / 255).astype(np.float32), keras.utils.to_categorical(LABELS, 2)
    loss, accuracy = model.evaluate(images[VALIDATION_ROWS], one_hot[VALIDATION_ROWS], verbose=0)
    last = recorder.records[-1].metrics
    assert last["val_loss"] == pytest.approx(loss, abs=1e-6)
    assert last["val_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert last["learning_rate"] == pytest.approx(3e-3)
    assert last["epoch_secs"] > 0
    assert set(last) == {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_secs"}


def test_without_validation_there_are_no_validation_figures(tmp_path: Path) -> None:
    _, recorder = run(Training(SMALL, SIZE_PX, seed=0, epochs=1), tmp_path, validation=False)
    assert set(recorder.records[0].metrics) == {"loss", "accuracy", "learning_rate", "epoch_secs"}


def test_the_order_of_the_images_is_part_of_the_result(tmp_path: Path) -> None:
    training = RESUMABLE["last"]
    backwards = TRAIN_ROWS[::-1].copy()
    other = train(training.build(), training, PIXELS, LABELS, backwards, VALIDATION_ROWS, tmp_path, Heard())
    expected = run(training, tmp_path / "forwards")[1].records[0].metrics["loss"]
    assert abs(other.records[0].metrics["loss"] - expected) > 1e-5, "the tolerance of the trace would notice it"


def test_predict_follows_the_rows_asked_for(tmp_path: Path) -> None:
    model = Training(SMALL, SIZE_PX, seed=0, epochs=1).build()
    rows = np.array([5, 3, 64, 3], dtype=np.int64)
    found = predict(model, PIXELS, rows, batch_size=3)
    assert found.shape == (4, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    expected = model.predict((PIXELS[rows] / 255).astype(np.float32), verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert predict(model, PIXELS, np.arange(66)).shape == (66, 2)


Batch = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]

# Every row holds its own number, so that a batch says which rows it is made of.
NUM_IMAGES = 23
NUMBERED = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 16, 16, 3), dtype=np.uint8)
NUMBERED[:, 0, 0, 0] = np.arange(NUM_IMAGES)
NUMBERED_LABELS = (np.arange(NUM_IMAGES) % 3 == 0).astype(np.int64)
ROWS = np.array([20, 3, 5, 0, 11, 17, 8, 9, 1, 14], dtype=np.int64)


def _train(**changes: object) -> list[Batch]:
    arguments: dict[str, object] = {"batch_size": 4, "seed": 5, "epochs": 2} | changes
    batches = training_batches(NUMBERED, NUMBERED_LABELS, ROWS, **arguments)  # type: ignore[arg-type]
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
        np.testing.assert_array_equal(images, (NUMBERED[rows] / 255).astype(np.float32))
        np.testing.assert_array_equal(one_hot, np.eye(2, dtype=np.float32)[NUMBERED_LABELS[rows]])


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
            original = tf.constant((NUMBERED[ROWS[position]][None] / 255).astype(np.float32))
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
    batches = list(evaluation_batches(NUMBERED, NUMBERED_LABELS, ROWS, batch_size=4))
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    np.testing.assert_array_equal(
        np.concatenate([images.numpy() for images, _ in batches]), (NUMBERED[ROWS] / 255).astype(np.float32)
    )
    np.testing.assert_array_equal(
        np.concatenate([one_hot.numpy() for _, one_hot in batches]), np.eye(2)[NUMBERED_LABELS[ROWS]]
    )
    assert list(evaluation_batches(NUMBERED, NUMBERED_LABELS, ROWS[:0])) == []


def test_batches_have_a_known_shape() -> None:
    training = training_batches(NUMBERED, NUMBERED_LABELS, ROWS, batch_size=4, seed=0, epochs=1, augmentation=1.0)
    for batches in (training, evaluation_batches(NUMBERED, NUMBERED_LABELS, ROWS)):
        images, one_hot = batches.element_spec
        assert (images.shape.as_list(), one_hot.shape.as_list()) == ([None, 16, 16, 3], [None, 2])


def test_nothing_is_tuned_whose_end_would_be_waited_for() -> None:
    for batches in (
        training_batches(NUMBERED, NUMBERED_LABELS, ROWS, batch_size=4, seed=0, epochs=1),
        evaluation_batches(NUMBERED, NUMBERED_LABELS, ROWS, 4),
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
