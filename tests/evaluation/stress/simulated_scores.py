"""Scores of simulated models under stress, made from what they decide."""

import numpy as np
from scipy import stats

from fakeface_lab.evaluation.intervals import BoolArray, FloatArray

CONDITIONS = ("clean", "jpeg_50", "crop_70")


def truth_of(num_per_class: int) -> BoolArray:
    return np.arange(2 * num_per_class) < num_per_class


def scores_of(is_correct: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], truth: BoolArray) -> FloatArray:
    """Return probabilities with these decisions: float64, of the shape of `is_correct`, images last."""
    scores: FloatArray = np.where(is_correct == truth, 0.9, 0.1)
    return scores


def with_wrong(truth: BoolArray, *num_wrong: int) -> FloatArray:
    """Return the scores of one seed that is wrong about the first images under each condition."""
    index = np.arange(truth.size)
    return scores_of(np.stack([index >= num for num in num_wrong]), truth)[None]


def drawn(rng: np.random.Generator, rates: list[float], truth: BoolArray) -> BoolArray:
    """Return decisions under conditions that agree on which images are hard, right at these rates."""
    shared, own = rng.standard_normal(truth.size), rng.standard_normal((len(rates), truth.size))
    is_correct: BoolArray = (shared + own) / np.sqrt(2) < np.asarray(stats.norm.ppf(rates))[:, None]
    return is_correct
