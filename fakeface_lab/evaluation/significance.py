"""Significance tests behind a verdict: the power of McNemar's test, the spread over seeds, several tests at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import brentq
from scipy.stats import binom

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.intervals import FloatArray, Interval, check_fraction

__all__ = ["POWER", "SIGNIFICANCE", "SeedTest", "detectable_difference", "holm", "mcnemar_power", "seed_test"]

SIGNIFICANCE = 0.05
# The usual convention (Cohen 1988).
POWER = 0.8
# Of two equal configurations 4.3 % get a false verdict with two seeds per side, 0.6 % with three (docs/truth.md).
MIN_CONFIGURATION_SEEDS = 3

# Probability left out at each end of the number of discordant images; no printed digit depends on it.
_NEGLIGIBLE = 1e-9
_NUM_RESAMPLES = 9_999  # with up to seven seeds per side there are fewer permutations, and the test is exact


def mcnemar_power(num_images: int, error_rate_a: float, error_rate_b: float, alpha: float = 0.05) -> float:
    """Probability that the exact McNemar test finds A better than B, for two models that err independently.

    The unconditional power (Duffy 1984), summed over all numbers of discordant images. Models that err on the same hard
    images have fewer discordant ones and more power for the same difference, so this is a lower bound for them.

    Args:
        num_images: images that both models decide.
        error_rate_a: true error rate of A, in [0, 1].
        error_rate_b: true error rate of B, in [0, 1].
        alpha: two-sided significance level, in (0, 1).

    Returns:
        In [0, 1].

    Raises:
        DataError: no image, or a rate outside [0, 1].
        ConfigError: an alpha outside (0, 1).
    """
    check_fraction(alpha, "alpha")
    if num_images < 1 or not (0 <= error_rate_a <= 1 and 0 <= error_rate_b <= 1):
        raise DataError(
            f"{num_images} images with error rates {error_rate_a} and {error_rate_b}: expected at least one image "
            f"and rates from 0 to 1"
        )
    only_a, only_b = error_rate_b * (1 - error_rate_a), error_rate_a * (1 - error_rate_b)
    if only_a + only_b == 0:
        return 0.0
    low, high = (int(binom.ppf(share, num_images, only_a + only_b)) for share in (_NEGLIGIBLE, 1 - _NEGLIGIBLE))
    # From 1, because without a discordant image nothing is significant.
    num_discordant = np.arange(max(low, 1), high + 1)
    # Largest number of images that only B has right with a two-sided p-value still below alpha; -1 if there is none.
    most: FloatArray = np.asarray(binom.ppf(alpha / 2, num_discordant, 0.5) - 1)
    # The test requires p < alpha, the quantile only p <= alpha.
    most -= np.asarray(2 * binom.cdf(most, num_discordant, 0.5) >= alpha)
    seen: FloatArray = np.asarray(binom.cdf(most, num_discordant, only_b / (only_a + only_b)))
    return float(np.asarray(binom.pmf(num_discordant, num_images, only_a + only_b)) @ seen)


def detectable_difference(
    num_images: int, error_rate: float, alpha: float = 0.05, power: float = POWER
) -> float | None:
    """Smallest true difference in error rate that the exact McNemar test detects with this power.

    Args:
        num_images: images that both models decide.
        error_rate: of the better of the two models, in [0, 1).
        alpha: two-sided significance level, in (0, 1).
        power: in (0, 1).

    Returns:
        In (0, 1 - error_rate]; None if no difference would be detected that often.

    Raises:
        DataError: no image, or a rate outside [0, 1].
        ConfigError: an alpha or a power outside (0, 1).
    """
    check_fraction(power, "power")

    def excess(difference: float) -> float:
        return mcnemar_power(num_images, error_rate, error_rate + difference, alpha) - power

    largest = 1 - error_rate
    # Power grows with the difference: if the largest is not detected often enough, none is.
    if excess(largest) < 0:
        return None
    # Two digits beyond the four that a verdict prints.
    return float(brentq(excess, 0.0, largest, xtol=1e-6))


@dataclass(frozen=True)
class SeedTest:
    """The figures of single seeds of two configurations, and whether they are separated.

    Attributes:
        candidate: lowest and highest figure of the candidate's seeds; a range, not a confidence interval.
        reference: the same for the reference.
        num_seeds: seeds per side.
        p_value: two-sided, of the exact rank-sum test; 1 with a single seed.
    """

    candidate: Interval
    reference: Interval
    num_seeds: int
    p_value: float

    @property
    def max_p_value(self) -> float:
        """Largest p-value at which the seeds count as separated.

        0.05; with fewer than four seeds the smallest possible one: each seed of one side beats each of the other.
        """
        return max(SIGNIFICANCE, 2 / comb(2 * self.num_seeds, self.num_seeds))

    @property
    def is_separated(self) -> bool:
        """Whether the sides differ by more than their own seeds do; always true with a single seed per side."""
        # The smallest possible p-value is computed in two ways, which may differ in the last bit.
        return self.num_seeds == 1 or self.p_value <= self.max_p_value + 1e-12

    def sentence(self, figure: str, candidate: str, reference: str) -> str:
        """The range in words; with fewer than three seeds also the limit of what the comparison says."""
        text = f"{figure} of single seeds: {candidate} {self._spread(self.candidate)}, "
        text += f"{reference} {self._spread(self.reference)}"
        if self.num_seeds > 1:
            text += f" (exact rank-sum test, p = {self.p_value:.2g})"
        if self.num_seeds < MIN_CONFIGURATION_SEEDS:
            text += (
                f". This is about these two trained models, not about their configurations: for that, each needs at "
                f"least {MIN_CONFIGURATION_SEEDS} seeds"
            )
        return f"{text}."

    def _spread(self, seeds: Interval) -> str:
        if self.num_seeds == 1:
            return f"{seeds.low:.4f} (1 seed)"
        return f"{seeds.low:.4f} to {seeds.high:.4f} ({self.num_seeds} seeds)"


def seed_test(candidate: ArrayLike, reference: ArrayLike) -> SeedTest:
    """Compare two configurations by one figure per seed: exact rank-sum test (Wilcoxon 1945), midranks for ties.

    Valid for any distribution of the figures, including a rare seed that collapses.

    Args:
        candidate: float (num_seeds,), one figure per seed.
        reference: float (num_seeds,), the same number of seeds.

    Raises:
        DataError: different numbers of seeds, or no seed.
    """
    a, b = (np.asarray(side, dtype=np.float64) for side in (candidate, reference))
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise DataError(
            f"the sides have {a.size} and {b.size} seeds: compare equal numbers of seeds, at least one per side"
        )
    p_value = 1.0
    if a.size > 1:
        # Permuted ranks, because SciPy's exact Mann-Whitney test ignores ties, and seeds tie: the documented ones have
        # 2, 2, 0, 11 and 1 errors. A rank also keeps a collapsed seed from outweighing all others.
        ranks: FloatArray = stats.rankdata(np.concatenate([a, b]))
        p_value = float(
            stats.permutation_test(
                (ranks[: a.size], ranks[a.size :]),
                lambda one, other, axis: one.sum(axis=axis) - other.sum(axis=axis),
                vectorized=True,
                n_resamples=_NUM_RESAMPLES,
                rng=np.random.default_rng(0),
            ).pvalue
        )
    return SeedTest(_range(a), _range(b), a.size, p_value)


def _range(figures: FloatArray) -> Interval:
    return Interval(float(figures.min()), float(figures.max()))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for multiple tests (Holm 1979), in the order given; compare them with 0.05 as usual.

    Raises:
        DataError: a value that is NaN or outside [0, 1].
    """
    values: FloatArray = np.asarray(p_values, dtype=np.float64)
    if not ((values >= 0.0) & (values <= 1.0)).all():
        raise DataError(f"p-values are {list(p_values)}, expected 0 to 1")
    order = np.argsort(values, kind="stable")
    factors = np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    # A larger p-value may have the smaller product; adjusted ones must keep the order.
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return [float(value) for value in adjusted]
