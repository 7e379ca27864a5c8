"""Is one configuration better than another on the same images? The rule behind every verdict.

A difference must be explained neither by the choice of images (exact McNemar test on probabilities averaged over the
seeds) nor by the choice of seeds (exact rank-sum test on the accuracies of single seeds). The caller chooses the images
and ensures that the test set was sealed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.intervals import (
    THRESHOLD,
    BoolArray,
    FloatArray,
    Interval,
    check_detection,
    check_fraction,
    check_mask,
)
from fakeface_lab.evaluation.significance import (
    POWER,
    SIGNIFICANCE,
    SeedTest,
    detectable_difference,
    holm,
    seed_test,
)

__all__ = [
    "Comparison",
    "Judgement",
    "LogLoss",
    "PairedTest",
    "Verdict",
    "adjusted",
    "compare",
    "log_losses",
    "mcnemar",
]

Verdict = Literal["better", "worse", "not distinguishable", "cannot be decided"]
# With five discordant images, all on one side, p is 0.0625: no outcome could be significant.
MIN_DISCORDANT = 6
# Keras clips probabilities at this value before it takes their logarithm.
_SMALLEST_PROBABILITY = 1e-7


class Judgement(Protocol):
    """How a search's winner compares with the documented configuration."""

    @property
    def verdict(self) -> Verdict:
        """Whether the candidate is better than the reference."""

    def sentence(self, candidate: str, reference: str) -> str:
        """The verdict and its evidence in words, on one line."""


@dataclass(frozen=True)
class PairedTest:
    """Exact McNemar test of A against B on the same images.

    Attributes:
        num_images: images that both decided.
        num_only_a: images that only A has right (b in the usual table).
        num_only_b: images that only B has right (c).
        num_neither: images that both have wrong.
        p_value: two-sided, in (0, 1]; adjusted if there are several comparisons, see `adjusted`.
        num_comparisons: size of the family of comparisons that this one belongs to.
        min_discordant: smallest number of discordant images at which an outcome can be significant.
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
        """Number of images that exactly one of the two has right; only these carry evidence."""
        return self.num_only_a + self.num_only_b

    @property
    def verdict(self) -> Verdict:
        """Whether A is better than B, at p < 0.05."""
        # A separate verdict, because no division of so few images could have been significant.
        if self.num_discordant < self.min_discordant:
            return "cannot be decided"
        if self.p_value >= SIGNIFICANCE:
            return "not distinguishable"
        return "better" if self.num_only_a > self.num_only_b else "worse"

    @property
    def detectable_difference(self) -> float | None:
        """Smallest true difference in error rate that these images show with 80 % power; None if there is none.

        Assumes independent errors, the observed error rate of the better model, and the strictest significance level
        among the comparisons; see `significance.detectable_difference`.
        """
        # For a better model with one error that is 0.0370 on 258 images and 0.0075 on 1,289 (docs/truth.md).
        fewest_errors = self.num_neither + min(self.num_only_a, self.num_only_b)
        return detectable_difference(
            self.num_images, fewest_errors / self.num_images, SIGNIFICANCE / self.num_comparisons, POWER
        )


def mcnemar(is_correct_a: ArrayLike, is_correct_b: ArrayLike) -> PairedTest:
    """Exact McNemar test on paired decisions (McNemar 1947; Dietterich 1998 for classifiers).

    If the two are equally good, each wins half of the images that only one of them has right; the p-value is that of
    `scipy.stats.binomtest`.

    Args:
        is_correct_a: bool (N,), whether A is right about each image.
        is_correct_b: bool (N,), the same for B, in the same order.

    Raises:
        DataError: no image, wrong dtype, or different lengths.
    """
    a = check_mask(is_correct_a, "is_correct_a")
    b = check_mask(is_correct_b, "is_correct_b", a.size)
    num_only_a, num_only_b = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = num_only_a + num_only_b
    # Exact, because the chi-square form needs many discordant images, and two good models have few.
    p_value = float(stats.binomtest(num_only_a, discordant).pvalue) if discordant else 1.0
    return PairedTest(a.size, num_only_a, num_only_b, int((~a & ~b).sum()), p_value)


@dataclass(frozen=True)
class LogLoss:
    """The log loss of two models on the same images, which training minimizes. No verdict depends on it.

    Attributes:
        candidate: mean over the images, in nats.
        reference: the same.
        interval: 95 % interval of candidate minus reference, by a paired percentile bootstrap over the images; None if
            the two have the same loss on every image.
    """

    candidate: float
    reference: float
    interval: Interval | None

    @property
    def sentence(self) -> str:
        """The two figures and their difference in words."""
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
    """A candidate compared with a reference, both trained with the same number of seeds.

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
        """Whether the candidate is better than the reference."""
        # With three seeds per side the images alone call two equal configurations different in 3.4 % of cases, both
        # tests together in 0.6 % (docs/truth.md).
        return self.test.verdict if self.seeds.is_separated else _unsure(self.test.verdict)

    def sentence(self, candidate: str = "the candidate", reference: str = "the reference") -> str:
        """The verdict, its evidence, and the difference that these images could have shown, on one line."""
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
                but = "" if test.verdict == "not distinguishable" else ", but the seeds of one side differ as much"
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
        found, num_images = self.test.detectable_difference, self.test.num_images
        if found is None:
            return f"No difference is large enough for {num_images} images to show it in 80 % of cases."
        return f"{num_images} images show a true difference in error rate of {found:.4f} or more in 80 % of cases."


def _unsure(verdict: Verdict) -> Verdict:
    return "not distinguishable" if verdict in ("better", "worse") else verdict


def compare(
    is_positive: ArrayLike,
    candidate_scores: ArrayLike,
    reference_scores: ArrayLike,
    threshold: float = THRESHOLD,
    num_resamples: int = 10_000,
) -> Comparison:
    """Compare a candidate with a reference on the same images: the verdict rule.

    The probabilities are first averaged over the seeds of each side, so that the paired test sees one decision per
    image and side, and several seeds do not count as more images. That test alone is about the trained models. If
    retrained with other seeds they would differ again, so "better" and "worse" also require the seeds to be separated
    (Bouthillier et al. 2021: a comparison must randomize the sources of variation that it makes a claim about).

    Args:
        is_positive: bool (N,).
        candidate_scores: float64 (K, N), probability of the positive class in [0, 1], one row per seed.
        reference_scores: float64 (K, N), the same number of seeds.
        threshold: decided positive above it, in (0, 1).
        num_resamples: of the bootstrap of the log loss.

    Raises:
        DataError: wrong dtypes or shapes, no image or seed, or a score that is NaN or outside [0, 1].
        ConfigError: a threshold outside (0, 1).
    """
    check_fraction(threshold, "threshold")
    truth = check_mask(is_positive, "is_positive")
    sides = []
    for name, scores in (("candidate_scores", candidate_scores), ("reference_scores", reference_scores)):
        rows = np.asarray(scores, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[0] == 0:
            raise DataError(f"{name} have shape {rows.shape}, expected (num_seeds, {truth.size}), a row per seed")
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
        # Without `batch` SciPy holds all resamples at once: 10,000 times the images.
        found = stats.bootstrap(
            (differences,), np.mean, n_resamples=num_resamples, batch=100, method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
        interval = Interval(float(found.low), float(found.high))
    return LogLoss(float(candidate.mean()), float(reference.mean()), interval)


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Several comparisons with their p-values adjusted (Holm 1979), in the order given; the verdicts follow from them.

    The required number of discordant images rises too: six on one side are significant in a single comparison, but as
    the only significant one of two comparisons it takes seven.
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
    """Return the smallest number of discordant images, all on one side, that is significant next to the others."""
    num_discordant = MIN_DISCORDANT
    # The two-sided p-value of n images that are all on one side is 2 * 0.5 ** n.
    while holm([0.5 ** (num_discordant - 1), *other_p_values])[0] >= SIGNIFICANCE:
        num_discordant += 1
    return num_discordant
