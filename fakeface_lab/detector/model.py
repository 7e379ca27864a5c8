"""The documented CNN, and everything the search may vary in it: one builder for the baseline and every trial."""

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.settings import Hyperparameters

__all__ = ["build_model", "fixed_hyperparameters"]

NUM_CLASSES = 2
DOCUMENTED_IMAGE_SIZE_PX = 300


def build_model(hp: keras_tuner.HyperParameters) -> keras.Model:
    """Return the compiled network; with `HyperParameters()` it is the documented one, 46,099,778 parameters.

    Every hyperparameter is declared as fixed at its documented value; a search opens one by registering a range
    under the same name before it builds. `image_size` and `seed` travel the same way. The builder reads no data and
    opens no run, and sets the seed itself, because KerasTuner clears Keras's global state before each build.

    Input: float32 (batch, image_size, image_size, 3) in [0, 1]. Output: float32 (batch, 2), softmax in class order.

    Source: the document's model listing and summary (14 layers).
    """
    documented = Hyperparameters()
    size_px = int(hp.Fixed("image_size", DOCUMENTED_IMAGE_SIZE_PX))
    keras.utils.set_random_seed(int(hp.Fixed("seed", 0)))
    dtype = hp.Fixed("precision", documented.precision)
    conv_dropout = float(hp.Fixed("conv_dropout", documented.conv_dropout))
    layers = keras.layers
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
        # A global float16 policy, left behind by other code, must not wrap the optimizer.
        auto_scale_loss=False,
        # XLA makes a step of this network ten times slower on a CPU.
        jit_compile=False,
    )
    return model


def fixed_hyperparameters(values: Hyperparameters, image_size_px: int, seed: int) -> keras_tuner.HyperParameters:
    """Return KerasTuner's container with every hyperparameter of `build_model` fixed at the given values."""
    hp = keras_tuner.HyperParameters()
    for name, value in {**values.model_dump(), "image_size": image_size_px, "seed": seed}.items():
        hp.Fixed(name, value)
    return hp
