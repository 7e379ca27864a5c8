"""Is one model better than another on the same images? The one rule that every verdict here follows.

Owns the paired test and the four words. It looks at decisions on images both models have seen; which images
those are, and that the test set was sealed before, is for the caller to ensure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.inputs import FloatArray, check_detection, check_fraction, check_mask
from fakeface_lab.evaluation.intervals import Interval

__all__ = ["Comparison", "Judgement", "PairedTest", "Verdict", "compare", "holm", "mcnemar", "seed_spread"]

Verdict = Literal["better", "worse", "not distinguishable", "cannot be decided"]
SIGNIFICANCE = 0.05
# Five discordant images all on one side give p = 0.0625: no outcome could be significant.
MIN_DISCORDANT = 6


class Judgement(Protocol):
    """What a search ends with: how its winner stands beside the documented configuration."""

    @property
    def verdict(self) -> Verdict:
        """What the candidate is beside the reference."""

    def sentence(self, candidate: str, reference: str) -> str:
        """The verdict in plain words, in one line."""


@dataclass(frozen=True)
class PairedTest:
    """Exact McNemar test of A against B on the same images.

    Attributes:
        num_images: images both have decided.
        num_only_a: images only A has right (b in the usual table).
        num_only_b: images only B has right (c).
        p_value: two-sided, in (0, 1]; of several comparisons put the value from `holm` here
            (`dataclasses.replace`), and the verdict follows.
    """

    num_images: int
    num_only_a: int
    num_only_b: int
    p_value: float

    @property
    def num_discordant(self) -> int:
        """Images that one has right and the other wrong: the only ones that tell the two apart."""
        return self.num_only_a + self.num_only_b

    @property
    def verdict(self) -> Verdict:
        """What A is beside B, at p < 0.05."""
        if self.num_discordant < MIN_DISCORDANT:
            return "cannot be decided"
        if self.p_value >= SIGNIFICANCE:
            return "not distinguishable"
        return "better" if self.num_only_a > self.num_only_b else "worse"

    def sentence(self, name_a: str, name_b: str) -> str:
        """The verdict in plain words, in one line."""
        counts = (
            f"of {self.num_images} images {self.num_only_a} are right with {name_a} alone, "
            f"{self.num_only_b} with {name_b} alone"
        )
        if self.verdict == "cannot be decided":
            return (
                f"Whether {name_a} is better than {name_b} cannot be decided on this test set: {counts}; "
                f"at least {MIN_DISCORDANT} such images are needed."
            )
        evidence = f"{counts} (exact McNemar, p = {self.p_value:.2g})"
        if self.verdict == "not distinguishable":
            return f"{name_a} and {name_b} are not distinguishable: {evidence}; that does not make them equal."
        return f"{name_a} is {self.verdict} than {name_b}: {evidence}."


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
    p_value = float(binomtest(num_only_a, discordant).pvalue) if discordant else 1.0
    return PairedTest(a.size, num_only_a, num_only_b, p_value)


@dataclass(frozen=True)
class Comparison:
    """A candidate beside a reference, each trained with one seed or more.

    Attributes:
        test: candidate as A, reference as B, on seed-averaged probabilities.
        candidate_seeds: lowest and highest accuracy of the candidate's single seeds, in [0, 1]; a spread, no
            confidence interval.
        reference_seeds: the same for the reference.
        num_candidate_seeds: seeds averaged for the candidate.
        num_reference_seeds: seeds averaged for the reference.
    """

    test: PairedTest
    candidate_seeds: Interval
    reference_seeds: Interval
    num_candidate_seeds: int
    num_reference_seeds: int

    @property
    def verdict(self) -> Verdict:
        """What the candidate is beside the reference."""
        return self.test.verdict

    def sentence(self, candidate: str = "the candidate", reference: str = "the reference") -> str:
        """The verdict and the spread over seeds in plain words, in one line."""
        text = (
            f"{self.test.sentence(candidate, reference)} Accuracy of single seeds: "
            f"{candidate} {seed_spread(self.candidate_seeds, self.num_candidate_seeds)}, "
            f"{reference} {seed_spread(self.reference_seeds, self.num_reference_seeds)}."
        )
        return text[0].upper() + text[1:]


def compare(
    is_positive: ArrayLike, candidate_scores: ArrayLike, reference_scores: ArrayLike, threshold: float = 0.5
) -> Comparison:
    """Compare a candidate with a reference on the same images: the verdict rule.

    The probabilities are averaged over the seeds of each side first, so that the test sees one decision per
    image and side and several seeds are not taken for more images.

    Args:
        is_positive: bool (N,).
        candidate_scores: float64 (K, N), probability of the positive class in [0, 1], a row per seed.
        reference_scores: float64 (L, N); its number of seeds may be another one.
        threshold: decided positive above it, in (0, 1).

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
        test=mcnemar((candidate.mean(axis=0) > threshold) == truth, (reference.mean(axis=0) > threshold) == truth),
        candidate_seeds=_seed_range((candidate > threshold) == truth),
        reference_seeds=_seed_range((reference > threshold) == truth),
        num_candidate_seeds=candidate.shape[0],
        num_reference_seeds=reference.shape[0],
    )


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


def _seed_range(is_correct: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Interval:
    accuracies = is_correct.mean(axis=1)
    return Interval(float(accuracies.min()), float(accuracies.max()))


def seed_spread(seeds: Interval, num_seeds: int) -> str:
    """The lowest and the highest figure of single seeds in words, for example `0.9810 to 0.9884 (3 seeds)`."""
    if num_seeds == 1:
        return f"{seeds.low:.4f} (1 seed)"
    return f"{seeds.low:.4f} to {seeds.high:.4f} ({num_seeds} seeds)"
