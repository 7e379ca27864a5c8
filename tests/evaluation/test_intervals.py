"""Wilson against statsmodels, the stratified bootstrap against DeLong's variance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.intervals import BoolArray, FloatArray, Interval, bootstrap_interval, wilson


def simulated(seed: int, num_positive: int, num_negative: int) -> tuple[BoolArray, FloatArray]:
    """Overlapping scores of two classes, in [0, 1]."""
    rng = np.random.default_rng(seed)
    truth = np.arange(num_positive + num_negative) < num_positive
    return truth, norm.cdf(rng.normal(np.where(truth, 0.8, -0.8)))


def test_documented_accuracy_has_the_interval_of_the_notes() -> None:
    rate = wilson(257, 258)
    assert (round(rate.low, 4), round(rate.high, 4)) == (0.9784, 0.9993)
    assert str(rate) == "0.9961 (257/258, 95 % interval 0.9784-0.9993)"


@pytest.mark.parametrize(("num_correct", "low", "high"), [(256, 0.9722, 0.9979), (253, 0.9554, 0.9917)])
def test_neighbours_of_the_documented_accuracy(num_correct: int, low: float, high: float) -> None:
    rate = wilson(num_correct, 258)
    assert (round(rate.low, 4), round(rate.high, 4)) == (low, high)


@given(st.integers(1, 3000), st.floats(0, 1), st.floats(0.5, 0.999))
def test_wilson_is_that_of_statsmodels(num_total: int, share: float, confidence: float) -> None:
    num_correct = round(share * num_total)
    rate = wilson(num_correct, num_total, confidence)
    low, high = proportion_confint(num_correct, num_total, alpha=1 - confidence, method="wilson")
    assert rate.low == pytest.approx(low, abs=1e-9)
    assert rate.high == pytest.approx(high, abs=1e-9)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert rate.low < rate.high


def test_rate_states_its_confidence() -> None:
    assert "90 % interval" in str(wilson(9, 10, 0.9))
    assert "97.5 % interval" in str(wilson(9, 10, 0.975))


def test_rate_as_metrics() -> None:
    rate = wilson(9, 10)
    assert rate.metrics("recall_fake") == {
        "recall_fake": 0.9,
        "recall_fake_low": rate.low,
        "recall_fake_high": rate.high,
        "recall_fake_num_correct": 9.0,
        "recall_fake_num_total": 10.0,
    }


@pytest.mark.parametrize(
    ("num_correct", "num_total", "message"),
    [(0, 0, "at least one image"), (11, 10, "11 of 10 .* expected 0 to 10"), (-1, 10, "-1 of 10")],
)
def test_impossible_counts_are_refused(num_correct: int, num_total: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        wilson(num_correct, num_total)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, float("nan")])
def test_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ConfigError, match=r"confidence is .* more than 0 and less than 1"):
        wilson(1, 2, confidence)
    with pytest.raises(ConfigError, match="confidence is"):
        bootstrap_interval(roc_auc_score, [True, False], [0.5, 0.5], confidence)


def delong_standard_error(truth: BoolArray, scores: FloatArray) -> float:
    """Standard error of the AUC from its two kinds of placements (DeLong et al. 1988)."""
    positive, negative = scores[truth][:, None], scores[~truth][None, :]
    wins = (positive > negative) + 0.5 * (positive == negative)
    by_positive, by_negative = wins.mean(axis=1), wins.mean(axis=0)
    return float(np.sqrt(by_positive.var(ddof=1) / by_positive.size + by_negative.var(ddof=1) / by_negative.size))


def test_bootstrap_of_the_auc_is_as_wide_as_delong() -> None:
    truth, scores = simulated(seed=3, num_positive=140, num_negative=118)
    interval = bootstrap_interval(roc_auc_score, truth, scores)
    assert interval is not None
    width = 2 * 1.96 * delong_standard_error(truth, scores)
    assert interval.high - interval.low == pytest.approx(width, rel=0.12)
    assert interval.low < roc_auc_score(truth, scores) < interval.high


def test_bootstrap_keeps_the_classes_and_the_seed() -> None:
    truth, scores = simulated(seed=2, num_positive=12, num_negative=5)
    seen = set()

    def statistic(drawn: BoolArray, values: FloatArray) -> float:
        seen.add((int(drawn.sum()), int((~drawn).sum())))
        return float(roc_auc_score(drawn, values))

    first = bootstrap_interval(statistic, truth, scores, num_resamples=200, seed=1)
    # The statistic is also called with one image left out each, for the acceleration.
    assert seen == {(12, 5), (11, 5), (12, 4)}
    assert first == bootstrap_interval(statistic, truth, scores, num_resamples=200, seed=1)
    assert first != bootstrap_interval(statistic, truth, scores, num_resamples=200, seed=2)


def test_order_of_classes_in_the_input_does_not_matter() -> None:
    truth, scores = simulated(seed=5, num_positive=30, num_negative=30)
    interleaved = np.argsort(np.tile(np.arange(30), 2), kind="stable")
    one = bootstrap_interval(average_precision_score, truth, scores, num_resamples=100)
    other = bootstrap_interval(average_precision_score, truth[interleaved], scores[interleaved], num_resamples=100)
    assert isinstance(one, Interval)
    assert one == other


@pytest.mark.parametrize("statistic", [roc_auc_score, average_precision_score])
@pytest.mark.parametrize(
    "scores",
    [[0.9, 0.8, 0.7, 0.1, 0.2, 0.3], [0.5] * 6],
    ids=["perfect", "constant"],
)
def test_no_interval_if_all_resamples_agree(statistic: object, scores: list[float]) -> None:
    truth = np.arange(6) < 3
    assert bootstrap_interval(statistic, truth, scores, num_resamples=50) is None  # type: ignore[arg-type]


def test_no_interval_for_a_class_of_one_image() -> None:
    assert bootstrap_interval(roc_auc_score, [True, False, False], [0.4, 0.5, 0.1]) is None


def test_bootstrap_refuses_nan() -> None:
    with pytest.raises(DataError, match=r"1 of 2 scores are not probabilities \(first: image 1, nan\)"):
        bootstrap_interval(roc_auc_score, [True, False], [0.5, float("nan")])
