"""Is one configuration better than another under stress? Their objectives with the uncertainty of the difference.

The verdict rule of a search that maximized one of `objective.OBJECTIVES`; `evaluation.comparison` judges all others.
The caller chooses the images and ensures that the test set was sealed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.comparison import MIN_DISCORDANT, Verdict
from fakeface_lab.evaluation.intervals import BoolArray, FloatArray, Interval, Rate, wilson
from fakeface_lab.evaluation.significance import POWER, SeedTest, seed_test
from fakeface_lab.evaluation.stress.objective import (
    CONFIDENCE,
    are_correct,
    balanced_accuracies,
    check_stress_scores,
    check_truth,
    objective_of,
    resample,
)

__all__ = ["StressComparison", "StressSide", "compare_under_stress"]

_CHUNK_NUM_RESAMPLES = 500  # drawn at a time, so that memory stays flat with many images


@dataclass(frozen=True)
class StressSide:
    """One model under all conditions, its probabilities averaged over its seeds.

    Attributes:
        value: the objective, in [0, 1].
        clean: accuracy on the unchanged images.
        worst_condition: name of the condition with the lowest balanced accuracy.
        worst: accuracy under it.
    """

    value: float
    clean: Rate
    worst_condition: str
    worst: Rate


@dataclass(frozen=True)
class StressComparison:
    """A candidate compared with a reference on the same images under the same conditions.

    Attributes:
        objective: one of `OBJECTIVES`.
        num_conditions: number of conditions, including the unchanged images.
        candidate: one side.
        reference: the other side.
        interval: 95 % interval of the difference of the objective, candidate minus reference.
        standard_error: of that difference over the images.
        seeds: the objective of single seeds.
        num_discordant: images that count differently for the two: right under one side's worst condition and wrong
            under the other's, or, if the objective is the mean, right under different numbers of conditions.
    """

    objective: str
    num_conditions: int
    candidate: StressSide
    reference: StressSide
    interval: Interval
    standard_error: float
    seeds: SeedTest
    num_discordant: int

    @property
    def difference(self) -> float:
        """Objective of the candidate minus that of the reference, in [-1, 1]."""
        return self.candidate.value - self.reference.value

    @property
    def verdict(self) -> Verdict:
        """Whether the candidate is better, by the interval of the difference and by the seeds."""
        if self.num_discordant < MIN_DISCORDANT:
            return "cannot be decided"
        if not self._is_beyond_chance or not self.seeds.is_separated:
            return "not distinguishable"
        return "better" if self.interval.low > 0 else "worse"

    @property
    def _is_beyond_chance(self) -> bool:
        return not self.interval.low <= 0 <= self.interval.high

    @property
    def detectable_difference(self) -> float:
        """Smallest true difference of the objective that these images show with 80 % power; normal approximation."""
        return float((norm.ppf((1 + CONFIDENCE) / 2) + norm.ppf(POWER)) * self.standard_error)

    def sentence(self, candidate: str = "the candidate", reference: str = "the reference") -> str:
        """The verdict, its evidence and the range over seeds in words, on one line."""
        a, b = self.candidate, self.reference
        evidence = (
            f"{self.objective} ({_MEANING[self.objective]} over {self.num_conditions} conditions) on "
            f"{a.clean.num_total} images is {a.value:.4f} against {b.value:.4f}, difference {self.difference:+.4f} "
            f"({_ends(self.interval)}); clean, {candidate} has {_count(a.clean)} right and {reference} "
            f"{_count(b.clean)}; at its worst, {candidate} ({a.worst_condition}) has {a.worst} and {reference} "
            f"({b.worst_condition}) {b.worst}"
        )
        match self.verdict:
            case "cannot be decided":
                text = (
                    f"whether {candidate} is better than {reference} cannot be decided on this test set: only "
                    f"{self.num_discordant} images tell them apart, at least {MIN_DISCORDANT} are needed; {evidence}."
                )
            case "not distinguishable":
                but = ", but the seeds of one side differ as much" if self._is_beyond_chance else ""
                text = (
                    f"{candidate} and {reference} are not distinguishable: {evidence}{but}; that does not make them "
                    f"equal."
                )
            case verdict:
                text = f"{candidate} is {verdict} than {reference}: {evidence}."
        text += (
            f" {self.seeds.sentence(self.objective, candidate, reference)} These images show a true difference in "
            f"{self.objective} of about {self.detectable_difference:.4f} or more in 80 % of cases."
        )
        return text[0].upper() + text[1:]


_MEANING = {"worst_stress": "lowest balanced accuracy", "mean_stress": "mean balanced accuracy"}


def _ends(interval: Interval) -> str:
    if interval.low == interval.high:
        return "paired bootstrap: the same on each resample, so without an interval"
    return f"95 % interval {interval.low:+.4f} to {interval.high:+.4f}, paired bootstrap"


def _count(rate: Rate) -> str:
    return f"{rate.num_correct}/{rate.num_total}"


def compare_under_stress(
    is_positive: ArrayLike,
    conditions: Sequence[str],
    candidate_scores: ArrayLike,
    reference_scores: ArrayLike,
    objective: str,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> StressComparison:
    """Compare a candidate with a reference by their objective: paired bootstrap over the images.

    Each resample draws the images of each class with replacement, the same ones for both models and all conditions, and
    determines the worst condition of each model again. The interval is the basic one (Davison and Hinkley 1997, section
    5.2; `scipy.stats.bootstrap(method="basic")`): the lowest of several noisy means is too low by an amount that
    differs between the models, which the basic interval subtracts and the percentile interval adds a second time. In
    simulations of 258 images and five equally bad conditions against a single bad one it contained the truth in 94 % of
    cases, the percentile interval in 84 % (`benchmarks/stress_interval.py`). With fewer than six discordant images no
    interval can be trusted, and the verdict is "cannot be decided". "Better" and "worse" also require the seeds to be
    separated, as in `evaluation.comparison.compare`.

    Args:
        is_positive: bool (N,); both classes occur.
        conditions: names of the C conditions, `clean` among them.
        candidate_scores: float64 (K, C, N), probability of the positive class in [0, 1], by seed and condition;
            averaged over the seeds, and decided positive above `THRESHOLD`.
        reference_scores: float64 (K, C, N), the same number of seeds.
        objective: one of `OBJECTIVES`.
        num_resamples: number of resamples.
        seed: of the resampling.

    Raises:
        DataError: wrong shapes, only one class, no clean scores, or a score that is NaN or outside [0, 1].
        ConfigError: an unknown objective.
    """
    truth = check_truth(is_positive, objective)
    if "clean" not in conditions:
        raise DataError(f"conditions are {', '.join(conditions) or 'none'}: the clean images must be among them")
    candidate = check_stress_scores(candidate_scores, truth, len(conditions))
    reference = check_stress_scores(reference_scores, truth, len(conditions))
    of_candidate, of_reference = are_correct(candidate.mean(axis=0), truth), are_correct(reference.mean(axis=0), truth)
    sides = (_side(of_candidate, truth, conditions, objective), _side(of_reference, truth, conditions, objective))
    found = sides[0].value - sides[1].value
    resampled = _resampled_differences(of_candidate, of_reference, truth, objective, num_resamples, seed)
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    # The ends are sums of fractions; an end of 0 must not differ from it in the last bit.
    interval = Interval(round(2 * found - float(high), 12), round(2 * found - float(low), 12))
    if objective == "worst_stress":
        columns = [list(conditions).index(side.worst_condition) for side in sides]
        differs = of_candidate[:, columns[0]] != of_reference[:, columns[1]]
    else:
        differs = of_candidate.sum(axis=1) != of_reference.sum(axis=1)
    seeds = seed_test(*(_of_seeds(scores, truth, objective) for scores in (candidate, reference)))
    standard_error = float(resampled.std())
    return StressComparison(objective, len(conditions), *sides, interval, standard_error, seeds, int(differs.sum()))


def _resampled_differences(
    of_candidate: FloatArray,
    of_reference: FloatArray,
    truth: BoolArray,
    objective: str,
    num_resamples: int,
    seed: int,
) -> FloatArray:
    """Return the difference of the objective on each resample, (num_resamples,); both sides have the same images."""
    rng = np.random.default_rng(seed)
    parts = []
    for first in range(0, num_resamples, _CHUNK_NUM_RESAMPLES):
        times_drawn = resample(truth, min(_CHUNK_NUM_RESAMPLES, num_resamples - first), rng)
        candidate, reference = (
            objective_of(balanced_accuracies(times_drawn, is_correct, truth), objective)
            for is_correct in (of_candidate, of_reference)
        )
        parts.append(candidate - reference)
    return np.concatenate(parts)


def _of_seeds(scores: FloatArray, truth: BoolArray, objective: str) -> FloatArray:
    """Return the objective of each seed, (K,), from scores (K, C, N)."""
    once = np.ones((1, truth.size))
    # Not averaged like the sides: each seed has its own worst condition.
    balanced = [balanced_accuracies(once, are_correct(own, truth), truth)[0] for own in scores]
    return objective_of(np.stack(balanced), objective)


def _side(is_correct: FloatArray, truth: BoolArray, conditions: Sequence[str], objective: str) -> StressSide:
    balanced = balanced_accuracies(np.ones((1, truth.size)), is_correct, truth)[0]
    worst = int(balanced.argmin())

    def rate(column: int) -> Rate:
        return wilson(int(is_correct[:, column].sum()), truth.size)

    return StressSide(
        float(objective_of(balanced, objective)), rate(list(conditions).index("clean")), conditions[worst], rate(worst)
    )
