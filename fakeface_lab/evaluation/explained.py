"""How much of a model's accuracy simple features reach too, as a figure with its interval and in words.

Owns that one figure and its sentence; the probes are trained elsewhere.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.inputs import check_mask
from fakeface_lab.evaluation.intervals import Interval, wilson
from fakeface_lab.evaluation.probes import ProbeResult

__all__ = ["Explained", "explain", "explained_share"]

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Explained:
    """A model beside chance and a simple probe, on the same images.

    Attributes:
        majority: share of the larger class, in [0.5, 1].
        share: part of the model's gain over the majority that the probe gains too, in [0, 1]; None where the interval
            of the model's accuracy reaches down to the majority: there is nothing to explain then.
        interval: of the share, 95 %, by a bootstrap of the images; None without a share.
        sentence: the same for the user.
    """

    majority: float
    share: float | None
    interval: Interval | None
    sentence: str

    def metrics(self) -> dict[str, float]:
        """`majority_accuracy`, and where there is a share `explained_share` with `_low` and `_high`."""
        metrics = {"majority_accuracy": self.majority}
        if self.share is not None and self.interval is not None:
            metrics |= {
                "explained_share": self.share,
                "explained_share_low": self.interval.low,
                "explained_share_high": self.interval.high,
            }
        return metrics


def explain(probe: ProbeResult, labels: NDArray[np.int64], is_correct: ArrayLike) -> Explained:
    """Set a model's decisions beside what chance and a simple probe get right on the same images.

    The interval is that of a paired bootstrap: each resample takes the model, the probe and the majority on the same
    images (percentile, 2,000 resamples, one seed).

    Args:
        probe: the probe's result on these images.
        labels: int64 (N,), 0 for the positive class.
        is_correct: bool (N,), whether the model is right about each image.

    Raises:
        DataError: lengths that differ, or no image.
    """
    model = check_mask(is_correct, "is_correct", len(labels))
    by_probe = check_mask((probe.scores > 0.5) == (labels == 0), "the probe's decisions", len(labels))
    by_majority = labels == np.bincount(labels, minlength=2).argmax()
    accuracy, majority = wilson(int(model.sum()), model.size), float(by_majority.mean())
    sees = f"A simple model that sees only {probe.sees}"
    share = explained_share(probe.accuracy.value, accuracy.value, majority)
    if share is None or accuracy.low <= majority:
        sentence = (
            f"An accuracy of {accuracy} is not better than chance, always naming the larger class ({majority:.3f}). "
            f"{sees} is right on {probe.accuracy.value:.3f} of the same images."
        )
        return Explained(majority, None, None, sentence)
    interval = _interval(np.stack([by_probe, model, by_majority]))
    has = f"{sees} has {share:.2f} of the accuracy above chance (95 % interval {interval.low:.2f}-{interval.high:.2f}"
    figures = f"{probe.accuracy.value:.3f} against {accuracy.value:.3f}, chance {majority:.3f}"
    return Explained(majority, share, interval, f"{has}; {figures}){_consequence(share)}")


def explained_share(probe_accuracy: float, accuracy: float, majority: float) -> float | None:
    """The part of a model's gain over guessing that a simple probe gains on the same images.

    (probe_accuracy - majority) / (accuracy - majority), in [0, 1]: 0 for a probe no better than guessing, 1
    for a probe as good as the model or better.

    Args:
        probe_accuracy: of a simple classifier on a few features, in [0, 1].
        accuracy: of the model on the same images, in [0, 1].
        majority: share of the largest class among them, in [0, 1].

    Returns:
        The share, or None where the model itself is not above the majority: there is nothing to explain.

    Raises:
        DataError: a value outside [0, 1], or NaN.
    """
    for name, value in (("probe_accuracy", probe_accuracy), ("accuracy", accuracy), ("majority", majority)):
        if not 0.0 <= value <= 1.0:
            raise DataError(f"{name} is {value}, allowed is 0 to 1; pass a share, not a percentage")
    if accuracy <= majority:
        return None
    share = (probe_accuracy - majority) / (accuracy - majority)
    return min(max(share, 0.0), 1.0)


def _interval(is_correct: NDArray[np.bool_]) -> Interval:
    """Percentile interval of the share; rows of `is_correct` (3, N) are probe, model and majority."""
    # Images differ only in who is right about them, so a resample is a draw of how many there are of each kind.
    kinds, counts = np.unique(is_correct, axis=1, return_counts=True)
    num_images = is_correct.shape[1]
    drawn = np.random.default_rng(0).multinomial(num_images, counts / num_images, NUM_RESAMPLES)
    probe, model, majority = kinds.astype(np.float64) @ drawn.T
    has_gain = model > majority
    shares = np.clip((probe - majority)[has_gain] / (model - majority)[has_gain], 0.0, 1.0)
    low, high = np.quantile(shares, [0.025, 0.975])
    return Interval(float(low), float(high))


def _consequence(share: float) -> str:
    if share >= 0.9:
        return ": this accuracy does not show that faces were looked at."
    if share >= 0.5:
        return ": most of this accuracy needs no look at faces."
    return "."
