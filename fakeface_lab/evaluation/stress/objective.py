"""The objective of a search for robustness on resampled images: the lowest or the mean balanced accuracy.

Owns how images are resampled and how the best of many trials is corrected for its selection. `suite` defines the
conditions and the objective of a single model; this module does not load scikit-learn, so that a recorded verdict is
printed without delay.
"""

import numpy as np
from numpy.typing import ArrayLike

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.intervals import THRESHOLD, BoolArray, FloatArray, check_detection, check_mask
from fakeface_lab.evaluation.selection import SelectedScore

__all__ = [
    "CONFIDENCE",
    "OBJECTIVES",
    "are_correct",
    "balanced_accuracies",
    "check_stress_scores",
    "check_truth",
    "objective_of",
    "resample",
    "stress_selection_corrected",
]

OBJECTIVES = ("worst_stress", "mean_stress")

CONFIDENCE = 0.95
# With 63 % of the images to pick on, as in a bootstrap, the correction was 0.008 too strict (docs/truth.md).
_HELD_OUT_FRACTION = 0.2


def stress_selection_corrected(
    is_positive: ArrayLike, scores: ArrayLike, objective: str, num_resamples: int = 1000, seed: int = 0
) -> SelectedScore:
    """Correct the best of several trials for its selection by the objective.

    The pick is repeated on random four fifths of the images of each class, and the picked trial is scored on the
    held-out fifth; the mean over all splits is the corrected score. A trial's worst condition is determined on the four
    fifths too and its balanced accuracy measured on the rest, because a lowest value that is picked and measured on the
    same images is too low, just as a highest is too high. In simulations the mean was within 0.005 of the truth, while
    the bootstrap of `selection.selection_corrected`, whose resamples contain 63 % of the images, picked too poorly
    (`benchmarks/selection_correction.py`). The interval is that of the bootstrap (BBC-CV, Tsamardinos et al. 2018).

    Args:
        is_positive: bool (N,); both classes occur.
        scores: float64 (T, C, N), probability of the positive class in [0, 1], by trial and condition.
        objective: one of `OBJECTIVES`.
        num_resamples: number of resamples.
        seed: of the resampling.

    Raises:
        DataError: wrong shapes, fewer than two images of a class, or a score that is NaN or outside [0, 1].
        ConfigError: an unknown objective.
    """
    truth = check_truth(is_positive, objective)
    if min(int(truth.sum()), int((~truth).sum())) < 2:
        raise DataError("a class has a single image, which cannot be left out; pass at least 2 images of each")
    matrix = check_stress_scores(scores, truth)
    num_trials, num_conditions, num_images = matrix.shape
    is_correct = are_correct(matrix.reshape(-1, num_images), truth)
    rng = np.random.default_rng(seed)

    def picked(picking: FloatArray, scoring: FloatArray) -> FloatArray:
        on_picking, on_scoring = (
            balanced_accuracies(counts, is_correct, truth).reshape(-1, num_trials, num_conditions)
            for counts in (picking, scoring)
        )
        return _picked(on_picking, on_scoring, objective)

    held_out, drawn = _hold_out(truth, num_resamples, rng), resample(truth, num_resamples, rng)
    left_out = (drawn == 0).astype(np.float64)
    # A resample may draw each image of a small class, which leaves none of it to score.
    usable = left_out[:, truth].any(axis=1) & left_out[:, ~truth].any(axis=1)
    low, high = np.quantile(picked(drawn[usable], left_out[usable]), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    naive = objective_of(
        balanced_accuracies(np.ones((1, num_images)), is_correct, truth).reshape(num_trials, num_conditions), objective
    )
    corrected = picked(1 - held_out, held_out).mean()
    return SelectedScore(
        float(naive.max()), float(corrected), float(low), float(high), num_trials, None, num_images,
        is_lowest=objective == "worst_stress",
    )  # fmt: skip


def _hold_out(truth: BoolArray, num_splits: int, rng: np.random.Generator) -> FloatArray:
    """Return 1 for held-out images, else 0, (num_splits, N): a random fifth of each class, at least one image."""
    held_out = np.zeros((num_splits, truth.size))
    for of_class in (truth, ~truth):
        rows = np.flatnonzero(of_class)
        # `permuted` shuffles each row differently, `shuffle` all rows in the same way.
        order = rng.permuted(np.tile(rows, (num_splits, 1)), axis=1)
        chosen = order[:, : max(1, round(_HELD_OUT_FRACTION * rows.size))]
        np.put_along_axis(held_out, chosen, 1.0, axis=1)
    return held_out


def _picked(in_bag: FloatArray, out_of_bag: FloatArray, objective: str) -> FloatArray:
    """Return (B,): the out-of-bag value of the trials picked in bag, (B, T, C); ties count equally."""
    values = objective_of(in_bag, objective)
    # Equal fractions may differ in the last bit.
    is_best = np.isclose(values, values.max(axis=1, keepdims=True), rtol=0, atol=1e-12)[:, :, None]
    if objective == "worst_stress":
        is_best = is_best & np.isclose(in_bag, in_bag.min(axis=2, keepdims=True), rtol=0, atol=1e-12)
    else:
        is_best = np.broadcast_to(is_best, in_bag.shape)
    picked: FloatArray = np.where(is_best, out_of_bag, 0.0).sum(axis=(1, 2)) / is_best.sum(axis=(1, 2))
    return picked


def resample(truth: BoolArray, num_resamples: int, rng: np.random.Generator) -> FloatArray:
    """Return how often each image is drawn, (num_resamples, N); the class sizes stay."""
    # Counts instead of row numbers: scoring all resamples is then one matrix product, and no score is copied.
    times_drawn = np.empty((num_resamples, truth.size))
    for of_class in (truth, ~truth):
        size = int(of_class.sum())
        times_drawn[:, of_class] = rng.multinomial(size, np.full(size, 1 / size), size=num_resamples)
    return times_drawn


def balanced_accuracies(counts: FloatArray, is_correct: FloatArray, truth: BoolArray) -> FloatArray:
    """Return (B, K), from the weight of each image, (B, N), and which are right, (N, K)."""
    positive, negative = (
        counts[:, of_class] @ is_correct[of_class] / counts[:, of_class].sum(axis=1, keepdims=True)
        for of_class in (truth, ~truth)
    )
    balanced: FloatArray = (positive + negative) / 2
    return balanced


def objective_of(balanced: FloatArray, objective: str) -> FloatArray:
    """Return the objective from balanced accuracies, over the last axis."""
    value: FloatArray = balanced.min(axis=-1) if objective == "worst_stress" else balanced.mean(axis=-1)
    return value


def are_correct(scores: FloatArray, truth: BoolArray) -> FloatArray:
    """Return 1 for right decisions, else 0: (N, K) from scores (K, N)."""
    # Floats, because NumPy passes only products of floats on to BLAS.
    correct: FloatArray = ((scores > THRESHOLD) == truth).T.astype(np.float64)
    return correct


def check_truth(is_positive: ArrayLike, objective: str) -> BoolArray:
    """Return the truth, bool (N,), after checking it and the objective.

    Raises:
        DataError: wrong dtype or shape, no image, or only one class.
        ConfigError: an unknown objective.
    """
    if objective not in OBJECTIVES:
        raise ConfigError(f"objective is {objective!r}, expected {' or '.join(OBJECTIVES)}")
    truth = check_mask(is_positive, "is_positive")
    if truth.all() or not truth.any():
        raise DataError(f"the {truth.size} images under stress are all of one class: give images of both classes")
    return truth


def check_stress_scores(scores: ArrayLike, truth: BoolArray, num_conditions: int | None = None) -> FloatArray:
    """Return the scores by run, condition and image, float64 (R, C, N) in [0, 1], after checking them.

    Raises:
        DataError: wrong shape or number of conditions, or a score that is not a probability.
    """
    values: FloatArray = np.asarray(scores, dtype=np.float64)
    is_shaped = values.ndim == 3 and min(values.shape) > 0 and values.shape[2] == truth.size
    if not is_shaped or values.shape[1] != (num_conditions or values.shape[1]):
        raise DataError(
            f"scores under stress have shape {values.shape}, expected (num_runs, "
            f"{num_conditions or 'num_conditions'}, {truth.size})"
        )
    for row in values.reshape(-1, truth.size):
        check_detection(truth, row)
    return values
