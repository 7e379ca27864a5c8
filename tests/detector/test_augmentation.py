"""The fast augmentation against Keras's own ImageDataGenerator mathematics, and its purity."""

import math
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.preprocessing.image import apply_affine_transform
from numpy.typing import NDArray

from fakeface_lab.detector.model import affine_transforms, augment_batch, image_seeds
from fakeface_lab.errors import ConfigError

SIZE_PX = 48


def smooth_images(num_images: int, height: int = SIZE_PX, width: int = SIZE_PX) -> NDArray[np.float32]:
    rng = np.random.default_rng(1)
    coarse = rng.random((num_images, 6, 6, 3), dtype=np.float32)
    return np.asarray(tf.image.resize(coarse, (height, width), method="bicubic"))


def seeds_of(num_images: int, seed: int = 5, epoch: int = 2) -> tf.Tensor:
    return image_seeds(seed, epoch, tf.range(num_images))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_equals_the_image_data_generator_arithmetic(strength: float) -> None:
    images, seeds = smooth_images(12), seeds_of(12)
    ours = augment_batch(tf.constant(images), seeds, strength).numpy()
    for image, seed, result in zip(images, seeds, ours, strict=True):
        draws = tf.random.stateless_uniform([7], seed, dtype=tf.float64).numpy()
        theta, shear, tx, ty, zx, zy = strength * (2 * draws[:6] - 1)
        expected = apply_affine_transform(
            image, 40 * theta, 0.2 * SIZE_PX * tx, 0.2 * SIZE_PX * ty, 0.2 * shear,
            1 + 0.2 * zx, 1 + 0.2 * zy, row_axis=0, col_axis=1, channel_axis=2, fill_mode="nearest", order=1,
        )  # fmt: skip
        if draws[6] < 0.5 * strength:
            expected = expected[:, ::-1]
        np.testing.assert_allclose(result, expected, atol=2e-4)


def test_some_images_are_flipped_and_some_are_not() -> None:
    determinants = np.linalg.det(
        affine_transforms(seeds_of(400), 300, 300, 1.0).numpy()[:, [0, 1, 3, 4]].reshape(-1, 2, 2)
    )
    assert 160 < (determinants < 0).sum() < 240
    assert 0.8**2 - 1e-3 < np.abs(determinants).min() < 0.72  # both ends of the zoom's area range are reached
    assert 1.3 < np.abs(determinants).max() < 1.2**2 + 1e-3


def test_ranges_are_filled_and_not_left() -> None:
    transforms = affine_transforms(seeds_of(4000), 200, 300, 1.0).numpy().astype(float)
    flipped = transforms[:, 0] * transforms[:, 4] - transforms[:, 1] * transforms[:, 3] < 0
    upright = transforms[~flipped]
    angle = np.degrees(np.arctan2(upright[:, 3], upright[:, 0]))
    assert 39 < angle.max() <= 40.001
    assert -40.001 <= angle.min() < -39
    # The centre (149.5, 99.5) goes to itself plus the rotated shift: undo the rotation to read the shift.
    centre = np.stack([upright[:, 0:3] @ [149.5, 99.5, 1], upright[:, 3:6] @ [149.5, 99.5, 1]], axis=1)
    moved = (centre[:, 0] - 149.5) + 1j * (centre[:, 1] - 99.5)
    shift = moved * np.exp(-1j * np.radians(angle))
    assert 58 < np.abs(shift.real).max() <= 60.01
    assert 38.5 < np.abs(shift.imag).max() <= 40.01


def test_an_image_does_not_depend_on_its_batch() -> None:
    images, seeds = tf.constant(smooth_images(37)), seeds_of(37)
    whole = augment_batch(images, seeds).numpy()
    order = [5, 36, 7]
    alone = augment_batch(tf.gather(images, order), tf.gather(seeds, order)).numpy()
    np.testing.assert_array_equal(alone, whole[order])


def test_the_same_inside_tf_data_and_after_a_restart() -> None:
    images = smooth_images(8)

    def epoch(number: int) -> NDArray[np.float32]:
        dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(8))).batch(4)
        mapped = dataset.map(
            lambda batch, indices: augment_batch(batch, image_seeds(5, number, indices)),
            num_parallel_calls=2,
        )
        return np.concatenate(list(mapped.as_numpy_iterator()))

    np.testing.assert_array_equal(epoch(2), augment_batch(tf.constant(images), seeds_of(8)).numpy())
    assert np.abs(epoch(3) - epoch(2)).mean() > 0.01


def test_seeds_differ_for_each_seed_epoch_and_index() -> None:
    seeds = np.concatenate([image_seeds(s, e, tf.range(50)).numpy() for s in range(3) for e in (0, 1, 2**31 - 1)])
    assert len(np.unique(seeds, axis=0)) == len(seeds) == 450
    draws = np.stack([tf.random.stateless_uniform([7], seed).numpy() for seed in seeds])
    assert len(np.unique(draws, axis=0)) == 450
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.15  # neighbours are not alike


def test_strength_zero_changes_nothing() -> None:
    images = tf.constant(smooth_images(3))
    assert augment_batch(images, seeds_of(3), 0.0) is images
    nearly = augment_batch(images, seeds_of(3), 1e-6).numpy()
    np.testing.assert_allclose(nearly, images.numpy(), atol=1e-3)


def test_uint8_is_rounded_and_keeps_its_type_and_shape() -> None:
    images = np.rint(np.clip(smooth_images(4, 20, 31), 0, 1) * 255).astype(np.uint8)
    exact = augment_batch(tf.constant(images, tf.float32), seeds_of(4)).numpy()
    ours = augment_batch(tf.constant(images), seeds_of(4))
    assert ours.dtype == tf.uint8
    assert ours.shape == (4, 20, 31, 3)
    np.testing.assert_array_equal(ours.numpy(), np.rint(exact).astype(np.uint8))


def test_a_constant_image_stays_constant_because_edges_are_repeated() -> None:
    gray = tf.fill([6, 40, 30, 3], 0.37)
    np.testing.assert_allclose(augment_batch(gray, seeds_of(6), 2.0).numpy(), 0.37, atol=1e-6)


@pytest.mark.parametrize("strength", [-0.1, 2.5, math.nan])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(ConfigError, match=r"augmentation strength .* use 0 \(off\) to 2"):
        augment_batch(tf.zeros([1, 8, 8, 3]), seeds_of(1), strength)
