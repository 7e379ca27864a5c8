"""Are the probabilities true: of the images scored 0.9, are nine in ten positive?

Owns the expected calibration error, the value it reaches by chance alone, and the table behind a reliability
diagram. Draws nothing and corrects nothing.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from fakeface_lab.evaluation.inputs import FloatArray, check_detection
from fakeface_lab.evaluation.intervals import Rate, wilson

__all__ = ["Calibration", "ReliabilityBin", "calibration"]

NUM_SIMULATIONS = 1000


@dataclass(frozen=True)
class ReliabilityBin:
    """The images of one bin: one point of a reliability diagram.

    Attributes:
        mean_score: what the model says, in [0, 1].
        positive: what is so: share of positives, with counts and Wilson interval.
        null_low: with calibrated scores the share of positives lies above this in 97.5 % of all cases.
        null_high: and below this (consistency bars, Broecker and Smith 2007).
    """

    mean_score: float
    positive: Rate
    null_low: float
    null_high: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of one model on one set of images.

    Attributes:
        ece: expected calibration error over bins of equal mass, in [0, 1]; above 0 even for a calibrated
            model.
        null_mean: mean ECE of a calibrated model with these very scores.
        null_high: its 95 % quantile.
        bins: the reliability table, by rising score.
    """

    ece: float
    null_mean: float
    null_high: float
    bins: tuple[ReliabilityBin, ...]

    @property
    def is_miscalibrated(self) -> bool:
        """Whether the error is larger than chance explains (at 95 %)."""
        return self.ece > self.null_high

    def metrics(self) -> dict[str, float]:
        """`ece`, `ece_null_mean` and `ece_null_high`, for a run."""
        return {"ece": self.ece, "ece_null_mean": self.null_mean, "ece_null_high": self.null_high}

    def __str__(self) -> str:
        verdict = "more than" if self.is_miscalibrated else "no more than"
        return f"ECE {self.ece:.4f}, {verdict} a calibrated model has by chance (95 %: up to {self.null_high:.4f})"


def calibration(is_positive: ArrayLike, scores: ArrayLike, seed: int = 0) -> Calibration:
    """Expected calibration error with equal-mass bins beside what a calibrated model has by chance.

    Bins of equal mass have less bias than bins of equal width (Roelofs et al. 2022); 5 below 300 images,
    else 10. Images with the same score share a bin, so that their order is of no account; saturated scores
    then fill fewer bins. The null draws each image's class from its score, 1,000 times.

    Args:
        is_positive: bool (N,); one class alone is allowed.
        scores: float64 (N,), probability of the positive class in [0, 1].
        seed: of the simulations.

    Raises:
        DataError: other dtypes or shapes, no image, a score that is NaN or outside [0, 1].
    """
    truth, values = check_detection(is_positive, scores)
    bins = _equal_mass_bins(values)
    counts = np.bincount(bins)
    mean_scores = np.bincount(bins, weights=values) / counts
    rng = np.random.default_rng(seed)
    # One simulation at a time: memory stays that of the images, however many there are.
    null_shares = np.array(
        [np.bincount(bins, weights=rng.random(values.size) < values) / counts for _ in range(NUM_SIMULATIONS)]
    )
    shares = np.bincount(bins, weights=truth) / counts
    weights = counts / values.size
    null_eces = np.abs(null_shares - mean_scores) @ weights
    null_low, null_high = np.quantile(null_shares, [0.025, 0.975], axis=0)
    table = tuple(
        ReliabilityBin(
            mean_score=float(mean_scores[i]),
            positive=wilson(int(truth[bins == i].sum()), int(counts[i])),
            null_low=float(null_low[i]),
            null_high=float(null_high[i]),
        )
        for i in range(counts.size)
    )
    return Calibration(
        ece=float(np.abs(shares - mean_scores) @ weights),
        null_mean=float(null_eces.mean()),
        null_high=float(np.quantile(null_eces, 0.95)),
        bins=table,
    )


def _equal_mass_bins(values: FloatArray) -> NDArray[np.intp]:
    """Bin of each image, int (N,), numbered from 0 by rising score without gaps."""
    num_bins = 5 if values.size < 300 else 10
    # The mean rank of equal scores keeps them together, in the bin where their middle lies.
    position = (rankdata(values) - 0.5) / values.size
    return np.unique((position * num_bins).astype(np.intp), return_inverse=True)[1]
