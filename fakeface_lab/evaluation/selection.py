"""What the best score of a search is worth, and whether the search space was wide enough.

The best of many trials on the same images is optimistic, because it was picked partly for its luck. Owns the correction
for that, the expected best after fewer trials, and the check for best values at the edge of their range.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.intervals import FloatArray, check_fraction

__all__ = [
    "EdgeValue",
    "SearchRange",
    "SelectedScore",
    "edge_values",
    "expected_best",
    "selection_corrected",
]

EDGE_FRACTION = 0.1


@dataclass(frozen=True)
class SelectedScore:
    """The best score of a search, as found and as expected on new images.

    Attributes:
        naive: score of the best trial over all images, as a leaderboard shows it.
        held_out: mean score of a trial picked this way on images it was not picked on.
        low: lower end of its conservative 95 % interval.
        high: upper end.
        num_trials: trials to pick from.
        num_epochs: epochs of all trials if the pick among them is corrected for too; otherwise None.
        num_images: images they were scored on.
        maximize: whether higher is better.
        is_lowest: whether the score is the lowest of several figures, which is too low by chance.
    """

    naive: float
    held_out: float
    low: float
    high: float
    num_trials: int
    num_epochs: int | None
    num_images: int
    maximize: bool = True
    is_lowest: bool = False

    @property
    def is_more_than_found(self) -> bool:
        """Whether the score on held-out images is better than the one found."""
        return self.held_out > self.naive if self.maximize else self.held_out < self.naive

    @property
    def corrected(self) -> float:
        """The score to expect on new images.

        Selection cannot make a mean worse, so if the held-out score is better the one found stands. The lowest of
        several figures, however, may well be higher on new images.
        """
        return self.naive if self.is_more_than_found and not self.is_lowest else self.held_out

    def __str__(self) -> str:
        of = f"{self.num_trials} trials"
        covered = "the trial; that of its epoch is not covered"
        if self.num_epochs is not None:
            of += f" and their {self.num_epochs} epochs"
            covered = "trial and epoch"
        text = f"best of {of} on {self.num_images} images: {self.naive:.4f} as found, "
        if self.is_more_than_found and not self.is_lowest:
            text += (
                f"nothing to take off for the selection of {covered} (on held-out images it is {self.held_out:.4f}, no "
                f"worse: the models differ by more than luck)"
            )
        else:
            text += f"{self.corrected:.4f} corrected for the selection of {covered}"
            if self.is_more_than_found:
                text += " (more than was found, because the lowest of several conditions is too low by chance)"
        return f"{text}, conservative 95 % interval {self.low:.4f}-{self.high:.4f}"


def selection_corrected(
    scores: ArrayLike,
    maximize: bool = True,
    num_trials: int | None = None,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> SelectedScore:
    """Correct the best of several trials for its selection: BBC-CV (Tsamardinos et al. 2018).

    Resamples the images, picks the best column on those drawn, and scores it on those left out; the mean over all
    resamples is the corrected score, their percentiles its interval. The interval is wider than necessary, because only
    about a third of the images is left out each time. Columns that tie on a resample share it equally. Nothing is
    retrained.

    A trial that keeps the best of its epochs was picked twice on the same images. With one column per epoch of each
    trial, both picks are repeated in every resample.

    Args:
        scores: (N, C), score of each image under each trial, or under each epoch of each trial: bool or 0/1 for
            accuracy, or any per-image figure whose mean is the metric, for example the loss. All on the same images,
            none of them trained on.
        maximize: whether higher is better.
        num_trials: number of trials if the columns are epochs; None if each column is a trial.
        confidence: of the interval, in (0, 1).
        num_resamples: number of resamples.
        seed: of the resampling.

    Raises:
        DataError: wrong shape, fewer than two images, no trial, or a score that is not finite.
        ConfigError: a confidence outside (0, 1).
    """
    check_fraction(confidence, "confidence")
    matrix: FloatArray = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] < 2 or matrix.shape[1] == 0:
        raise DataError(f"scores have shape {matrix.shape}, expected (num_images, num_columns), at least 2 images")
    if not np.isfinite(matrix).all():
        raise DataError("scores hold NaN or infinity; leave out the trials that have no score for each image")
    num_images, num_columns = matrix.shape
    gains = matrix if maximize else -matrix
    rng = np.random.default_rng(seed)
    left_out_scores = []
    for _ in range(num_resamples):
        times_drawn = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
        left_out = times_drawn == 0
        if not left_out.any():  # possible with a handful of images
            continue
        # Sums, not means: those of 0/1 scores are whole numbers, so that columns that tie are equal to the last bit.
        in_bag = times_drawn @ gains
        left_out_scores.append(matrix[left_out][:, in_bag == in_bag.max()].mean())
    low, high = np.quantile(left_out_scores, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    means = matrix.mean(axis=0)
    return SelectedScore(
        naive=float(means.max() if maximize else means.min()),
        held_out=float(np.mean(left_out_scores)),
        low=float(low),
        high=float(high),
        num_trials=num_trials or num_columns,
        num_epochs=None if num_trials is None else num_columns,
        num_images=num_images,
        maximize=maximize,
    )


def expected_best(trial_scores: ArrayLike, algorithm: str, maximize: bool = True) -> FloatArray:
    """Unbiased estimate of the best score after 1, 2, ... T random trials (U-statistic, Tang et al. 2020).

    The mean of the best over all subsets of n of the T trials. These are validation scores, so all but the first carry
    the optimism that `selection_corrected` removes.

    Args:
        trial_scores: (T,), finite, of trials drawn independently from one distribution, without a first trial that was
            set by hand.
        algorithm: the algorithm that suggested them. Only "random" draws independent trials; the others learn from
            earlier trials or enumerate a list.
        maximize: whether higher is better.

    Returns:
        float64 (T,), in the unit of the scores; entry n - 1 is for n trials.

    Raises:
        ConfigError: an algorithm other than "random".
        DataError: wrong shape, no trial, or a score that is not finite.
    """
    if algorithm != "random":
        raise ConfigError(
            f"the expected best after fewer trials is undefined for algorithm {algorithm!r}, whose trials are not "
            f"independent draws; expected 'random'"
        )
    values: FloatArray = np.asarray(trial_scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise DataError(f"trial scores have shape {values.shape}, expected (num_trials,), at least one trial")
    if not np.isfinite(values).all():
        raise DataError("trial scores hold NaN or infinity; leave out the trials that failed")
    ascending = np.sort(values) if maximize else np.sort(values)[::-1]
    num_trials = values.size
    rank = np.arange(1, num_trials + 1)
    best = np.empty(num_trials)
    for n in range(1, num_trials + 1):
        # The i-th smallest is the best of C(i-1, n-1) of the C(T, n) subsets; in logarithms, because both overflow.
        among = rank[n - 1 :]
        log_share = _log_comb(among - 1, n - 1) - _log_comb(np.array([num_trials]), n)
        best[n - 1] = np.exp(log_share) @ ascending[n - 1 :]
    return best


def _log_comb(n: np.ndarray[tuple[int, ...], np.dtype[np.int_]], k: int) -> FloatArray:
    result: FloatArray = gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(n - k + 1.0)
    return result


@dataclass(frozen=True)
class SearchRange:
    """The range in which a hyperparameter was searched.

    Attributes:
        low: smallest value, included.
        high: largest value, included, above `low`.
        is_log: whether values were drawn uniformly in their logarithm; then `low` is above 0.
    """

    low: float
    high: float
    is_log: bool = False


@dataclass(frozen=True)
class EdgeValue:
    """A best value at the edge of its range; the optimum may lie outside.

    Attributes:
        name: of the hyperparameter.
        value: of the best trial.
        side: which edge.
        range: in which it was searched.
    """

    name: str
    value: float
    side: Literal["low", "high"]
    range: SearchRange

    def __str__(self) -> str:
        direction = "down" if self.side == "low" else "up"
        return (
            f"{self.name} = {self.value:g} is at the {self.side} edge of {self.range.low:g} to "
            f"{self.range.high:g}; widen the range {direction}wards"
        )


def edge_values(best: Mapping[str, float], ranges: Mapping[str, SearchRange]) -> tuple[EdgeValue, ...]:
    """The best trial's values in the outer 10 % of their range, on the scale on which it was sampled.

    Args:
        best: hyperparameter name to value; those without a range (choices, switches) are ignored.
        ranges: hyperparameter name to range; one with equal ends was not searched and is ignored.

    Raises:
        ConfigError: an invalid range, or a value outside its range.
    """
    found = []
    for name, value in best.items():
        if name not in ranges or ranges[name].low == ranges[name].high:
            continue
        position = _position(name, value, ranges[name])
        # A tolerance, so that 0.7 in 0.25 to 0.75 counts just as 0.3 does.
        if position <= EDGE_FRACTION + 1e-9:
            found.append(EdgeValue(name, value, "low", ranges[name]))
        elif position >= 1.0 - EDGE_FRACTION - 1e-9:
            found.append(EdgeValue(name, value, "high", ranges[name]))
    return tuple(found)


def _position(name: str, value: float, searched: SearchRange) -> float:
    """Relative position of a value in its range, 0 to 1."""
    low, high = searched.low, searched.high
    if not -math.inf < low < high < math.inf or (searched.is_log and low <= 0):
        needed = "0 < low < high" if searched.is_log else "low < high"
        raise ConfigError(f"range of {name} is {low} to {high}, expected {needed}")
    if not low <= value <= high:
        raise ConfigError(f"{name} = {value} lies outside its range {low} to {high}; pass the range searched")
    if searched.is_log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)
