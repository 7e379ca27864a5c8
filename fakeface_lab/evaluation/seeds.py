"""Is a difference between two configurations larger than that between seeds of one of them?"""

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.inputs import FloatArray
from fakeface_lab.evaluation.intervals import Interval

__all__ = ["SIGNIFICANCE", "SeedTest", "seed_test"]

SIGNIFICANCE = 0.05
MIN_CONFIGURATION_SEEDS = 3
_NUM_RESAMPLES = 9_999  # up to seven seeds a side all permutations are fewer, and counted exactly


@dataclass(frozen=True)
class SeedTest:
    """The figures of single seeds of two configurations, and whether they lie apart.

    Attributes:
        candidate: lowest and highest figure of the candidate's seeds; a spread, no confidence interval.
        reference: the same for the reference.
        num_seeds: seeds on each side.
        p_value: two-sided, of the exact rank-sum test; 1 with a single seed.
    """

    candidate: Interval
    reference: Interval
    num_seeds: int
    p_value: float

    @property
    def max_p_value(self) -> float:
        """The p-value up to which the seeds count as apart.

        0.05; below four seeds the smallest that there is: each seed of one side better than each of the other.
        """
        return max(SIGNIFICANCE, 2 / comb(2 * self.num_seeds, self.num_seeds))

    @property
    def is_apart(self) -> bool:
        """Whether the sides differ by more than their own seeds do; a single seed each cannot deny it."""
        return self.num_seeds == 1 or self.p_value <= self.max_p_value + 1e-12

    def sentence(self, figure: str, candidate: str, reference: str) -> str:
        """The spread in plain words; below three seeds also what the comparison is not about."""
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
    """Compare two configurations by a figure of each seed: the exact rank-sum test (Wilcoxon 1945), midranks for ties.

    It holds whatever the figures are distributed like, a rare seed that collapses included.

    Args:
        candidate: float (num_seeds,), one figure per seed.
        reference: float (num_seeds,), as many.

    Raises:
        DataError: numbers of seeds that differ, or none.
    """
    a, b = (np.asarray(side, dtype=np.float64) for side in (candidate, reference))
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise DataError(
            f"the sides have {a.size} and {b.size} seeds: compare equal numbers of seeds, at least one a side"
        )
    p_value = 1.0
    if a.size > 1:
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
