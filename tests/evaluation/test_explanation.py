"""Maps of tiny models show the planted square; the share of an accuracy that a probe explains."""

from collections.abc import Sequence

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

from fakeface_lab.errors import DataError, ModelError
from fakeface_lab.evaluation.audit.probes import ProbeResult
from fakeface_lab.evaluation.explanation import (
    border_share,
    evidence,
    explain_by_probe,
    explained_share,
    hirescam,
    mean_evidence,
)
from fakeface_lab.evaluation.intervals import wilson

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


LABELS = np.repeat([0, 1], [140, 118])


def thumbnail_probe(num_correct: int) -> ProbeResult:
    """A probe that is right about the first images."""
    is_correct = np.arange(258) < num_correct
    scores = np.where(is_correct == (LABELS == 0), 0.9, 0.1)
    return ProbeResult("thumbnail", "shortcut", "16x16 thumbnails", wilson(num_correct, 258), 0.5, scores)


def right_about(num_correct: int) -> NDArray[np.bool_]:
    """A model that is right about the last images."""
    return np.asarray(np.arange(258) >= 258 - num_correct)


@pytest.mark.parametrize(("probe", "share"), [(0.5, 0.0), (0.7, 0.5), (0.9, 1.0), (0.3, 0.0), (0.99, 1.0)])
def test_share_of_a_gain_from_half_to_nine_tenths(probe: float, share: float) -> None:
    assert explained_share(probe, accuracy=0.9, majority=0.5) == pytest.approx(share)


@pytest.mark.parametrize("accuracy", [0.543, 0.4])
def test_nothing_to_explain_at_or_below_the_majority(accuracy: float) -> None:
    assert explained_share(0.9, accuracy, majority=0.543) is None


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_share_is_a_share(probe: float, accuracy: float, majority: float) -> None:
    share = explained_share(probe, accuracy, majority)
    assert (share is None) == (accuracy <= majority)
    assert share is None or 0 <= share <= 1


@pytest.mark.parametrize("bad", [-0.1, 99.6, float("nan")])
def test_percentages_and_nan_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match=r"probe_accuracy is .* not a percentage"):
        explained_share(bad, 0.9, 0.5)
    with pytest.raises(DataError, match=r"^accuracy is"):
        explained_share(0.9, bad, 0.5)
    with pytest.raises(DataError, match="majority is"):
        explained_share(0.9, 0.9, bad)


def test_share_is_reported_if_the_accuracy_is_above_chance() -> None:
    found = explain_by_probe(thumbnail_probe(236), LABELS, right_about(257))
    assert found.share == pytest.approx((236 - 140) / (257 - 140))
    assert found.interval is not None
    low, high = found.interval.low, found.interval.high
    assert found.sentence == (
        f"A simple model that sees only 16x16 thumbnails has 0.82 of the accuracy above chance (95 % interval "
        f"{low:.2f}-{high:.2f}; 0.915 against 0.996, chance 0.543): most of this accuracy does not require looking at "
        f"faces."
    )
    assert found.metrics() == {
        "majority_accuracy": 140 / 258,
        "explained_share": found.share,
        "explained_share_low": low,
        "explained_share_high": high,
    }


@pytest.mark.parametrize(("num_by_probe", "num_by_model"), [(236, 257), (200, 220), (150, 240)])
def test_interval_is_that_of_a_paired_bootstrap_of_the_images(num_by_probe: int, num_by_model: int) -> None:
    probe, model = thumbnail_probe(num_by_probe), right_about(num_by_model)
    columns = ((probe.scores > 0.5) == (LABELS == 0), model, LABELS == 0)

    def share(of_probe: NDArray[np.bool_], of_model: NDArray[np.bool_], by_chance: NDArray[np.bool_]) -> float:
        gain = of_model.mean() - by_chance.mean()
        return float(np.clip((of_probe.mean() - by_chance.mean()) / gain, 0, 1))

    expected = bootstrap(
        columns,
        share,
        paired=True,
        vectorized=False,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = explain_by_probe(probe, LABELS, model).interval
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.025)


@pytest.mark.parametrize(
    ("num_correct_by_probe", "end"),
    [(257, ": this accuracy does not show that faces were looked at."), (150, "chance 0.543).")],
)
def test_consequence_follows_from_the_share(num_correct_by_probe: int, end: str) -> None:
    assert explain_by_probe(thumbnail_probe(num_correct_by_probe), LABELS, right_about(257)).sentence.endswith(end)


def test_accuracy_whose_interval_holds_the_majority_is_not_better_than_chance() -> None:
    accuracy = wilson(150, 258)  # ten images more than chance gets right
    assert accuracy.low < 140 / 258 < accuracy.value
    found = explain_by_probe(thumbnail_probe(145), LABELS, right_about(150))
    assert found.share is None
    assert found.metrics() == {"majority_accuracy": 140 / 258}
    assert found.sentence == (
        "An accuracy of 0.5814 (150/258, 95 % interval 0.5204-0.6400) is not better than always naming the "
        "larger class (0.543). A simple model that sees only 16x16 thumbnails is right on 0.562 of the same images."
    )


@given(st.integers(0, 258))
def test_no_share_without_an_accuracy_above_chance(num_correct: int) -> None:
    found = explain_by_probe(thumbnail_probe(258), LABELS, right_about(num_correct))
    interval = binomtest(num_correct, 258).proportion_ci(0.95, method="wilson")
    assert (found.share is not None) == (interval.low > 140 / 258)
    assert ("not better than always naming" in found.sentence) == (found.share is None)


def test_decisions_about_other_images_are_refused() -> None:
    with pytest.raises(DataError, match="is_correct has 257 images, the others have 258"):
        explain_by_probe(thumbnail_probe(200), LABELS, right_about(200)[1:])
