"""The documented CNN, layer by layer, and its augmentation against Keras's own ImageDataGenerator mathematics."""

import math
from collections.abc import Iterator

import keras_tuner
import numpy as np
import pytest
from keras.src.legacy.preprocessing.image import apply_affine_transform
from numpy.typing import NDArray

from fakeface_lab.backend import keras, tf
from fakeface_lab.detector.model import (
    affine_transforms,
    augment_batch,
    build_model,
    fixed_hyperparameters,
    image_seeds,
)
from fakeface_lab.errors import ConfigError
from fakeface_lab.settings import Hyperparameters

# Name, output shape without the batch, parameters: the document's summary.
DOCUMENTED_LAYERS = [
    ("conv2d", "Conv2D", (300, 300, 32), 896),
    ("activation", "Activation", (300, 300, 32), 0),
    ("max_pooling2d", "MaxPooling2D", (150, 150, 32), 0),
    ("dropout", "Dropout", (150, 150, 32), 0),
    ("conv2d_1", "Conv2D", (150, 150, 64), 18_496),
    ("activation_1", "Activation", (150, 150, 64), 0),
    ("max_pooling2d_1", "MaxPooling2D", (75, 75, 64), 0),
    ("dropout_1", "Dropout", (75, 75, 64), 0),
    ("flatten", "Flatten", (360_000,), 0),
    ("dense", "Dense", (128,), 46_080_128),
    ("activation_2", "Activation", (128,), 0),
    ("dropout_2", "Dropout", (128,), 0),
    ("dense_1", "Dense", (2,), 258),
    ("activation_3", "Activation", (2,), 0),
]
DOCUMENTED_NUM_PARAMS = 46_099_778


@pytest.fixture(scope="module")
def documented() -> keras.Model:
    return build_model(keras_tuner.HyperParameters())


@pytest.fixture
def clean_keras() -> Iterator[None]:
    """Undo what a test does to Keras's global state."""
    yield
    keras.config.set_dtype_policy("float32")


def small_hp(seed: int = 0, image_size_px: int = 16, **values: object) -> keras_tuner.HyperParameters:
    chosen = {"filters_1": 4, "filters_2": 6, "dense_units": 5} | values
    return fixed_hyperparameters(Hyperparameters.model_validate(chosen), image_size_px, seed)


def assert_same_weights(first: keras.Model, second: keras.Model) -> None:
    assert [v.path for v in first.weights] == [v.path for v in second.weights]
    for one, other in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_default_model_is_the_documented_one_layer_by_layer(documented: keras.Model) -> None:
    found = [
        (layer.name, type(layer).__name__, layer.output.shape[1:], layer.count_params()) for layer in documented.layers
    ]
    assert found == DOCUMENTED_LAYERS
    assert documented.count_params() == DOCUMENTED_NUM_PARAMS
    assert documented.input_shape == (None, 300, 300, 3)


def test_documented_details_that_a_summary_does_not_show(documented: keras.Model) -> None:
    layer = {layer.name: layer for layer in documented.layers}
    assert [layer[name].rate for name in ("dropout", "dropout_1", "dropout_2")] == [0.25, 0.25, 0.5]
    assert [layer[name].kernel_size for name in ("conv2d", "conv2d_1")] == [(3, 3), (3, 3)]
    assert [layer[name].padding for name in ("conv2d", "conv2d_1")] == ["same", "same"]
    activations = ("activation", "activation_1", "activation_2", "activation_3")
    assert [layer[name].activation.__name__ for name in activations] == ["relu", "relu", "relu", "softmax"]
    assert isinstance(documented.optimizer, keras.optimizers.Adam)
    assert float(documented.optimizer.learning_rate.numpy()) == pytest.approx(1e-4, rel=1e-6)
    assert documented.loss == "categorical_crossentropy"
    assert documented.jit_compile is False


def test_nothing_given_means_the_documented_hyperparameters() -> None:
    declared = keras_tuner.HyperParameters()
    declared.Fixed("image_size", 16)
    build_model(declared)
    expected = Hyperparameters().model_dump(exclude={"batch_size", "augmentation"})
    assert declared.values == expected | {"image_size": 16, "seed": 0}


@pytest.mark.parametrize(("size_px", "flat"), [(16, 4 * 4 * 6), (24, 6 * 6 * 6), (41, 10 * 10 * 6)])
def test_other_image_sizes_follow(size_px: int, flat: int) -> None:
    model = build_model(small_hp(image_size_px=size_px))
    assert model.input_shape == (None, size_px, size_px, 3)
    assert model.get_layer("flatten").output.shape == (None, flat)
    assert model.count_params() == (27 * 4 + 4) + (36 * 6 + 6) + (flat * 5 + 5) + (5 * 2 + 2)


def test_a_registered_range_opens_a_hyperparameter() -> None:
    space = keras_tuner.HyperParameters()
    space.Fixed("image_size", 16)
    space.Choice("filters_1", [3, 7], default=7)
    space.Int("dense_units", 8, 32, step=8, default=24)
    space.Float("dense_dropout", 0.1, 0.4, default=0.3)
    space.Float("learning_rate", 1e-5, 1e-2, sampling="log", default=2e-3)
    ranges = [type(hp).__name__ for hp in space.space]
    model = build_model(space)
    assert model.get_layer("conv2d").filters == 7
    assert model.get_layer("dense").units == 24
    assert model.get_layer("dropout_2").rate == 0.3
    assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(2e-3)
    # The ranges are still there: an oracle draws from what the container holds after the first build.
    assert [type(hp).__name__ for hp in space.space][: len(ranges)] == ranges


def test_an_oracles_values_win_over_the_defaults() -> None:
    space = keras_tuner.HyperParameters()
    space.Fixed("image_size", 16)
    space.Choice("filters_2", [8, 16])
    space.Int("dense_units", 4, 64)
    space.values.update({"filters_2": 16, "dense_units": 33})
    model = build_model(space)
    assert (model.get_layer("conv2d_1").filters, model.get_layer("dense").units) == (16, 33)


def test_build_is_pure_whatever_ran_before() -> None:
    first = build_model(small_hp(seed=3))
    build_model(small_hp(seed=4)).predict(np.zeros((1, 16, 16, 3), np.float32), verbose=0)
    np.random.default_rng().random()
    keras.utils.set_random_seed(99)
    assert_same_weights(first, build_model(small_hp(seed=3)))
    keras.backend.clear_session()
    assert_same_weights(first, build_model(small_hp(seed=3)))


def test_another_seed_gives_other_weights_and_other_dropout() -> None:
    first, second = build_model(small_hp(seed=0)), build_model(small_hp(seed=1))
    differing = [
        one.path
        for one, other in zip(first.variables, second.variables, strict=True)
        if not np.array_equal(np.asarray(one), np.asarray(other))
    ]
    assert sum("kernel" in path for path in differing) == 4
    assert sum("seed_generator" in path for path in differing) == 3


def test_initial_weights_are_glorot_uniform_and_biases_zero() -> None:
    model = build_model(small_hp(image_size_px=32, dense_units=200))
    kernel = np.asarray(model.get_layer("dense").kernel)
    limit = np.sqrt(6 / sum(kernel.shape))
    assert np.abs(kernel).max() == pytest.approx(limit, rel=0.01)
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.02)
    assert not np.asarray(model.get_layer("dense").bias).any()


def test_bfloat16_keeps_weights_and_probabilities_in_float32() -> None:
    model = build_model(small_hp(precision="mixed_bfloat16"))
    assert model.get_layer("conv2d").compute_dtype == "bfloat16"
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    probabilities = model.predict(np.random.default_rng(0).random((5, 16, 16, 3), dtype=np.float32), verbose=0)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    # Three digits would make the sum of two bfloat16 numbers land on a multiple of 2**-8.
    assert not np.array_equal(probabilities * 256, np.round(probabilities * 256))


def test_a_global_dtype_policy_changes_nothing(clean_keras: None) -> None:
    expected = build_model(small_hp())
    keras.config.set_dtype_policy("mixed_float16")
    model = build_model(small_hp())
    assert type(model.optimizer) is keras.optimizers.Adam
    assert [layer.compute_dtype for layer in model.layers] == ["float32"] * 14
    assert_same_weights(expected, model)


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


@pytest.mark.slow
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
