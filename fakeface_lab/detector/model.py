"""The documented CNN and its augmentation: one builder for the baseline and every trial."""

import math

from fakeface_lab.backend import keras, keras_tuner, tf
from fakeface_lab.errors import ConfigError
from fakeface_lab.settings import Hyperparameters

__all__ = ["MAX_STRENGTH", "affine_transforms", "augment_batch", "build_model", "fixed_hyperparameters", "image_seeds"]

NUM_CLASSES = 2
DOCUMENTED_IMAGE_SIZE_PX = 300


def build_model(hp: keras_tuner.HyperParameters) -> keras.Model:
    """Return the compiled network; with `HyperParameters()` it is the documented one, 46,099,778 parameters.

    Every hyperparameter is declared as fixed at its documented value; a search varies one by registering a range under
    the same name before building. `image_size` and `seed` are passed the same way. The builder reads no data and opens
    no run. It sets the seed itself, because KerasTuner clears Keras's global state before each build.

    Input: float32 (batch, image_size, image_size, 3) in [0, 1]. Output: float32 (batch, 2), softmax in class order.

    Source: the document's model listing and summary (14 layers).
    """
    documented = Hyperparameters()
    size_px = int(hp.Fixed("image_size", DOCUMENTED_IMAGE_SIZE_PX))
    # Dropout as well: each layer draws the seed of its own generator when it is created.
    keras.utils.set_random_seed(int(hp.Fixed("seed", 0)))
    dtype = hp.Fixed("precision", documented.precision)
    conv_dropout = float(hp.Fixed("conv_dropout", documented.conv_dropout))
    layers = keras.layers
    # Names are given: automatic ones count up with each model of a process, and would differ between two trials.
    model = keras.Sequential(
        [
            keras.Input((size_px, size_px, 3), name="images"),
            layers.Conv2D(
                int(hp.Fixed("filters_1", documented.filters_1)),
                3,
                padding="same",
                dtype=dtype,
                name="conv2d",
            ),
            # Layers of their own, as documented; inside the convolutions the summary would not have its 14 layers.
            layers.Activation("relu", dtype=dtype, name="activation"),
            layers.MaxPooling2D(2, dtype=dtype, name="max_pooling2d"),
            layers.Dropout(conv_dropout, dtype=dtype, name="dropout"),
            layers.Conv2D(
                int(hp.Fixed("filters_2", documented.filters_2)),
                3,
                padding="same",
                dtype=dtype,
                name="conv2d_1",
            ),
            layers.Activation("relu", dtype=dtype, name="activation_1"),
            layers.MaxPooling2D(2, dtype=dtype, name="max_pooling2d_1"),
            layers.Dropout(conv_dropout, dtype=dtype, name="dropout_1"),
            layers.Flatten(dtype=dtype, name="flatten"),
            # 46,080,000 of the 46,099,778 parameters: 75 * 75 * 64 inputs to each of 128 units.
            layers.Dense(int(hp.Fixed("dense_units", documented.dense_units)), dtype=dtype, name="dense"),
            layers.Activation("relu", dtype=dtype, name="activation_2"),
            layers.Dropout(float(hp.Fixed("dense_dropout", documented.dense_dropout)), dtype=dtype, name="dropout_2"),
            layers.Dense(NUM_CLASSES, dtype=dtype, name="dense_1"),
            # Probabilities stay float32 under mixed precision: bfloat16 has three digits.
            layers.Activation("softmax", dtype="float32", name="activation_3"),
        ],
        name="fakeface_cnn",
    )
    model.compile(
        optimizer=keras.optimizers.Adam(float(hp.Fixed("learning_rate", documented.learning_rate))),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
        # A global float16 policy set by other code must not wrap the optimizer.
        auto_scale_loss=False,
        # On a CPU XLA makes a step of this network ten times slower (9 to 12 s, not 0.72 to 0.93 s, on two threads)
        # and needs 11 GB.
        jit_compile=False,
    )
    return model


def fixed_hyperparameters(values: Hyperparameters, image_size_px: int, seed: int) -> keras_tuner.HyperParameters:
    """Return KerasTuner hyperparameters that fix everything `build_model` declares at the given values."""
    hp = keras_tuner.HyperParameters()
    for name, value in {**values.model_dump(), "image_size": image_size_px, "seed": seed}.items():
        hp.Fixed(name, value)
    return hp


# At strength 1, as declared for ImageDataGenerator: each value is drawn uniformly from -range..range.
ROTATION_RANGE_DEGREES = 40.0
SHIFT_RANGE_FRACTION = 0.2
SHEAR_RANGE_DEGREES = 0.2  # degrees in ImageDataGenerator, not a fraction: hardly visible, kept for parity
ZOOM_RANGE = 0.2  # zoom factors are drawn from 1 - 0.2..1 + 0.2, separately per axis
FLIP_PROBABILITY = 0.5

MAX_STRENGTH = 2.0
# Rotation, shear, two shifts, two zooms, flip.
NUM_DRAWS = 7


def image_seeds(seed: int, epoch: int | tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Return one seed per image, int64 (B, 2), unique per (seed, epoch, index) for indices below 2**32.

    Args:
        seed: the run's augmentation seed.
        epoch: number of the epoch; below 2**31.
        indices: int (B,), position of each image in the training split, independent of the batch order.
    """
    counters = tf.bitwise.left_shift(tf.cast(epoch, tf.int64), tf.constant(32, tf.int64)) + tf.cast(indices, tf.int64)
    return tf.stack([tf.fill(tf.shape(counters), tf.constant(seed, tf.int64)), counters], axis=1)


def augment_batch(images: tf.Tensor, seeds: tf.Tensor, strength: float = 1.0) -> tf.Tensor:
    """Rotate, shift, shear, zoom and flip each image by amounts that depend on its seed only.

    A pure function: the same seed gives the same image in any batch and after any restart, so a resumed training sees
    the same images as an uninterrupted one. Uncovered pixels repeat the nearest edge; sampling is bilinear.

    Args:
        images: float32 or uint8 (B, H, W, C).
        seeds: int (B, 2), from `image_seeds`.
        strength: 0..2; scales every range and (up to 1) the flip probability. 0 changes nothing, 1 is as declared.

    Returns:
        A tensor of the images' shape and dtype.

    Raises:
        ConfigError: the strength is out of range.
    """
    if not 0 <= strength <= MAX_STRENGTH:
        raise ConfigError(
            f"augmentation strength {strength:g} is out of range: use 0 (off) to {MAX_STRENGTH:g}; 1 is the declared "
            f"augmentation"
        )
    if strength == 0:
        return images
    shape = tf.shape(images)
    transforms = affine_transforms(seeds, shape[1], shape[2], strength)
    # Not Keras's random layers: on a CPU they take longer than the training step, and what they draw depends on all
    # earlier draws, which a resumed training has not made.
    resampled = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),  # on uint8 the kernel truncates instead of rounding
        transforms=transforms,
        output_shape=shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )
    if images.dtype == tf.uint8:
        resampled = tf.round(resampled)
    resampled = tf.ensure_shape(resampled, images.shape)
    return tf.cast(resampled, images.dtype)


def affine_transforms(seeds: tf.Tensor, height_px: int, width_px: int, strength: float) -> tf.Tensor:
    """Draw the transforms of `ImageProjectiveTransformV3`: float32 (B, 8), a0, a1, a2, b0, b1, b2, 0, 0.

    Output pixel (x, y) takes the value at (a0 x + a1 y + a2, b0 x + b1 y + b2). The matrix is that of Keras's
    `apply_affine_transform`: rotation @ shift @ shear @ zoom about the image center ((W - 1) / 2, (H - 1) / 2), then
    the flip.
    """
    # float64 up to the last line: vectorized and scalar sines differ in the last bit, so in float32 an image would
    # depend on its position in the batch and on eager or graph execution.
    draws = tf.map_fn(
        # One call per image, because `stateless_uniform` takes a single seed.
        lambda seed: tf.random.stateless_uniform([NUM_DRAWS], seed, dtype=tf.float64),
        seeds,
        fn_output_signature=tf.float64,
    )
    height, width = tf.cast(height_px, tf.float64), tf.cast(width_px, tf.float64)
    signed = strength * (2.0 * draws - 1.0)
    theta = math.radians(ROTATION_RANGE_DEGREES) * signed[:, 0]
    shear = math.radians(SHEAR_RANGE_DEGREES) * signed[:, 1]
    shift_x, shift_y = (
        SHIFT_RANGE_FRACTION * width * signed[:, 2],
        SHIFT_RANGE_FRACTION * height * signed[:, 3],
    )
    zoom_x, zoom_y = 1.0 + ZOOM_RANGE * signed[:, 4], 1.0 + ZOOM_RANGE * signed[:, 5]
    mirror = 1.0 - 2.0 * tf.cast(draws[:, 6] < FLIP_PROBABILITY * min(strength, 1.0), tf.float64)

    cos, sin = tf.cos(theta), tf.sin(theta)
    # rotation @ shear = [[cos, -sin(theta + shear)], [sin, cos(theta + shear)]]; the flip negates the x column.
    xx, xy = cos * zoom_x * mirror, -tf.sin(theta + shear) * zoom_y
    yx, yy = sin * zoom_x * mirror, tf.cos(theta + shear) * zoom_y
    centre_x, centre_y = (width - 1.0) / 2.0, (height - 1.0) / 2.0
    offset_x = cos * shift_x - sin * shift_y + centre_x - xx * centre_x - xy * centre_y
    offset_y = sin * shift_x + cos * shift_y + centre_y - yx * centre_x - yy * centre_y
    zero = tf.zeros_like(xx)
    return tf.cast(tf.stack([xx, xy, offset_x, yx, yy, offset_y, zero, zero], axis=1), tf.float32)
