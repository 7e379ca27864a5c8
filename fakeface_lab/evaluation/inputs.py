"""Which arrays evaluation accepts, and how a class or group name becomes part of a metric's key.

Owns the checks that every module here needs first; it computes nothing.
"""

import re

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fakeface_lab.errors import ConfigError, DataError

__all__ = ["BoolArray", "FloatArray", "check_detection", "check_fraction", "check_mask", "metric_key"]

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]


def check_mask(values: ArrayLike, name: str, num_images: int | None = None) -> BoolArray:
    """One True or False per image, checked.

    Integers are refused: class index 0 is the positive class here, so an index taken for a truth value would
    turn every metric around without a sound.

    Args:
        values: bool (N,), at least one image.
        name: what the error calls it.
        num_images: the length it must have, if that is known.

    Raises:
        DataError: another dtype or shape, no image, or another length.
    """
    mask = np.asarray(values)
    if mask.ndim != 1 or mask.size == 0:
        raise DataError(f"{name} has shape {mask.shape}, needed is (num_images,) with at least one image")
    if mask.dtype != np.bool_:
        raise DataError(f"{name} has dtype {mask.dtype}, needed is bool; compare class indices first (label == 0)")
    if num_images is not None and mask.size != num_images:
        raise DataError(f"{name} has {mask.size} images, the others have {num_images}; pass the same images")
    return mask


def check_detection(is_positive: ArrayLike, scores: ArrayLike) -> tuple[BoolArray, FloatArray]:
    """The truth, bool (N,), and the probability of the positive class, float64 (N,) in [0, 1], checked.

    Raises:
        DataError: wrong dtype, shapes that differ, no image, or a score that is NaN or outside [0, 1].
    """
    truth = check_mask(is_positive, "is_positive")
    values = np.asarray(scores, dtype=np.float64)
    if values.shape != truth.shape:
        raise DataError(f"scores have shape {values.shape}, is_positive has {truth.shape}; pass one score per image")
    bad = ~((values >= 0.0) & (values <= 1.0))  # written this way round, NaN is bad too
    if bad.any():
        first = int(np.argmax(bad))
        raise DataError(
            f"{int(bad.sum())} of {values.size} scores are no probability (first: image {first}, "
            f"{values[first]}); allowed is 0 to 1"
        )
    return truth, values


def check_fraction(value: float, name: str) -> float:
    """The value itself if it lies strictly between 0 and 1.

    Raises:
        ConfigError: it does not.
    """
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{name} is {value}, allowed is more than 0 and less than 1")
    return value


def metric_key(name: str) -> str:
    """A class or group name in lower snake case, fit for an MLflow metric: `Real Face` becomes `real_face`.

    Raises:
        ConfigError: nothing of the name is left.
    """
    key = re.sub(r"\W+", "_", name.lower()).strip("_")
    if not key:
        raise ConfigError(f"{name!r} has no letter or digit to name a metric by; rename the class or group")
    return key
