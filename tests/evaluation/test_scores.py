"""The documented figures, the detection panel and the calibration: by hand, against SciPy, by brute force."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import brentq
from scipy.stats import binom, mannwhitneyu, norm
from sklearn.metrics import roc_curve

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.intervals import BoolArray, FloatArray, metric_key, wilson
from fakeface_lab.evaluation.scores import DetectionScores, calibration, detection_scores, documented_scores

NAMES = ("fake", "real")


@st.composite
def two_classes(draw: st.DrawFn) -> tuple[BoolArray, FloatArray]:
    """Truth with both classes and scores with many ties."""
    num_images = draw(st.integers(2, 60))
    truth = draw(hnp.arrays(np.bool_, num_images))
    truth[0], truth[1] = True, False
    scores = draw(hnp.arrays(np.float64, num_images, elements=st.sampled_from([0, 0.1, 0.3, 0.5, 0.7, 0.9, 1])))
    return truth, scores


def hand_case() -> DetectionScores:
    """3 of 4 positives found, 4 of 6 negatives recognized."""
    truth = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=bool)
    scores = np.array([0.9, 0.8, 0.7, 0.4, 0.85, 0.6, 0.3, 0.2, 0.1, 0.05])
    return detection_scores(truth, scores, NAMES)


def softmax_of(is_correct: BoolArray, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    predicted = np.where(is_correct, labels, 1 - labels)
    return np.where(np.arange(2) == predicted[:, None], 0.97, 0.03).astype(np.float32)


def test_one_error_in_258_gives_both_documented_figures() -> None:
    labels = (np.arange(258) >= 140).astype(int)
    found = documented_scores(softmax_of(np.arange(258) != 7, labels), labels)
    assert {name: round(value, 4) for name, value in found.items()} == {
        "documented_accuracy": 0.9961,
        "documented_f1": 0.9961,
    }


@given(hnp.arrays(np.bool_, st.integers(1, 80)), st.randoms(use_true_random=False))
def test_documented_f1_is_the_accuracy(is_correct: BoolArray, random: Any) -> None:
    labels = np.array([random.randint(0, 1) for _ in is_correct])
    found = documented_scores(softmax_of(is_correct, labels), labels)
    assert found["documented_accuracy"] == pytest.approx(is_correct.mean())
    assert found["documented_f1"] == pytest.approx(is_correct.mean())


def test_documented_f1_is_the_f1_of_neither_class() -> None:
    labels = np.array([0] * 6 + [1] * 4)
    probabilities = softmax_of(np.array([1, 1, 1, 1, 1, 0, 1, 1, 0, 0], dtype=bool), labels)
    panel = detection_scores(labels == 0, probabilities[:, 0], NAMES)
    assert documented_scores(probabilities, labels)["documented_f1"] == pytest.approx(0.7)
    assert panel.f1_positive == pytest.approx(10 / 13)
    assert panel.f1_negative == pytest.approx(4 / 7)


def test_an_output_of_exactly_one_half_is_not_a_prediction() -> None:
    found = documented_scores(np.full((3, 2), 0.5, np.float32), np.array([0, 1, 1]))
    assert found == {"documented_accuracy": 0.5, "documented_f1": 0.0}


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.zeros((3, 3)), [0, 1, 0], r"shape \(3, 3\), expected \(num_images, 2\)"),
        (np.zeros((0, 2)), [], "at least one image"),
        (np.zeros((3, 2)), [0, 1], r"labels have shape \(2,\)"),
        (np.zeros((2, 2)), [0, 2], "class indices 0 and 1"),
        (np.zeros((2, 2)), [0.0, 1.0], "class indices 0 and 1"),
        (np.array([[np.nan, 1.0]]), [0], "NaN"),
        (np.array([[-3.0, 4.0]]), [0], "pass the softmax output"),
    ],
)
def test_documented_scores_refuse_invalid_input(probabilities: Any, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        documented_scores(probabilities, np.array(labels))


def test_hand_case_of_the_panel() -> None:
    panel = hand_case()
    assert (panel.tp, panel.fn, panel.fp, panel.tn) == (3, 1, 2, 4)
    assert panel.accuracy.value == pytest.approx(0.7)
    assert panel.balanced_accuracy == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert panel.precision_positive is not None
    assert panel.precision_negative is not None
    assert (panel.precision_positive.num_correct, panel.precision_positive.num_total) == (3, 5)
    assert (panel.precision_negative.num_correct, panel.precision_negative.num_total) == (4, 5)
    assert panel.f1_positive == pytest.approx(2 * 0.6 * 0.75 / (0.6 + 0.75))
    assert panel.f1_negative == pytest.approx(2 * 0.8 * (4 / 6) / (0.8 + 4 / 6))
    # Positives stand on ranks 1, 3, 4 and 6 from above.
    assert panel.average_precision == pytest.approx((1 / 1 + 2 / 3 + 3 / 4 + 4 / 6) / 4)
    # Misranked pairs: 0.8 and 0.7 below 0.85, 0.4 below 0.85 and 0.6.
    assert panel.roc_auc == pytest.approx(1 - 4 / 24)
    assert panel.brier == pytest.approx(np.mean(np.square([0.1, 0.2, 0.3, 0.6, 0.85, 0.6, 0.3, 0.2, 0.1, 0.05])))
    assert panel.log_loss == pytest.approx(-np.mean(np.log([0.9, 0.8, 0.7, 0.4, 0.15, 0.4, 0.7, 0.8, 0.9, 0.95])))
    assert panel.tpr_at_max_fpr is None


@settings(max_examples=60, deadline=None)
@given(two_classes())
def test_auc_is_the_mann_whitney_statistic(data: tuple[BoolArray, FloatArray]) -> None:
    truth, scores = data
    u = mannwhitneyu(scores[truth], scores[~truth]).statistic
    panel = detection_scores(truth, scores, NAMES)
    assert panel.roc_auc == pytest.approx(u / (truth.sum() * (~truth).sum()))


@settings(max_examples=60, deadline=None)
@given(two_classes())
def test_equal_error_rate_is_where_the_curves_cross(data: tuple[BoolArray, FloatArray]) -> None:
    truth, scores = data
    fpr, tpr, _ = roc_curve(truth, scores)
    along = np.arange(fpr.size)
    crossing = brentq(lambda t: np.interp(t, along, fpr) - np.interp(t, along, 1 - tpr), 0, fpr.size - 1)
    panel = detection_scores(truth, scores, NAMES)
    assert panel.equal_error_rate == pytest.approx(np.interp(crossing, along, fpr), abs=1e-9)


def test_equal_error_rate_of_two_normal_classes() -> None:
    quantiles = norm.ppf((np.arange(4000) + 0.5) / 4000)
    scores = norm.cdf(np.concatenate([quantiles + 1, quantiles - 1]))
    panel = detection_scores(np.arange(8000) < 4000, scores, NAMES)
    assert panel.equal_error_rate == pytest.approx(norm.cdf(-1), abs=5e-4)


@settings(max_examples=60, deadline=None)
@given(two_classes())
def test_swapping_the_classes_swaps_their_figures(data: tuple[BoolArray, FloatArray]) -> None:
    truth, scores = data
    one = detection_scores(truth, scores, NAMES, threshold=0.55).metrics()
    other = detection_scores(~truth, 1 - scores, NAMES[::-1], threshold=0.45).metrics()
    for name in (
        "accuracy",
        "recall_fake",
        "recall_real",
        "f1_fake",
        "f1_real",
        "roc_auc",
        "num_fake_as_real",
    ):
        assert one[name] == pytest.approx(other[name]), name
    for name in ("brier", "log_loss", "equal_error_rate", "balanced_accuracy"):
        assert one[name] == pytest.approx(other[name], abs=1e-9), name


def test_average_precision_belongs_to_the_positive_class() -> None:
    truth = np.array([True, True, True, False])
    scores = np.array([0.9, 0.8, 0.3, 0.6])
    one = detection_scores(truth, scores, NAMES).average_precision
    other = detection_scores(~truth, 1 - scores, NAMES[::-1]).average_precision
    assert one == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert other == pytest.approx(1 / 2)


def brute_force_tpr(truth: BoolArray, scores: FloatArray) -> float:
    allowed = [t for t in [*scores, 2.0] if (scores[~truth] >= t).sum() <= 0.05 * (~truth).sum() + 1e-9]
    return max(float((scores[truth] >= t).mean()) for t in allowed)


@pytest.mark.parametrize("seed", range(5))
def test_tpr_at_five_percent_false_positives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.arange(160) < 40
    # Two decimals: ties across the classes, as saturated outputs have them.
    scores = np.round(norm.cdf(rng.normal(np.where(truth, 1.0, -1.0))), 2)
    rate = detection_scores(truth, scores, NAMES).tpr_at_max_fpr
    assert rate is not None
    assert rate.num_total == 40
    assert rate.value == pytest.approx(brute_force_tpr(truth, scores))


def test_a_point_on_a_straight_piece_of_the_curve_is_not_lost() -> None:
    # Three tied steps in one line: (0, 0), (0.05, 0.5), (0.1, 1).
    truth = np.array([True] * 20 + [False] * 100)
    scores = np.array([0.9] * 10 + [0.8] * 10 + [0.9] * 5 + [0.8] * 5 + [0.1] * 90)
    rate = detection_scores(truth, scores, NAMES).tpr_at_max_fpr
    assert rate is not None
    assert rate.num_correct == 10


@pytest.mark.parametrize(("num_negative", "is_resolvable"), [(99, False), (100, True), (118, True)])
def test_tpr_at_fpr_is_only_given_if_it_can_be_resolved(num_negative: int, is_resolvable: bool) -> None:
    truth = np.arange(50 + num_negative) < 50
    panel = detection_scores(truth, np.where(truth, 0.9, 0.1), NAMES)
    assert (panel.tpr_at_max_fpr is not None) == is_resolvable
    assert ("tpr_at_fpr_5_percent" in panel.metrics()) == is_resolvable


def test_predictive_value_falls_with_prevalence() -> None:
    truth = np.arange(2000) < 1000
    scores = np.where(truth, 0.9, 0.1)
    scores[:10], scores[1000:1010] = 0.1, 0.9
    found = detection_scores(truth, scores, NAMES).metrics()
    assert found["ppv_at_50_percent"] == pytest.approx(0.99)
    assert found["ppv_at_10_percent"] == pytest.approx(0.9167, abs=1e-4)
    assert found["ppv_at_1_percent"] == pytest.approx(0.5)
    for percent in (50, 10, 1):
        name = f"ppv_at_{percent}_percent"
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]


def test_ends_of_the_predictive_value_hold_both_recalls_together() -> None:
    ppv = hand_case().predictive_values[1]
    tpr, tnr = wilson(3, 4, 0.975), wilson(4, 6, 0.975)
    assert ppv.prevalence == 0.1
    assert ppv.low == pytest.approx(0.1 * tpr.low / (0.1 * tpr.low + 0.9 * (1 - tnr.low)))
    assert ppv.high == pytest.approx(0.1 * tpr.high / (0.1 * tpr.high + 0.9 * (1 - tnr.high)))


def test_no_false_positive_among_118_says_little_at_one_percent() -> None:
    truth = np.arange(258) < 140
    found = detection_scores(truth, np.where(truth, 0.9, 0.1), NAMES).metrics()
    assert found["ppv_at_1_percent"] == 1.0
    assert found["ppv_at_1_percent_low"] < 0.25


def test_no_predictive_value_if_nothing_is_called_positive() -> None:
    once = detection_scores([True, False, False], [0.9, 0.2, 0.3], NAMES)
    assert [ppv.value for ppv in once.predictive_values] == [1.0, 1.0, 1.0]
    panel = detection_scores([True, False, False], [0.1, 0.2, 0.3], NAMES)
    assert all(ppv.value is None for ppv in panel.predictive_values)
    assert panel.precision_positive is None
    assert panel.f1_positive == 0.0
    assert "ppv_at_50_percent" not in panel.metrics()


@settings(max_examples=60, deadline=None)
@given(two_classes())
def test_metrics_are_finite_numbers_under_plain_names(data: tuple[BoolArray, FloatArray]) -> None:
    found = detection_scores(*data, ("0_Real Face", "1_fäke")).metrics()
    assert all(re.fullmatch(r"\w+", name) and name == name.lower() for name in found)
    assert all(type(value) is float and np.isfinite(value) for value in found.values())
    assert {"recall_0_real_face", "recall_1_fäke_low", "num_0_real_face_as_1_fäke"} <= found.keys()
    assert not any("positive" in name or "negative" in name for name in found)


def test_accuracy_and_recalls_have_interval_and_counts() -> None:
    found = hand_case().metrics()
    assert (found["accuracy_num_correct"], found["accuracy_num_total"]) == (7.0, 10.0)
    assert (found["recall_fake_num_correct"], found["recall_fake_num_total"]) == (3.0, 4.0)
    assert (found["recall_real_num_correct"], found["recall_real_num_total"]) == (4.0, 6.0)
    assert found["recall_real_low"] < 4 / 6 < found["recall_real_high"]
    assert (found["num_fake_as_real"], found["num_real_as_fake"]) == (1.0, 2.0)


def test_a_score_at_the_threshold_is_negative() -> None:
    panel = detection_scores([True, False], [0.5, 0.5], NAMES)
    assert (panel.tp, panel.fn, panel.fp, panel.tn) == (0, 1, 0, 1)
    assert detection_scores([True, False], [0.5, 0.5], NAMES, threshold=0.4).tp == 1


@pytest.mark.parametrize("only_positive", [True, False])
def test_one_class_gives_what_one_class_can(only_positive: bool) -> None:
    panel = detection_scores(np.full(4, only_positive), [0.9, 0.8, 0.2, 0.6], NAMES)
    assert panel.accuracy.num_correct == (3 if only_positive else 1)
    present = panel.recall_positive if only_positive else panel.recall_negative
    absent = panel.recall_negative if only_positive else panel.recall_positive
    assert present == panel.accuracy
    assert absent is None
    errors = np.array([0.1, 0.2, 0.8, 0.4]) if only_positive else np.array([0.9, 0.8, 0.2, 0.6])
    assert panel.brier == pytest.approx(np.mean(errors**2))
    assert panel.log_loss == pytest.approx(-np.mean(np.log(1 - errors)))
    found = panel.metrics()
    for name in (
        "roc_auc",
        "average_precision",
        "equal_error_rate",
        "balanced_accuracy",
        "f1_fake",
        "f1_real",
    ):
        assert name not in found
    assert not any(name.startswith(("precision", "ppv", "tpr")) for name in found)


@pytest.mark.parametrize(
    ("is_positive", "scores", "message"),
    [
        ([True, False], [0.1, float("nan")], r"1 of 2 scores are not probabilities \(first: image 1, nan\)"),
        ([True, False], [1.5, -2.0], r"2 of 2 .*first: image 0, 1\.5.*expected 0 to 1"),
        ([True, False], [0.1], "pass one score per image"),
        ([], [], "at least one image"),
        ([0, 1], [0.1, 0.2], "dtype int64, expected bool"),
        ([[True], [False]], [0.1, 0.2], r"expected \(num_images,\)"),
    ],
)
def test_the_panel_refuses_invalid_input(is_positive: Any, scores: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        detection_scores(is_positive, scores, NAMES)


def test_thresholds_and_class_names_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"threshold is 1\.0, expected more than 0"):
        detection_scores([True, False], [0.1, 0.2], NAMES, threshold=1.0)
    with pytest.raises(ConfigError, match="the same metric name"):
        detection_scores([True, False], [0.1, 0.2], ("Fake", "fake"))
    with pytest.raises(ConfigError, match="no letter or digit"):
        metric_key("--")


def calibrated(seed: int, num_images: int) -> tuple[BoolArray, FloatArray]:
    """Images whose class is drawn with the probability that is their score."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(0.3, 0.3, size=num_images)
    return rng.random(num_images) < scores, scores


@pytest.mark.parametrize(("num_images", "num_bins"), [(295, 5), (300, 10), (1290, 10)])
def test_error_is_that_of_equal_shares_of_the_sorted_images(num_images: int, num_bins: int) -> None:
    truth, scores = calibrated(1, num_images)
    order = np.argsort(scores)
    parts = np.array_split(order, num_bins)
    expected = sum(part.size / num_images * abs(truth[part].mean() - scores[part].mean()) for part in parts)
    found = calibration(truth, scores)
    assert [b.positive.num_total for b in found.bins] == [part.size for part in parts]
    assert found.ece == pytest.approx(expected)
    assert [b.mean_score for b in found.bins] == pytest.approx([scores[part].mean() for part in parts])


@settings(max_examples=40, deadline=None)  # 1,000 simulations each
@given(st.integers(0, 1000), st.integers(1, 320))
def test_bins_are_as_equal_as_can_be(seed: int, num_images: int) -> None:
    sizes = [b.positive.num_total for b in calibration(*calibrated(seed, num_images)).bins]
    assert sum(sizes) == num_images
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == min(num_images, 5 if num_images < 300 else 10)


def test_order_of_images_with_equal_scores_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    scores = rng.choice([0.0, 0.2, 0.8, 1.0], size=258)
    truth = rng.random(258) < scores
    order = rng.permutation(258)
    assert calibration(truth, scores).ece == pytest.approx(calibration(truth[order], scores[order]).ece)
    by_class = np.argsort(truth, kind="stable")
    assert calibration(truth, scores).ece == pytest.approx(calibration(truth[by_class], scores[by_class]).ece)


def test_saturated_scores_do_not_absorb_those_between() -> None:
    scores = np.concatenate([np.zeros(110), np.linspace(0.3, 0.6, 20), np.ones(128)])
    found = calibration(scores > 0.45, scores)
    assert [b.positive.num_total for b in found.bins] == [110, 20, 128]


def test_null_is_the_95_percent_quantile_of_calibrated_models() -> None:
    _, scores = calibrated(4, 258)
    parts = np.array_split(np.argsort(scores), 5)
    drawn = np.random.default_rng(99).random((20_000, 258)) < scores
    eces = sum(part.size / 258 * np.abs(drawn[:, part].mean(axis=1) - scores[part].mean()) for part in parts)
    quantile = np.quantile(eces, [0.90, 0.95, 0.99])
    found = calibration(scores > 0.5, scores)
    assert (quantile[0] + quantile[1]) / 2 < found.null_high < (quantile[1] + quantile[2]) / 2


def test_false_alarms_are_about_five_in_a_hundred() -> None:
    flagged = sum(calibration(*calibrated(seed, 258), seed=seed).is_miscalibrated for seed in range(200))
    assert binom.ppf(0.001, 200, 0.05) <= flagged <= binom.ppf(0.999, 200, 0.05)


def test_a_calibrated_model_has_an_error_above_zero() -> None:
    found = calibration(*calibrated(0, 258))
    measured = np.mean([calibration(*calibrated(seed, 258)).ece for seed in range(60)])
    assert found.null_mean > 0.005
    assert found.null_mean == pytest.approx(measured, rel=0.2)
    assert "no more than a calibrated model has by chance" in str(found)


def test_an_overconfident_model_is_found() -> None:
    truth, scores = calibrated(2, 1289)
    odds = (scores / (1 - scores)) ** 3
    found = calibration(truth, np.where(scores > 0.999, scores, odds / (1 + odds)))
    assert found.is_miscalibrated
    assert ", more than a calibrated model has by chance" in str(found)


def test_consistency_bars_are_those_of_the_binomial() -> None:
    truth = np.arange(100) < 30
    found = calibration(truth, np.full(100, 0.3))
    assert len(found.bins) == 1
    assert found.ece == pytest.approx(0.0)
    assert found.bins[0].null_low == pytest.approx(binom.ppf(0.025, 100, 0.3) / 100, abs=0.011)
    assert found.bins[0].null_high == pytest.approx(binom.ppf(0.975, 100, 0.3) / 100, abs=0.011)
    assert found.bins[0].positive.value == pytest.approx(0.3)


def test_same_seed_same_answer_and_metrics() -> None:
    truth, scores = calibrated(3, 100)
    found = calibration(truth, scores, seed=1)
    assert found == calibration(truth, scores, seed=1)
    assert found.null_high != calibration(truth, scores, seed=2).null_high
    assert found.metrics() == {
        "ece": found.ece,
        "ece_null_mean": found.null_mean,
        "ece_null_high": found.null_high,
    }


def test_one_class_is_enough_and_nan_is_refused() -> None:
    perfect = calibration(np.ones(10, bool), np.ones(10))
    assert perfect.ece == 0.0
    assert not perfect.is_miscalibrated
    assert calibration(np.zeros(10, bool), np.ones(10)).is_miscalibrated
    with pytest.raises(DataError, match="scores are not probabilities"):
        calibration([True], [float("nan")])
