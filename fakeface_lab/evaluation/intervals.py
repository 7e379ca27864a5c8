"""Numbers with their uncertainty: Wilson intervals of rates, bootstrap intervals of other scores, rates per group.

Also what every module here shares: which class is positive, the default threshold, and the checks of input arrays.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from fakeface_lab.errors import ConfigError, DataError

__all__ = [
    "THRESHOLD",
    "BoolArray",
    "FloatArray",
    "Interval",
    "Rate",
    "SliceAccuracies",
    "bootstrap_interval",
    "check_detection",
    "check_fraction",
    "check_mask",
    "metric_key",
    "positives",
    "roc_auc",
    "slice_accuracies",
    "wilson",
]

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

THRESHOLD = 0.5
"""An image is decided positive if its score is above this, unless the model at hand carries its own threshold."""


def positives(labels: ArrayLike) -> BoolArray:
    """Which images belong to the positive class, the one to detect: bool (N,), True for class index 0."""
    return np.asarray(np.asarray(labels) == 0)


def check_mask(values: ArrayLike, name: str, num_images: int | None = None) -> BoolArray:
    """Return one True or False per image after checking it.

    Integers are rejected: class index 0 is the positive class here, so an index taken for a truth value would silently
    invert every metric.

    Args:
        values: bool (N,), at least one image.
        name: of the array, for the error message.
        num_images: the required length, if known.

    Raises:
        DataError: wrong dtype, shape or length, or no image.
    """
    mask = np.asarray(values)
    if mask.ndim != 1 or mask.size == 0:
        raise DataError(f"{name} has shape {mask.shape}, expected (num_images,) with at least one image")
    if mask.dtype != np.bool_:
        raise DataError(f"{name} has dtype {mask.dtype}, expected bool; compare class indices first (label == 0)")
    if num_images is not None and mask.size != num_images:
        raise DataError(f"{name} has {mask.size} images, the others have {num_images}; pass the same images")
    return mask


def check_detection(is_positive: ArrayLike, scores: ArrayLike) -> tuple[BoolArray, FloatArray]:
    """Return the truth, bool (N,), and the probability of the positive class, float64 (N,), after checking both.

    Raises:
        DataError: wrong dtype, different shapes, no image, or a score that is NaN or outside [0, 1].
    """
    truth = check_mask(is_positive, "is_positive")
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != truth.shape:
        raise DataError(f"scores have shape {values.shape}, is_positive has {truth.shape}; pass one score per image")
    bad = ~((values >= 0.0) & (values <= 1.0))  # NaN fails both comparisons
    if bad.any():
        first = int(np.argmax(bad))
        raise DataError(
            f"{int(bad.sum())} of {values.size} scores are not probabilities (first: image {first}, "
            f"{values[first]}); expected 0 to 1"
        )
    return truth, values


def check_fraction(value: float, name: str) -> float:
    """Return the value after checking that it lies strictly between 0 and 1.

    Raises:
        ConfigError: it does not.
    """
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{name} is {value}, expected more than 0 and less than 1")
    return value


def metric_key(name: str) -> str:
    """Return a class or group name in lower snake case, for use in a metric's key: `Real Face` becomes `real_face`.

    Raises:
        ConfigError: the name has no letter or digit.
    """
    # MLflow refuses most other characters in a metric's name; both its check and `\w` allow letters of any alphabet.
    key = re.sub(r"\W+", "_", name.lower()).strip("_")
    if not key:
        raise ConfigError(f"{name!r} has no letter or digit to name a metric by; rename the class or group")
    return key


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
    """A share of images with its counts and its interval.

    Attributes:
        num_correct: images counted, 0 to `num_total`.
        num_total: all images, at least 1.
        value: num_correct / num_total, in [0, 1].
        low: lower end of the interval, in [0, value].
        high: upper end of the interval, in [value, 1].
        confidence: how often such an interval contains the true rate, in (0, 1).
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

    Unlike the normal interval it stays inside [0, 1] and keeps its width at rates of 0 and 1.

    Raises:
        DataError: no image, or contradictory counts.
        ConfigError: a confidence outside (0, 1).
    """
    check_fraction(confidence, "confidence")
    if num_total < 1:
        raise DataError(f"a rate over {num_total} images does not exist; pass at least one image")
    if not 0 <= num_correct <= num_total:
        raise DataError(f"{num_correct} of {num_total} images is not a rate, expected 0 to {num_total}")
    # SciPy's default is the exact interval (Clopper-Pearson), which is wider than its confidence requires.
    # For 257 of 258 both begin at 0.98, a percentile bootstrap at 0.99.
    interval = stats.binomtest(num_correct, num_total).proportion_ci(confidence, method="wilson")
    value = num_correct / num_total
    # At rates of 0 and 1 one end equals the rate, except for the last bit.
    low, high = min(float(interval.low), value), max(float(interval.high), value)
    return Rate(num_correct, num_total, value, low, high, confidence)


def roc_auc(is_positive: BoolArray, scores: FloatArray) -> float:
    """Return the area under the ROC curve: scikit-learn's, without its checks of the input, which slow a bootstrap.

    Args:
        is_positive: bool (N,), with both classes.
        scores: float64 (N,), any order-preserving scale.
    """
    num_positive = np.count_nonzero(is_positive)
    # The statistic of Mann and Whitney: ranks of the positives above the lowest that they could have.
    rank = stats.rankdata(scores)[is_positive].mean()
    return float((rank - (num_positive + 1) / 2) / (len(scores) - num_positive))


def bootstrap_interval(
    statistic: Callable[[BoolArray, FloatArray], float],
    is_positive: ArrayLike,
    scores: ArrayLike,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Interval | None:
    """Bias-corrected and accelerated bootstrap interval (Efron 1987, in SciPy), stratified by class.

    Positives and negatives are resampled separately, so that every resample has both classes. Meant for ROC AUC and
    average precision: `bootstrap_interval(roc_auc, is_positive, scores)`. For rates use `wilson`, which stays
    valid without errors, where each resample of a bootstrap has the same value.

    Args:
        statistic: takes is_positive, bool (N,), and scores, float64 (N,), of one resample and returns one number.
        is_positive: bool (N,).
        scores: float64 (N,), probability of the positive class in [0, 1].
        confidence: in (0, 1).
        num_resamples: number of resamples.
        seed: of the resampling.

    Returns:
        The interval, or None if resampling cannot give one: each resample has the same value (a perfect AUC has no
        misranked pair), or a class has fewer than two images.

    Raises:
        DataError: wrong dtypes or shapes, no image, or a score that is NaN or outside [0, 1].
        ConfigError: a confidence outside (0, 1).
    """
    check_fraction(confidence, "confidence")
    truth, values = check_detection(is_positive, scores)
    positives, negatives = values[truth], values[~truth]
    # For its acceleration BCa leaves out one image of a class at a time.
    if min(positives.size, negatives.size) < 2:
        return None

    def of_resample(positive_scores: FloatArray, negative_scores: FloatArray) -> float:
        # The sizes are those of this call: for the acceleration of BCa, SciPy also leaves out one image at a time.
        drawn = np.concatenate([positive_scores, negative_scores])
        return float(statistic(np.arange(drawn.size) < positive_scores.size, drawn))

    with warnings.catch_warnings():
        # A degenerate distribution is an expected outcome here: the result is None.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        result = stats.bootstrap(
            (positives, negatives),
            of_resample,
            n_resamples=num_resamples,
            vectorized=False,  # scikit-learn's scores take one resample at a time
            confidence_level=confidence,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    low, high = (float(end) for end in result.confidence_interval)
    # If all resamples agree, BCa gives NaN, which fails this comparison too.
    return Interval(low, high) if low < high else None


@dataclass(frozen=True)
class SliceAccuracies:
    """Accuracy per group.

    Attributes:
        accuracies: by group name, in the order given; None for a group without images.
        too_small: groups with fewer images than the minimum, which cannot be the worst.
        worst: the group with the lowest accuracy among the others (the largest in case of a tie), or None if all are
            too small.
        min_images: the minimum.
    """

    accuracies: dict[str, Rate | None]
    too_small: tuple[str, ...]
    worst: str | None
    min_images: int

    @property
    def worst_accuracy(self) -> Rate | None:
        """Worst group accuracy (Sagawa et al. 2020), None if all groups are too small.

        Its interval is one of simultaneous intervals over the judged groups (Bonferroni: each at 1 - 0.05 / their
        number), because the group was picked as the worst of them.
        """
        rate = None if self.worst is None else self.accuracies[self.worst]
        return rate and wilson(rate.num_correct, rate.num_total, 1 - 0.05 / self.num_judged)

    @property
    def num_judged(self) -> int:
        """Number of groups that could have been the worst."""
        return len(self.accuracies) - len(self.too_small)

    def metrics(self) -> dict[str, float]:
        """`accuracy_<group>` per group with images, and `worst_group_accuracy`, each as in `Rate.metrics`."""
        flat: dict[str, float] = {}
        for name, rate in self.accuracies.items():
            if rate is not None:
                flat |= rate.metrics(f"accuracy_{metric_key(name)}")
        if self.worst_accuracy is not None:
            flat |= self.worst_accuracy.metrics("worst_group_accuracy")
        return flat

    def __str__(self) -> str:
        lines = [f"{name}: {rate or 'no images'}" for name, rate in self.accuracies.items()]
        if self.worst is not None:
            lines.append(f"worst of {self.num_judged} groups: {self.worst}, {self.worst_accuracy}")
        if self.too_small:
            lines.append(f"fewer than {self.min_images} images, too small to judge: {', '.join(self.too_small)}")
        return "\n".join(lines)


def slice_accuracies(is_correct: ArrayLike, slices: Mapping[str, ArrayLike], min_images: int = 20) -> SliceAccuracies:
    """Accuracy with its Wilson interval in each named group; groups may overlap and need not cover all images.

    Args:
        is_correct: bool (N,), whether the model is right about each image.
        slices: group name to bool (N,), which images belong to it.
        min_images: smaller groups are listed as too small; with 20 images an interval is at most about 0.4 wide.

    Raises:
        DataError: an array that is not bool (N,).
        ConfigError: a minimum below 1, or two names with the same metric key.
    """
    if min_images < 1:
        raise ConfigError(f"min_images is {min_images}, expected 1 or more")
    if len({metric_key(name) for name in slices}) < len(slices):
        raise ConfigError(f"two of the groups {', '.join(slices)} have the same metric name; rename one")
    correct = check_mask(is_correct, "is_correct")
    accuracies: dict[str, Rate | None] = {}
    for name, members in slices.items():
        mask = check_mask(members, f"group {name!r}", correct.size)
        num_images = int(mask.sum())
        accuracies[name] = wilson(int(correct[mask].sum()), num_images) if num_images else None
    judged = {name: rate for name, rate in accuracies.items() if rate and rate.num_total >= min_images}
    worst = min(judged, key=lambda name: (judged[name].value, -judged[name].num_total), default=None)
    return SliceAccuracies(accuracies, tuple(name for name in slices if name not in judged), worst, min_images)
