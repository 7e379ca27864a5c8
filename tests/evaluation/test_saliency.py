"""Maps of tiny models trained on a planted bright square, whose location the maps must show."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Sequence

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from fakeface_lab.errors import DataError, ModelError
from fakeface_lab.evaluation.explanation import (
    border_share,
    evidence,
    hirescam,
    mean_evidence,
)

SIZE_PX = 24
SQUARE = np.s_[15:21, 3:9]  # rows 15..20, columns 3..8


def planted(num_images: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Noise; images of class 0 also have a bright square, always at the same location."""
    rng = np.random.default_rng(seed)
    images = rng.random((num_images, SIZE_PX, SIZE_PX, 3), dtype=np.float32) * 0.5
    labels = np.arange(num_images) % 2
    images[(labels == 0).nonzero()[0], SQUARE[0], SQUARE[1]] += 0.5
    return images, labels


def documented_layers(use_bias: bool = True) -> list[keras.layers.Layer]:
    layers = keras.layers
    return [
        layers.Conv2D(4, 3, padding="same", use_bias=use_bias),
        layers.Activation("relu"),
        layers.MaxPooling2D(2),
        layers.Dropout(0.25),
        layers.Conv2D(6, 3, use_bias=use_bias),
        layers.Activation("relu"),
        layers.MaxPooling2D(2),
        layers.Dropout(0.25),
        layers.Flatten(),
        layers.Dense(16, use_bias=use_bias),
        layers.Activation("relu"),
        layers.Dropout(0.5),
        layers.Dense(2, use_bias=use_bias),
        layers.Activation("softmax"),
    ]


def small_model(layers: Sequence[keras.layers.Layer]) -> keras.Sequential:
    return keras.Sequential([keras.Input((SIZE_PX, SIZE_PX, 3)), *layers])


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    keras.utils.set_random_seed(3)
    model = small_model(documented_layers())
    model.compile(
        optimizer=keras.optimizers.Adam(3e-3),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.fit(*planted(128), epochs=12, batch_size=16, verbose=0)
    assert model.evaluate(*planted(64, seed=9), verbose=0)[1] > 0.95
    return model


def test_without_biases_a_map_sums_to_the_margin() -> None:
    keras.utils.set_random_seed(1)
    model = small_model(documented_layers(use_bias=False))
    images, _ = planted(9)
    maps = hirescam(model, images, batch_size=4)
    logits = keras.ops.convert_to_numpy(keras.Model(model.inputs, model.layers[-1].input)(images))
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), logits[:, 0] - logits[:, 1], rtol=1e-4, atol=1e-6)


def test_a_linear_head_gives_the_map_by_hand() -> None:
    keras.utils.set_random_seed(2)
    layers = keras.layers
    model = small_model([layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(2, activation="softmax")])
    images, _ = planted(2)
    features = keras.ops.convert_to_numpy(model.layers[0](images))
    kernel = model.layers[-1].get_weights()[0]
    weights = (kernel[:, 0] - kernel[:, 1]).reshape(features.shape[1:])
    np.testing.assert_allclose(hirescam(model, images), (features * weights).sum(axis=-1), rtol=1e-4, atol=1e-5)


def test_the_map_peaks_in_the_planted_square(trained: keras.Model) -> None:
    images, labels = planted(40, seed=5)
    own = mean_evidence(hirescam(trained, images), labels)[0]
    row, column = np.unravel_index(own.argmax(), own.shape)
    cell_px = SIZE_PX / own.shape[0]
    assert 14 <= (row + 0.5) * cell_px <= 22
    assert 2 <= (column + 0.5) * cell_px <= 10


def test_evidence_is_the_part_for_one_class() -> None:
    maps = np.array([[[2.0, -3.0]]], np.float32)
    assert evidence(maps, 0).tolist() == [[[2.0, 0.0]]]
    assert evidence(maps, 1).tolist() == [[[0.0, 3.0]]]


def test_every_image_has_the_same_weight_in_the_mean() -> None:
    maps = np.array([[[1.0, 0.0]], [[0.0, 99.0]], [[-5.0, 0.0]]], np.float32)
    np.testing.assert_allclose(mean_evidence(maps, [0, 0, 1]), [[[0.5, 0.5]], [[1.0, 0.0]]])


def test_a_mean_without_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="no image of class 1 among 2 maps"):
        mean_evidence(np.ones((2, 3, 3), np.float32), [0, 0])


def test_border_share_of_known_maps() -> None:
    even = border_share(np.ones((3, 20, 20), np.float32))
    assert even.energy == pytest.approx(even.area) == pytest.approx(1 - 0.7**2)
    coarse = border_share(np.ones((1, 7, 23), np.float32))  # 15 % of 7 cells is not a whole number
    assert coarse.energy == pytest.approx(coarse.area) == pytest.approx(0.51)
    corner, centre = np.zeros((2, 1, 20, 20), np.float32)
    corner[0, 0, 0], centre[0, 10, 10] = -2.0, 5.0
    assert border_share(corner).energy == 1.0
    assert border_share(centre).energy == 0.0
    mixed = border_share(np.concatenate([corner, centre, np.zeros_like(centre)]))
    assert (mixed.energy, mixed.num_images) == (0.5, 2)


def test_border_share_of_empty_maps_is_refused() -> None:
    with pytest.raises(DataError, match="all 2 maps are 0 everywhere"):
        border_share(np.zeros((2, 5, 5), np.float32))


def test_models_that_cannot_be_explained_are_refused() -> None:
    layers = keras.layers
    pooled = small_model([layers.Conv2D(2, 3), layers.GlobalAveragePooling2D(), layers.Dense(2, activation="softmax")])
    images, _ = planted(2)
    with pytest.raises(ModelError, match=r"expected a flatten layer .* GlobalAveragePooling2D, Dense"):
        hirescam(pooled, images)
    logits = small_model([layers.Flatten(), layers.Dense(2)])
    with pytest.raises(ModelError, match="and a softmax at the end, its layers are Flatten, Dense"):
        hirescam(logits, images)
    unbuilt = keras.Sequential([layers.Flatten(), layers.Dense(2, activation="softmax")])
    with pytest.raises(ModelError, match="call it once on an image"):
        hirescam(unbuilt, images)
    one_unit = small_model([layers.Flatten(), layers.Dense(1, activation="sigmoid")])
    with pytest.raises(ModelError, match="softmax over two classes"):
        hirescam(one_unit, images)


def test_a_bfloat16_model_gives_float32_maps() -> None:
    keras.utils.set_random_seed(1)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_model(documented_layers())
    finally:
        keras.config.set_dtype_policy(before)
    maps = hirescam(model, planted(3)[0])
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
