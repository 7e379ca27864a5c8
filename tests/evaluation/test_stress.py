"""The stress suite: each change against an independent computation, the report against hand-made counts."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.stress.changes import CHANGES, apply
from fakeface_lab.evaluation.stress.suite import (
    CLEAN,
    CONDITIONS,
    PHRASES,
    SEARCH_CONDITIONS,
    Condition,
    objective_values,
    stress_report,
)
from fakeface_lab.figures.scores import FAMILY_AXES

BY_NAME = {condition.name: condition for condition in CONDITIONS}


def pictures(num_images: int = 5, height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(7).integers(0, 256, (num_images, 5, 6, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)) for image in coarse]
    )


def stressed(name: str, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([apply(BY_NAME[name], image) for image in images])


def test_the_suite_is_the_documented_one() -> None:
    levels: dict[str, list[float]] = {}
    for condition in CONDITIONS:
        levels.setdefault(condition.family, []).append(condition.level)
    assert levels == {
        "clean": [0], "jpeg": [95, 90, 75, 50, 30], "blur": [1, 2, 3, 4], "rescale": [0.5, 0.25], "gray": [0],
        "flip": [0], "shift": [5, 10], "crop": [85, 70], "pad": [115, 130], "noise": [5, 10],
        "blur_jpeg": [75, 50], "rescale_jpeg": [75, 50], "rotate": [5, 15], "brightness": [80, 120],
        "contrast": [80, 120], "shift_up_left": [10], "shift_up_right": [10], "shift_down_left": [10],
        "pad_edge": [130], "pad_reflect": [130],
    }  # fmt: skip
    assert set(levels) == set(CHANGES) == set(PHRASES) | {"clean"} == set(FAMILY_AXES) | {"clean"}
    assert len(BY_NAME) == len(CONDITIONS)
    assert " ".join(condition.name for condition in SEARCH_CONDITIONS) == "clean jpeg_50 blur_2 crop_70 pad_130"


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_each_condition_keeps_shape_and_type_and_leaves_its_input_alone(condition: Condition) -> None:
    images = pictures()
    before = images.copy()
    changed = np.stack([apply(condition, image) for image in images])
    assert changed.shape == images.shape
    assert changed.dtype == np.uint8
    np.testing.assert_array_equal(images, before)
    assert np.array_equal(changed, images) == (condition is CLEAN)


@settings(max_examples=40, deadline=None)
@given(condition=st.sampled_from(CONDITIONS), height=st.integers(2, 20))
def test_small_pictures_are_changed_too(condition: Condition, height: int) -> None:
    (image,) = pictures(1, height=height, width=17)
    assert apply(condition, image).shape == (height, 17, 3)


@pytest.mark.parametrize("quality", [95, 30])
def test_jpeg_is_what_pillow_writes_at_that_quality(quality: int) -> None:
    images = pictures(2)
    buffer = io.BytesIO()
    Image.fromarray(images[1]).save(buffer, "JPEG", quality=quality)
    np.testing.assert_array_equal(stressed(f"jpeg_{quality}", images)[1], np.asarray(Image.open(buffer)))


def test_a_blurred_point_has_the_spread_of_its_sigma() -> None:
    point = np.zeros((1, 61, 61, 3), np.uint8)
    point[0, 30, 30] = 255
    point[0, 24:37, 24:37] = 255
    for sigma in (1, 2, 3, 4):
        spread = stressed(f"blur_{sigma}", point)[0, :, :, 1].sum(axis=0).astype(float)
        offsets = np.arange(61) - 30
        variance = (spread * offsets**2).sum() / spread.sum()
        # variances of independent blurs add up: that of the 13 px square is (13**2 - 1) / 12
        assert variance == pytest.approx((13**2 - 1) / 12 + sigma**2, rel=0.03)


def test_gray_has_the_luma_of_bt601_in_all_channels() -> None:
    images = pictures()
    gray = stressed("gray", images)
    assert np.ptp(gray.astype(int), axis=-1).max() == 0
    np.testing.assert_allclose(gray[..., 0], images @ np.array([0.299, 0.587, 0.114]), atol=1)


def test_flip_is_its_own_inverse_and_mirrors_left_and_right() -> None:
    images = pictures()
    np.testing.assert_array_equal(stressed("flip", images)[:, :, 0], images[:, :, -1])
    np.testing.assert_array_equal(stressed("flip", stressed("flip", images)), images)


def test_shift_moves_down_and_right_and_repeats_the_edge() -> None:
    images = pictures()
    shifted = stressed("shift_10", images)
    np.testing.assert_array_equal(shifted[:, 4:, 6:], images[:, :-4, :-6])
    np.testing.assert_array_equal(shifted[:, :5, 6:], np.repeat(images[:, :1, :-6], 5, axis=1))


def radial(side_px: int, scale: float) -> NDArray[np.uint8]:
    """A cone of brightness around the image centre: `scale` 2 looks twice as large."""
    axis = np.arange(side_px) - (side_px - 1) / 2
    distance = np.hypot(axis[:, None], axis[None, :]) / scale
    cone: NDArray[np.uint8] = np.rint(np.clip(250 - 2 * distance, 0, 255)).astype(np.uint8)
    return cone[None, :, :, None].repeat(3, axis=-1)


@pytest.mark.parametrize(("name", "scale"), [("crop_70", 1 / 0.7), ("crop_85", 1 / 0.85), ("pad_130", 1 / 1.3)])
def test_crop_magnifies_and_padding_shrinks_about_the_centre(name: str, scale: float) -> None:
    changed = stressed(name, radial(100, 1))[0].astype(int)
    expected = radial(100, scale)[0].astype(int)
    margin = 15 if name.startswith("pad") else 1
    inside = slice(margin, -margin)
    assert np.abs(changed - expected)[inside, inside].mean() < 1.5
    assert np.abs(changed - radial(100, 1)[0].astype(int))[inside, inside].mean() > 4


def test_padding_is_gray_and_of_the_stated_share() -> None:
    white = np.full((1, 260, 260, 3), 255, np.uint8)
    padded = stressed("pad_130", white)[0, :, :, 0]
    assert (padded[:29] == 128).all()
    assert (padded == 255).mean() == pytest.approx(1 / 1.3**2, rel=0.03)


def test_rescaling_removes_a_fine_pattern_and_keeps_a_coarse_one() -> None:
    columns = np.arange(64)
    fine = np.broadcast_to(((columns % 2) * 255).astype(np.uint8)[None, None, :, None], (1, 64, 64, 3)).copy()
    coarse = np.broadcast_to(((columns // 32) * 255).astype(np.uint8)[None, None, :, None], (1, 64, 64, 3)).copy()
    assert stressed("rescale_0.25", fine)[:, 8:-8, 8:-8].std() < 3
    assert np.abs(stressed("rescale_0.25", coarse).astype(int) - coarse).mean() < 12


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [("shift_up_left_10", -4, -6), ("shift_up_right_10", -4, 6), ("shift_down_left_10", 4, -6), ("shift_10", 4, 6)],
)
def test_shifts_go_in_all_directions(name: str, rows: int, columns: int) -> None:
    images = pictures()
    moved = np.roll(images, (rows, columns), axis=(1, 2))
    inside = np.s_[:, 4:-4, 6:-6]
    np.testing.assert_array_equal(stressed(name, images)[inside], moved[inside])


@pytest.mark.parametrize(("name", "mode"), [("pad_edge_130", "edge"), ("pad_reflect_130", "symmetric")])
def test_padding_continues_the_picture(name: str, mode: Any) -> None:
    (image,) = pictures(1, 40, 60)
    padded = np.pad(image, ((6, 6), (9, 9), (0, 0)), mode=mode)
    expected = Image.fromarray(padded).resize((60, 40), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(stressed(name, image[None])[0], np.asarray(expected))


def test_rotation_turns_counter_clockwise_about_the_centre() -> None:
    rows, columns = np.indices((101, 101)) - 50
    image = np.repeat((2 * np.clip(columns, 0, None) + 50).astype(np.uint8)[..., None], 3, axis=2)
    turned = stressed("rotate_15", image[None])[0, ..., 0].astype(float)
    along = columns * np.cos(np.radians(15)) - rows * np.sin(np.radians(15))
    expected = 2 * np.clip(along, 0, None) + 50
    inside = np.hypot(rows, columns) < 40
    assert np.abs(turned - expected)[inside].max() < 2.5


@pytest.mark.parametrize("percent", [80, 120])
def test_brightness_and_contrast_scale_about_black_and_about_the_mean(percent: int) -> None:
    (image,) = pictures(1)
    bright = stressed(f"brightness_{percent}", image[None])[0]
    np.testing.assert_allclose(bright, np.clip(image * (percent / 100), 0, 255), atol=1)
    mean = float((image @ np.array([0.299, 0.587, 0.114])).mean())
    contrast = stressed(f"contrast_{percent}", image[None])[0]
    np.testing.assert_allclose(contrast, np.clip(mean + (image - mean) * (percent / 100), 0, 255), atol=2)


def test_combined_changes() -> None:
    images = pictures(2)
    np.testing.assert_array_equal(stressed("blur_jpeg_50", images), stressed("jpeg_50", stressed("blur_2", images)))
    small = [Image.fromarray(image).resize((30, 20), Image.Resampling.BILINEAR) for image in images]
    saved = stressed("jpeg_75", np.stack([np.asarray(image) for image in small]))
    back = [np.asarray(Image.fromarray(image).resize((60, 40), Image.Resampling.BILINEAR)) for image in saved]
    np.testing.assert_array_equal(stressed("rescale_jpeg_75", images), np.stack(back))


def test_noise_has_its_sigma_and_differs_between_images_only() -> None:
    gray = np.full((2, 100, 100, 3), 128, np.uint8)
    gray[1, 0, 0] = 129
    for sigma in (5, 10):
        noise = stressed(f"noise_{sigma}", gray).astype(float) - gray
        assert noise.std() == pytest.approx(sigma, rel=0.03)
        assert abs(noise.mean()) < 0.2
        assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.03
    np.testing.assert_array_equal(stressed("noise_5", gray[::-1])[::-1], stressed("noise_5", gray))


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3), np.float32), np.zeros((2, 8, 8, 3), np.uint8)])
def test_scaled_or_several_images_are_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(DataError, match=r"'jpeg_50' takes a uint8 image of shape \(H, W, 3\), not"):
        apply(BY_NAME["jpeg_50"], image)


LABELS = np.array([0] * 10 + [1] * 8)
CLEAN_SCORES = np.array([0.9] * 10 + [0.1] * 7 + [0.6])  # one real image is called fake
CROP_SCORES = np.array([0.9] * 4 + [0.2] * 6 + [0.1] * 7 + [0.6])  # six fakes are lost
GRAY_SCORES = np.array([0.8] * 10 + [0.2] * 6 + [0.7] * 2)  # one more real is called fake
SCORES = {"gray": GRAY_SCORES, "crop_70": CROP_SCORES, "clean": CLEAN_SCORES}


def test_the_report_agrees_with_sklearn_and_statsmodels() -> None:
    table = stress_report(["fake", "real"], LABELS, SCORES).table
    assert list(table.index) == ["clean", "gray", "crop_70"]
    for name, scores in SCORES.items():
        row = table.loc[name]
        decided = np.where(scores > 0.5, 0, 1)
        assert row["recall_fake"] == recall_score(LABELS, decided, pos_label=0)
        assert row["recall_real"] == recall_score(LABELS, decided, pos_label=1)
        assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(LABELS, decided))
        assert row["accuracy"] == (decided == LABELS).mean()
        assert row["roc_auc"] == pytest.approx(roc_auc_score(LABELS == 0, scores))
        interval = proportion_confint((decided == LABELS)[LABELS == 0].sum(), 10, method="wilson")
        assert (row["recall_fake_low"], row["recall_fake_high"]) == pytest.approx(interval)
    assert table["flip_rate"].tolist() == pytest.approx([0, 1 / 18, 6 / 18])
    assert (table["flip_rate_low"] <= table["flip_rate"]).all()
    assert (table["flip_rate_high"] > table["flip_rate"]).all()
    assert table["num_images"].tolist() == [18, 18, 18]


def test_the_worst_collapse_is_named_and_described() -> None:
    report = stress_report(["fake", "real"], LABELS, SCORES)
    assert (report.worst_condition, report.worst_class) == ("crop_70", "fake")
    assert report.sentence == "Cropped to 70 %, it finds 0.40 of the fake images instead of 1.00."
    assert report.means["recall_fake"] == pytest.approx((1.0 + 0.4) / 2)
    assert report.means["flip_rate"] == pytest.approx((1 / 18 + 6 / 18) / 2)


def test_a_collapse_of_the_negative_class_is_found_too() -> None:
    padded = np.array([0.9] * 10 + [0.8] * 7 + [0.1])
    report = stress_report(["fake", "real"], LABELS, SCORES | {"pad_130": padded})
    assert report.sentence == "Padded to 130 %, it finds 0.12 of the real images instead of 0.88."


def test_a_fall_within_the_interval_is_not_called_a_collapse() -> None:
    report = stress_report(["fake", "real"], LABELS, {"clean": CLEAN_SCORES, "gray": GRAY_SCORES})
    assert report.sentence == (
        "No change lowers a recall beyond its interval; the largest fall: "
        "without colour, it finds 0.75 of the real images instead of 0.88."
    )


def test_jpeg_keeps_its_capitals_inside_a_sentence() -> None:
    report = stress_report(["fake", "real"], LABELS, {"clean": CLEAN_SCORES, "jpeg_50": GRAY_SCORES})
    assert "saved again as JPEG of quality 50, it finds" in report.sentence


def test_the_threshold_is_carried_over() -> None:
    report = stress_report(["fake", "real"], LABELS, SCORES, threshold=0.65)
    assert report.table.loc["clean", "recall_real"] == 1.0
    assert report.table.loc["gray", "recall_real"] == 0.75


def test_objectives_are_the_lowest_and_the_mean_balanced_accuracy() -> None:
    values = objective_values(LABELS, SCORES)
    by_hand = {"clean": (1 + 7 / 8) / 2, "gray": (1 + 6 / 8) / 2, "crop_70": (0.4 + 7 / 8) / 2}
    assert values["worst_stress"] == pytest.approx(min(by_hand.values()))
    assert values["mean_stress"] == pytest.approx(sum(by_hand.values()) / 3)


def test_a_constant_decision_is_worth_one_half() -> None:
    constant = {condition.name: np.ones(18) for condition in SEARCH_CONDITIONS}
    assert objective_values(LABELS, constant) == {"worst_stress": 0.5, "mean_stress": 0.5}


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (
            LABELS,
            {"clean": CLEAN_SCORES, "sepia": GRAY_SCORES},
            "unknown stress condition 'sepia': expected clean, ",
        ),
        (LABELS, {"gray": GRAY_SCORES}, "needs the scores of 'clean' and of at least one change, got: gray"),
        (
            LABELS,
            {"clean": CLEAN_SCORES},
            "needs the scores of 'clean' and of at least one change, got: clean",
        ),
        (
            LABELS,
            {"clean": CLEAN_SCORES, "gray": GRAY_SCORES[:5]},
            "under 'gray' must be 18 probabilities .* shape",
        ),
        (
            LABELS,
            {"clean": CLEAN_SCORES, "gray": GRAY_SCORES * np.nan},
            "under 'gray' must be 18 probabilities",
        ),
        (LABELS * 0, SCORES, "the 18 images under stress are all of one class"),
    ],
)
def test_a_report_on_wrong_input_is_refused(
    labels: NDArray[np.int64], scores: dict[str, NDArray[np.float64]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        stress_report(["fake", "real"], labels, scores)


def test_objectives_without_a_condition_are_refused() -> None:
    with pytest.raises(DataError, match="no stress condition was scored: give at least one of clean, jpeg_95"):
        objective_values(LABELS, {})


def test_the_table_is_a_plain_frame_of_numbers() -> None:
    table = stress_report(["fake", "real"], LABELS, SCORES).table
    assert pd.api.types.is_numeric_dtype(table["accuracy"])
    pd.testing.assert_frame_equal(
        pd.read_csv(io.StringIO(table.to_csv()), index_col="condition"), table, check_dtype=False
    )


@pytest.mark.real_data
def test_a_thumbnail_model_collapses_on_framing_and_not_on_compression(real_images: Path) -> None:
    files = [sorted((real_images / name).glob("*.jpg"))[::3] for name in ("fake", "real")]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for names in files for file in names])
    labels = np.repeat([0, 1], [len(names) for names in files])

    def thumbnails(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        small = [Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR) for image in pixels]
        return np.stack([np.asarray(image).ravel() for image in small]) / 255

    model = LogisticRegression(max_iter=2000).fit(thumbnails(images[::2]), labels[::2] == 0)
    scores = {
        condition.name: model.predict_proba(thumbnails(stressed(condition.name, images[1::2])))[:, 1]
        for condition in SEARCH_CONDITIONS
    }
    table = stress_report(["fake", "real"], labels[1::2], scores).table
    assert table.loc[["clean", "jpeg_50", "blur_2"], ["recall_fake", "recall_real"]].to_numpy().min() > 0.95
    assert table["recall_fake"].to_dict()["crop_70"] < 0.5
    assert table["recall_real"].to_dict()["pad_130"] < 0.5
