"""The conditions are the documented ones; the report against sklearn, statsmodels and hand-made counts."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.stress.changes import CHANGES
from fakeface_lab.evaluation.stress.suite import CONDITIONS, PHRASES, SEARCH_CONDITIONS, objective_values, stress_report
from fakeface_lab.figures.scores import FAMILY_AXES
from tests.evaluation.stress.pictures import BY_NAME, stressed


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
