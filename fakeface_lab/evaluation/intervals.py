"""Intervals: Wilson for every rate, a class-wise bootstrap for what is no rate.

Owns what an uncertain number looks like (`Rate`, `Interval`). Which rates and scores are worth having is
decided in `scores`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.inputs import BoolArray, FloatArray, check_detection, check_fraction

__all__ = ["Interval", "Rate", "bootstrap_interval", "wilson"]


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: lower end, in the unit of the statistic.
        high: upper end.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Rate:
    """A share of images, with the counts and the interval that belong to it.

    Attributes:
        num_correct: images counted, 0 to `num_total`.
        num_total: images looked at, at least 1.
        value: num_correct / num_total, in [0, 1].
        low: lower end of the interval, in [0, value].
        high: upper end of the interval, in [value, 1].
        confidence: how often such an interval holds the true rate, in (0, 1).
    """

    num_correct: int
    num_total: int
    value: float
    low: float
    high: float
    confidence: float = 0.95

    def __str__(self) -> str:
        """For example `0.9961 (257/258, 95 % interval 0.9784-0.9993)`."""
        return (
            f"{self.value:.4f} ({self.num_correct}/{self.num_total}, "
            f"{100 * self.confidence:.4g} % interval {self.low:.4f}-{self.high:.4f})"
        )

    def metrics(self, name: str) -> dict[str, float]:
        """Flat metrics: `name`, and `name` with `_low`, `_high`, `_num_correct` and `_num_total`."""
        return {
            name: self.value,
            f"{name}_low": self.low,
            f"{name}_high": self.high,
            f"{name}_num_correct": float(self.num_correct),
            f"{name}_num_total": float(self.num_total),
        }


def wilson(num_correct: int, num_total: int, confidence: float = 0.95) -> Rate:
    """The rate num_correct / num_total with its Wilson score interval (Wilson 1927; Newcombe 1998).

    Unlike the normal interval it stays inside [0, 1] and does not shrink to nothing at 0 or at no errors.

    Raises:
        DataError: no image, or counts that contradict each other.
        ConfigError: a confidence outside (0, 1).
    """
    check_fraction(confidence, "confidence")
    if num_total < 1:
        raise DataError(f"a rate over {num_total} images does not exist; pass at least one image")
    if not 0 <= num_correct <= num_total:
        raise DataError(f"{num_correct} of {num_total} images is no rate, allowed is 0 to {num_total}")
    interval = stats.binomtest(num_correct, num_total).proportion_ci(confidence, method="wilson")
    value = num_correct / num_total
    # At 0 and at all the end of the interval is the rate itself, up to the last bit.
    low, high = min(float(interval.low), value), max(float(interval.high), value)
    return Rate(num_correct, num_total, value, low, high, confidence)


def bootstrap_interval(
    statistic: Callable[[BoolArray, FloatArray], float],
    is_positive: ArrayLike,
    scores: ArrayLike,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval | None:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987, in SciPy), class by class.

    Positives and negatives are resampled apart, so that no resample loses a class. Meant for ROC AUC and
    average
    precision: `bootstrap_interval(roc_auc_score, is_positive, scores)`. Rates have `wilson`, which stays
        honest
    where the bootstrap does not.

    Args:
        statistic: takes is_positive, bool (N,), and scores, float64 (N,), of one resample and gives one
            number.
        is_positive: bool (N,).
        scores: float64 (N,), probability of the positive class in [0, 1].
        confidence: in (0, 1).
        num_resamples: how many resamples are drawn.
        seed: of the resampling.

    Returns:
        The interval, or None where resampling cannot give one: each resample has the same value (a perfect
        AUC has no misranked pair to lose), or a class has fewer than two images.

    Raises:
        DataError: the arrays are not as said above.
        ConfigError: a confidence outside (0, 1).
    """
    check_fraction(confidence, "confidence")
    truth, values = check_detection(is_positive, scores)
    positives, negatives = values[truth], values[~truth]
    if min(positives.size, negatives.size) < 2:
        return None

    def of_resample(positive_scores: FloatArray, negative_scores: FloatArray) -> float:
        drawn = np.concatenate([positive_scores, negative_scores])
        return float(statistic(np.arange(drawn.size) < positive_scores.size, drawn))

    with warnings.catch_warnings():
        # A degenerate distribution is an answer here (None), not an accident.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        result = stats.bootstrap(
            (positives, negatives),
            of_resample,
            n_resamples=num_resamples,
            vectorized=False,
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = (float(end) for end in result.confidence_interval)
    return Interval(low, high) if low < high else None
