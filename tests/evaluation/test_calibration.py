"""The calibration error against an array split, and its null against calibrated and overconfident models."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.intervals import BoolArray, FloatArray
from fakeface_lab.evaluation.scores import calibration


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
