"""Wilson against statsmodels, the stratified bootstrap against DeLong's variance, accuracy per group by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm
from sklearn.metrics import average_precision_score, roc_auc_score
from statsmodels.stats.proportion import proportion_confint

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.intervals import (
    BoolArray,
    FloatArray,
    Interval,
    bootstrap_interval,
    roc_auc,
    slice_accuracies,
    wilson,
)


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
    interval = bootstrap_interval(roc_auc, truth, scores)
    assert interval is not None
    width = 2 * 1.96 * delong_standard_error(truth, scores)
    assert interval.high - interval.low == pytest.approx(width, rel=0.12)
    assert interval.low < roc_auc_score(truth, scores) < interval.high


@pytest.mark.parametrize("num_values", [2, 5, 1000], ids=["many ties", "ties", "hardly any"])
def test_auc_is_that_of_scikit_learn(num_values: int) -> None:
    rng = np.random.default_rng(num_values)
    for num_positive, num_negative in ((1, 1), (3, 40), (200, 150)):
        truth = np.arange(num_positive + num_negative) < num_positive
        scores = rng.integers(num_values, size=truth.size) / num_values
        assert roc_auc(truth, scores) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


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


@pytest.mark.parametrize("statistic", [roc_auc, average_precision_score])
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


INDEX = np.arange(100)
# Wrong about the first 10 images.
IS_CORRECT = INDEX >= 10


def test_each_group_has_its_rate_and_the_worst_is_found() -> None:
    found = slice_accuracies(
        IS_CORRECT,
        {"Gray images": INDEX < 25, "colour": INDEX >= 25, "tiny": INDEX < 3, "none": INDEX < 0},
    )
    assert found.accuracies == {
        "Gray images": wilson(15, 25),
        "colour": wilson(75, 75),
        "tiny": wilson(0, 3),
        "none": None,
    }
    assert found.worst == "Gray images"
    assert found.worst_accuracy == wilson(15, 25, 1 - 0.05 / 2)  # two groups could have been the worst
    assert found.too_small == ("tiny", "none")
    assert str(found).splitlines() == [
        f"Gray images: {wilson(15, 25)}",
        f"colour: {wilson(75, 75)}",
        f"tiny: {wilson(0, 3)}",
        "none: no images",
        f"worst of 2 groups: Gray images, {wilson(15, 25, 0.975)}",
        "fewer than 20 images, too small to judge: tiny, none",
    ]


def test_metrics_have_plain_names() -> None:
    found = slice_accuracies(IS_CORRECT, {"Gray images": INDEX < 25, "none": INDEX < 0}).metrics()
    assert found["accuracy_gray_images"] == found["worst_group_accuracy"] == 0.6
    assert found["accuracy_gray_images_num_total"] == 25.0
    assert found["worst_group_accuracy_low"] == wilson(15, 25).low  # a single group, no selection
    assert not any("none" in name for name in found)


def test_groups_below_the_minimum_cannot_be_the_worst() -> None:
    groups = {"tiny": INDEX < 3, "all": INDEX >= 0}
    assert slice_accuracies(IS_CORRECT, groups).worst == "all"
    assert slice_accuracies(IS_CORRECT, groups, min_images=3).worst == "tiny"
    assert slice_accuracies(IS_CORRECT, groups, min_images=4).worst == "all"


def test_of_equally_bad_groups_the_larger_one_is_named() -> None:
    groups = {"small": (INDEX >= 5) & (INDEX < 15), "large": INDEX < 20}
    assert slice_accuracies(IS_CORRECT, groups, min_images=10).worst == "large"


@pytest.mark.parametrize("groups", [{}, {"tiny": INDEX < 3}])
def test_no_worst_group_if_all_are_too_small(groups: dict[str, Any]) -> None:
    found = slice_accuracies(IS_CORRECT, groups)
    assert found.worst is None
    assert found.worst_accuracy is None
    assert "worst_group_accuracy" not in found.metrics()


def test_wrong_masks_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="group 'gray' has 3 images, the others have 100"):
        slice_accuracies(IS_CORRECT, {"gray": np.ones(3, bool)})
    with pytest.raises(DataError, match="group 'gray' has dtype int64, expected bool"):
        slice_accuracies(IS_CORRECT, {"gray": INDEX})
    with pytest.raises(ConfigError, match="have the same metric name"):
        slice_accuracies(IS_CORRECT, {"Gray": INDEX < 5, "gray": INDEX < 6})
    with pytest.raises(ConfigError, match="min_images is 0, expected 1 or more"):
        slice_accuracies(IS_CORRECT, {}, min_images=0)


def test_interval_of_the_worst_group_covers_despite_its_selection() -> None:
    """Twelve groups with the same true accuracy: the worst is below it by selection alone."""
    rng, true, num_groups, num_images = np.random.default_rng(0), 0.9, 12, 60
    group = np.repeat(np.arange(num_groups), num_images)
    covered = {"simultaneous": 0, "each on its own": 0}
    for _ in range(300):
        found = slice_accuracies(
            rng.random(group.size) < true, {str(name): group == name for name in range(num_groups)}
        )
        worst, own = found.worst_accuracy, found.accuracies[found.worst or ""]
        assert worst is not None
        assert own is not None
        covered["simultaneous"] += worst.low <= true <= worst.high
        covered["each on its own"] += own.low <= true <= own.high
    assert covered["simultaneous"] >= binom.ppf(0.001, 300, 0.95)
    assert covered["each on its own"] < binom.ppf(0.001, 300, 0.95)
