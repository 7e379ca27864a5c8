"""Is one configuration better than another on the same images? The one rule that every verdict here follows.

Two things are asked of a difference: that it is no accident of the images (exact McNemar test on probabilities averaged
over the seeds), and none of the seeds (exact rank-sum test on the errors of single seeds). Which images those are, and
that the test set was sealed before, is for the caller to ensure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.intervals import (
    BoolArray,
    FloatArray,
    Interval,
    check_detection,
    check_fraction,
    check_mask,
)
from fakeface_lab.evaluation.significance import SIGNIFICANCE, SeedTest, detectable_difference, seed_test

__all__ = [
    "Comparison",
    "Judgement",
    "LogLoss",
    "PairedTest",
    "Verdict",
    "adjusted",
    "compare",
    "holm",
    "log_losses",
    "mcnemar",
]

Verdict = Literal["better", "worse", "not distinguishable", "cannot be decided"]
# Five discordant images all on one side give p = 0.0625: no outcome could be significant.
MIN_DISCORDANT = 6
_POWER = 0.8
# Keras clips probabilities so before it takes their logarithm.
_SMALLEST_PROBABILITY = 1e-7


class Judgement(Protocol):
    """What a search ends with: how its winner stands beside the documented configuration."""

    @property
    def verdict(self) -> Verdict:
        """What the candidate is beside the reference."""

    def sentence(self, candidate: str, reference: str) -> str:
        """The verdict and its evidence in plain words, in one line."""


@dataclass(frozen=True)
class PairedTest:
    """Exact McNemar test of A against B on the same images.

    Attributes:
        num_images: images both have decided.
        num_only_a: images only A has right (b in the usual table).
        num_only_b: images only B has right (c).
        num_neither: images that both have wrong.
        p_value: two-sided, in (0, 1]; of several comparisons adjusted, see `adjusted`.
        num_comparisons: comparisons that this one belongs to.
        min_discordant: images that must tell the two apart before any outcome could be significant.
    """

    num_images: int
    num_only_a: int
    num_only_b: int
    num_neither: int
    p_value: float
    num_comparisons: int = 1
    min_discordant: int = MIN_DISCORDANT

    @property
    def num_discordant(self) -> int:
        """Images that one has right and the other wrong: the only ones that tell the two apart."""
        return self.num_only_a + self.num_only_b

    @property
    def verdict(self) -> Verdict:
        """What A is beside B, at p < 0.05."""
        if self.num_discordant < self.min_discordant:
            return "cannot be decided"
        if self.p_value >= SIGNIFICANCE:
            return "not distinguishable"
        return "better" if self.num_only_a > self.num_only_b else "worse"

    @property
    def detectable_difference(self) -> float | None:
        """Smallest true difference in error rate that these images show with 80 % power; None: none.

        For models that err independently, the better of them as often as the better one here, at the significance level
        that the hardest of several comparisons meets; see `power.detectable_difference`.
        """
        fewest_errors = self.num_neither + min(self.num_only_a, self.num_only_b)
        return detectable_difference(
            self.num_images, fewest_errors / self.num_images, SIGNIFICANCE / self.num_comparisons, _POWER
        )


def mcnemar(is_correct_a: ArrayLike, is_correct_b: ArrayLike) -> PairedTest:
    """Exact McNemar test on paired decisions (McNemar 1947; Dietterich 1998 for classifiers).

    Among the images that only one side has right, each side wins half of the time if the two are equally
    good; the p-value is that of `scipy.stats.binomtest`.

    Args:
        is_correct_a: bool (N,), whether A is right about each image.
        is_correct_b: bool (N,), the same for B, in the same order.

    Raises:
        DataError: no image, another dtype, or lengths that differ.
    """
    a = check_mask(is_correct_a, "is_correct_a")
    b = check_mask(is_correct_b, "is_correct_b", a.size)
    num_only_a, num_only_b = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = num_only_a + num_only_b
    p_value = float(stats.binomtest(num_only_a, discordant).pvalue) if discordant else 1.0
    return PairedTest(a.size, num_only_a, num_only_b, int((~a & ~b).sum()), p_value)


@dataclass(frozen=True)
class LogLoss:
    """The log loss of two models on the same images: what a training minimises. No verdict depends on it.

    Attributes:
        candidate: mean over the images, in nats.
        reference: the same.
        interval: 95 % interval of candidate minus reference, by a paired percentile bootstrap over the images; None
            where no image tells the two apart.
    """

    candidate: float
    reference: float
    interval: Interval | None

    @property
    def sentence(self) -> str:
        """The two figures and their difference in plain words."""
        text = (
            f"Log loss {self.candidate:.4f} against {self.reference:.4f}, difference "
            f"{self.candidate - self.reference:+.4f}"
        )
        if self.interval is not None:
            low, high = self.interval.low, self.interval.high
            text += f" (95 % interval {low:+.4f} to {high:+.4f}, paired bootstrap over the images; lower is better)"
        return f"{text}."


@dataclass(frozen=True)
class Comparison:
    """A candidate beside a reference, each trained with the same number of seeds.

    Attributes:
        test: candidate as A, reference as B, on seed-averaged probabilities.
        seeds: the accuracies of single seeds, in [0, 1].
        log_loss: of the seed-averaged probabilities.
    """

    test: PairedTest
    seeds: SeedTest
    log_loss: LogLoss

    @property
    def verdict(self) -> Verdict:
        """What the candidate is beside the reference."""
        return self.test.verdict if self.seeds.is_apart else _unsure(self.test.verdict)

    def sentence(self, candidate: str = "the candidate", reference: str = "the reference") -> str:
        """The verdict, what it rests on and what these images could have shown, in one line."""
        test = self.test
        evidence = (
            f"of {test.num_images} images {test.num_only_a} are right with {candidate} alone, "
            f"{test.num_only_b} with {reference} alone"
        )
        tested = f"{evidence} (exact McNemar, p = {test.p_value:.2g})"
        match self.verdict:
            case "cannot be decided":
                text = (
                    f"whether {candidate} is better than {reference} cannot be decided on this test set: {evidence}; "
                    f"at least {test.min_discordant} such images are needed."
                )
            case "not distinguishable":
                but = "" if test.verdict == "not distinguishable" else ", but the seeds of one differ as much"
                text = (
                    f"{candidate} and {reference} are not distinguishable: {tested}{but}; that does not make them "
                    f"equal."
                )
            case verdict:
                text = f"{candidate} is {verdict} than {reference}: {tested}."
        parts = [text, self.seeds.sentence("Accuracy", candidate, reference), self._visible(), self.log_loss.sentence]
        text = " ".join(parts)
        return text[0].upper() + text[1:]

    def _visible(self) -> str:
        found = self.test.detectable_difference
        if found is None:
            return f"No difference is large enough for {self.test.num_images} images to show it in 80 % of cases."
        return (
            f"{self.test.num_images} images show a true difference in error rate in 80 % of cases from {found:.4f} on."
        )


def _unsure(verdict: Verdict) -> Verdict:
    return "not distinguishable" if verdict in ("better", "worse") else verdict


def compare(
    is_positive: ArrayLike,
    candidate_scores: ArrayLike,
    reference_scores: ArrayLike,
    threshold: float = 0.5,
    num_resamples: int = 10_000,
) -> Comparison:
    """Compare a candidate with a reference on the same images: the verdict rule.

    The probabilities are averaged over the seeds of each side first, so that the test of the images sees one decision
    per image and side and several seeds are not taken for more images. That test alone speaks of the models that were
    trained. Retrained with other seeds they would differ again, so "better" and "worse" need the seeds to lie apart as
    well (Bouthillier et al. 2021: a comparison must randomise the sources of variation that it wants to speak about).

    Args:
        is_positive: bool (N,).
        candidate_scores: float64 (K, N), probability of the positive class in [0, 1], a row per seed.
        reference_scores: float64 (K, N), as many seeds.
        threshold: decided positive above it, in (0, 1).
        num_resamples: of the bootstrap of the log loss.

    Raises:
        DataError: other dtypes or shapes, no image or seed, a score that is NaN or outside [0, 1].
        ConfigError: a threshold outside (0, 1).
    """
    check_fraction(threshold, "threshold")
    truth = check_mask(is_positive, "is_positive")
    sides = []
    for name, scores in (("candidate_scores", candidate_scores), ("reference_scores", reference_scores)):
        rows = np.asarray(scores, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[0] == 0:
            raise DataError(f"{name} have shape {rows.shape}, needed is (num_seeds, {truth.size}), a row per seed")
        for row in rows:
            check_detection(truth, row)
        sides.append(rows)
    candidate, reference = sides
    return Comparison(
        mcnemar((candidate.mean(axis=0) > threshold) == truth, (reference.mean(axis=0) > threshold) == truth),
        seed_test(*(((side > threshold) == truth).mean(axis=1) for side in sides)),
        _log_loss(log_losses(truth, candidate.mean(axis=0)), log_losses(truth, reference.mean(axis=0)), num_resamples),
    )


def log_losses(truth: BoolArray, scores: FloatArray) -> FloatArray:
    """Return each image's log loss, of the shape of `scores` (..., N), clipped as Keras does."""
    of_truth: FloatArray = np.where(truth, scores, 1 - scores)
    losses: FloatArray = -np.log(np.maximum(of_truth, _SMALLEST_PROBABILITY))
    return losses


def _log_loss(candidate: FloatArray, reference: FloatArray, num_resamples: int) -> LogLoss:
    differences = candidate - reference
    interval = None
    if np.ptp(differences) > 0:
        found = stats.bootstrap(
            (differences,), np.mean, n_resamples=num_resamples, batch=100, method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        interval = Interval(float(found.low), float(found.high))
    return LogLoss(float(candidate.mean()), float(reference.mean()), interval)


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Several comparisons with their p-values adjusted (Holm 1979), in the order given; each verdict follows.

    With them goes the number of images that must tell two models apart: six are significant alone, but not as the only
    significant one of two comparisons, where it takes seven.
    """
    p_values = [comparison.test.p_value for comparison in comparisons]
    return [
        replace(
            comparison,
            test=replace(
                comparison.test,
                p_value=p_value,
                num_comparisons=len(comparisons),
                min_discordant=_min_discordant([*p_values[:place], *p_values[place + 1 :]]),
            ),
        )
        for place, (comparison, p_value) in enumerate(zip(comparisons, holm(p_values), strict=True))
    ]


def _min_discordant(other_p_values: Sequence[float]) -> int:
    """Return how many discordant images, all on one side, are significant beside the other comparisons."""
    num_discordant = MIN_DISCORDANT
    while holm([0.5 ** (num_discordant - 1), *other_p_values])[0] >= SIGNIFICANCE:
        num_discordant += 1
    return num_discordant


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several (Holm 1979), in the order given: compare them with 0.05 as usual.

    Raises:
        DataError: a value that is NaN or outside [0, 1].
    """
    values: FloatArray = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0.0) & (values <= 1.0)).all():
        raise DataError(f"p-values are {list(p_values)}, allowed is 0 to 1")
    order = np.argsort(values, kind="stable")
    factors = np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return [float(value) for value in adjusted]
