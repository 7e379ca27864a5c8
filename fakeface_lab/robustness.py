"""A model under the stress suite: changes the images, asks the model, keeps the scores.

Which changes there are and what the scores mean is in `evaluation.stress`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fakeface_lab.backend import keras
from fakeface_lab.data.images import ImageSet
from fakeface_lab.evaluation.stress import (
    CLEAN,
    CONDITIONS,
    SEARCH_CONDITIONS,
    Condition,
    StressReport,
    apply,
    objective_values,
)
from fakeface_lab.training import predict

__all__ = ["MAX_FALL", "is_collapse", "stress_objectives", "stress_scores"]

MAX_FALL = 0.1
"""Fall of a class's recall, beyond its interval, from which a model is not to be trusted under that change."""

_CHUNK_NUM_IMAGES = 256  # changed copies in memory at a time


def stress_scores(
    model: keras.Model,
    images: ImageSet,
    rows: npt.NDArray[np.int64],
    conditions: Sequence[Condition] = CONDITIONS,
    show: Callable[[Condition], None] = lambda condition: None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Score the same images under each change.

    Args:
        model: takes float32 (n, size, size, 3) in [0, 1], gives probabilities (n, 2).
        images: all images.
        rows: int64 (num_images,), which of them; their order is that of the scores.
        conditions: the changes.
        show: told of each condition before it is scored.

    Returns:
        Condition's name to the probability of the positive class, float64 (num_images,).
    """
    scores = {}
    for condition in conditions:
        show(condition)
        parts = []
        for first in range(0, len(rows), _CHUNK_NUM_IMAGES):
            chunk = images.pixels[rows[first : first + _CHUNK_NUM_IMAGES]]
            changed = chunk if condition == CLEAN else apply(condition, chunk, first_index=first)
            parts.append(predict(model, changed, np.arange(len(changed)))[:, 0])
        scores[condition.name] = np.concatenate(parts).astype(np.float64)
    return scores


def stress_objectives(model: keras.Model, images: ImageSet, rows: npt.NDArray[np.int64]) -> dict[str, float]:
    """What a search for robustness maximises: `worst_stress` and `mean_stress`, in [0, 1], on some images.

    Balanced accuracy under the lowest and over the mean of `SEARCH_CONDITIONS`, the clean images among them: five
    passes over the images.

    Raises:
        DataError: the images are all of one class.
    """
    return objective_values(images.labels[rows], stress_scores(model, images, rows, SEARCH_CONDITIONS))


def is_collapse(report: StressReport) -> bool:
    """Whether some change lowers the recall of a class by more than `MAX_FALL`, and beyond its interval."""
    worst, clean = report.table.loc[report.worst_condition], report.table.loc[CLEAN.name]
    recall = f"recall_{report.worst_class}"
    return bool(worst[f"{recall}_high"] < clean[recall] and clean[recall] - worst[recall] > MAX_FALL)
