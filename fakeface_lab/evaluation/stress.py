"""The stress suite: the same images with one property changed at a time, and what a model then decides.

Owns the changes, their levels, and the table that compares decisions under each change with the clean ones.
Does not run a model, read files or draw. Levels follow the robustness grids of UniversalFakeDetect and
SIDBench (JPEG quality, Gaussian sigma); framing, colour and noise are added because aligned faces invite
shortcuts there.
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.intervals import Rate, wilson

__all__ = [
    "CLEAN",
    "CONDITIONS",
    "SEARCH_CONDITIONS",
    "Condition",
    "StressReport",
    "apply",
    "objective_values",
    "stress_report",
]

Pixels = NDArray[np.uint8]

PADDING_GRAY = 128  # mid-gray of 0..255: the canvas around a shrunken image
NOISE_SEED = 20_240_607  # any constant: it makes the noise of image i the same in every run


@dataclass(frozen=True)
class Condition:
    """One change of one property.

    Attributes:
        name: short and stable, used as metric suffix and table index, e.g. "crop_70".
        family: the property: clean, jpeg, blur, rescale, gray, flip, shift, crop, pad or noise.
        level: how much, in the family's unit (JPEG quality 1..95; sigma in px; rescaling factor; shift, crop
            and padding in percent of the side; noise sigma in gray levels of 255; 0 where there is only one
            level).
    """

    name: str
    family: str
    level: float


def _family(family: str, *levels: float) -> tuple[Condition, ...]:
    return tuple(Condition(f"{family}_{level:g}", family, level) for level in levels)


CLEAN = Condition("clean", "clean", 0)
CONDITIONS: tuple[Condition, ...] = (
    CLEAN,
    *_family("jpeg", 95, 90, 75, 50, 30),
    *_family("blur", 1, 2, 3, 4),
    *_family("rescale", 0.5, 0.25),
    Condition("gray", "gray", 0),
    Condition("flip", "flip", 0),
    *_family("shift", 5, 10),
    *_family("crop", 85, 70),
    *_family("pad", 115, 130),
    *_family("noise", 5, 10),
)
# One strong level each of compression, sharpness and both directions of framing: four extra passes over the
# validation images per scored epoch is what a search can afford.
SEARCH_CONDITIONS: tuple[Condition, ...] = tuple(
    condition for condition in CONDITIONS if condition.name in {"clean", "jpeg_50", "blur_2", "crop_70", "pad_130"}
)


def _jpeg(image: Pixels, quality: float, _: int) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer))


def _blur(image: Pixels, sigma_px: float, _: int) -> Pixels:
    blurred = gaussian_filter(image.astype(np.float32), sigma=(sigma_px, sigma_px, 0), mode="nearest")
    return np.rint(blurred).astype(np.uint8)


def _rescale(image: Pixels, factor: float, _: int) -> Pixels:
    height, width = image.shape[:2]
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    shrunk = Image.fromarray(image).resize(small, Image.Resampling.BILINEAR)
    return np.asarray(shrunk.resize((width, height), Image.Resampling.BILINEAR))


def _gray(image: Pixels, _level: float, _: int) -> Pixels:
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def _flip(image: Pixels, _level: float, _: int) -> Pixels:
    return image[:, ::-1]


def _shift(image: Pixels, percent: float, _: int) -> Pixels:
    height, width = image.shape[:2]
    down, right = round(height * percent / 100), round(width * percent / 100)
    return np.pad(image, ((down, 0), (right, 0), (0, 0)), mode="edge")[:height, :width]


def _crop(image: Pixels, percent: float, _: int) -> Pixels:
    height, width = image.shape[:2]
    kept_height, kept_width = max(1, round(height * percent / 100)), max(1, round(width * percent / 100))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    box = (left, top, left + kept_width, top + kept_height)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=box))


def _pad(image: Pixels, percent: float, _: int) -> Pixels:
    height, width = image.shape[:2]
    canvas = (round(width * percent / 100), round(height * percent / 100))
    left, top = (canvas[0] - width) // 2, (canvas[1] - height) // 2
    border = (left, top, canvas[0] - width - left, canvas[1] - height - top)
    padded = ImageOps.expand(Image.fromarray(image), border, fill=(PADDING_GRAY,) * 3)
    return np.asarray(padded.resize((width, height), Image.Resampling.BILINEAR))


def _noise(image: Pixels, sigma: float, index: int) -> Pixels:
    noise = np.random.default_rng((NOISE_SEED, index)).standard_normal(image.shape, dtype=np.float32)
    noisy: NDArray[np.float32] = np.rint(np.clip(image + np.float32(sigma) * noise, 0, 255))
    return noisy.astype(np.uint8)


CHANGES: Mapping[str, Callable[[Pixels, float, int], Pixels]] = {
    "clean": lambda image, _level, _: image,
    "jpeg": _jpeg,
    "blur": _blur,
    "rescale": _rescale,
    "gray": _gray,
    "flip": _flip,
    "shift": _shift,
    "crop": _crop,
    "pad": _pad,
    "noise": _noise,
}


def apply(condition: Condition, images: Pixels, *, first_index: int = 0) -> Pixels:
    """Change one property of each image.

    A pure function of condition, pixels and the images' position in the data set: neither the number of
    threads nor the cut into batches changes a bit. Needs the output and one image a thread as working memory.

    Args:
        condition: an entry of `CONDITIONS`, or another level of one of its families.
        images: uint8 (N, H, W, 3), RGB in 0..255; not modified.
        first_index: position of images[0] in the data set when it is worked through in batches; it seeds the
            noise.

    Returns:
        uint8 (N, H, W, 3), a new array.

    Raises:
        DataError: the images have another type or shape.
        KeyError: the family does not exist.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(
            f"stress condition {condition.name!r} takes uint8 images of shape (N, H, W, 3), "
            f"not {images.dtype} {images.shape}: pass the pixels before they are scaled to [0, 1]"
        )
    change = CHANGES[condition.family]
    changed = np.empty_like(images)

    def change_one(index: int) -> None:
        changed[index] = change(images[index], condition.level, first_index + index)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(change_one, range(len(images))):  # consumed, so that an error in a thread is raised here
            pass
    return changed


@dataclass(frozen=True)
class StressReport:
    """What the suite does to one model.

    Attributes:
        table: one row a condition in suite order (index: its name), columns family, level, num_images, then
            value, `_low` and `_high` (95 % Wilson) of accuracy, recall_<class> for both classes and flip_rate
            (share of decisions that differ from the clean ones), balanced_accuracy and roc_auc, all in [0,
            1].
        worst_condition: where the recall of one class falls furthest below its clean value.
        worst_class: the class whose recall that is.
        means: mean over the changed conditions (clean left out) of each rate and of roc_auc.
        sentence: the worst collapse in plain words, for someone who reads nothing else.
    """

    table: pd.DataFrame
    worst_condition: str
    worst_class: str
    means: dict[str, float]
    sentence: str


def stress_report(
    class_names: Sequence[str],
    labels: ArrayLike,
    scores_by_condition: Mapping[str, ArrayLike],
    threshold: float = 0.5,
) -> StressReport:
    """Compare decisions under each condition with the clean decisions on the same images.

    Args:
        class_names: two names; index 0 is the positive class.
        labels: int (N,), class index of each image; both classes occur.
        scores_by_condition: name of a condition in `CONDITIONS` -> float (N,), probability of the positive
            class; "clean" and at least one change must be there.
        threshold: decided positive when the score is above it; carried over from clean data, never refitted.

    Raises:
        DataError: an unknown or missing condition, a wrong length, a score that is no probability, one class
            only.
    """
    is_positive, scores = _checked(labels, scores_by_condition)
    if CLEAN.name not in scores or len(scores) < 2:
        raise DataError(
            f"a stress report needs the scores of {CLEAN.name!r} and of at least one change, got: "
            f"{', '.join(scores) or 'none'}; score the clean images too"
        )
    clean_decision = scores[CLEAN.name] > threshold
    rows = {
        condition.name: {"family": condition.family, "level": condition.level, "num_images": len(is_positive)}
        | _row(class_names, is_positive, scores[condition.name], threshold, clean_decision)
        for condition in CONDITIONS
        if condition.name in scores
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("condition")
    changed = table.drop(index=CLEAN.name)
    recalls = [f"recall_{name}" for name in class_names]
    falls = table.loc[[CLEAN.name], recalls].to_numpy(float) - changed[recalls].to_numpy(float)
    row, column = np.unravel_index(falls.argmax(), falls.shape)
    worst_condition, worst_class = str(changed.index[row]), class_names[column]
    averaged = ["accuracy", *recalls, "balanced_accuracy", "roc_auc", "flip_rate"]
    means = {name: float(changed[name].mean()) for name in averaged}
    return StressReport(table, worst_condition, worst_class, means, _sentence(table, worst_condition, worst_class))


def objective_values(
    labels: ArrayLike, scores_by_condition: Mapping[str, ArrayLike], threshold: float = 0.5
) -> dict[str, float]:
    """Two numbers a search can maximise: {"worst_stress": ..., "mean_stress": ...}, both in [0, 1].

    Each condition counts by its balanced accuracy (mean of both recalls, so that calling everything one class
    is worth 0.5 whatever the class sizes); "worst_stress" is the lowest, "mean_stress" the mean. All
    conditions given count, the clean one like the others. Arguments and errors as in `stress_report`;
    `SEARCH_CONDITIONS` is the subset to score in a search.
    """
    is_positive, scores = _checked(labels, scores_by_condition)
    if not scores:
        raise DataError("no stress condition was scored: give at least one of " + _names(CONDITIONS))
    values = [
        ((score > threshold)[is_positive].mean() + (score <= threshold)[~is_positive].mean()) / 2
        for score in scores.values()
    ]
    return {"worst_stress": float(min(values)), "mean_stress": float(np.mean(values))}


def _checked(
    labels: ArrayLike, scores_by_condition: Mapping[str, ArrayLike]
) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.float64]]]:
    is_positive = np.asarray(labels) == 0
    if is_positive.all() or not is_positive.any():
        raise DataError(f"the {is_positive.size} images under stress are all of one class: give images of both classes")
    unknown = sorted(set(scores_by_condition) - {condition.name for condition in CONDITIONS})
    if unknown:
        raise DataError(f"unknown stress condition {unknown[0]!r}: allowed are {_names(CONDITIONS)}")
    scores = {name: np.asarray(values, dtype=np.float64) for name, values in scores_by_condition.items()}
    for name, values in scores.items():
        if values.shape != is_positive.shape or not np.all((values >= 0) & (values <= 1)):
            raise DataError(
                f"the scores under {name!r} must be {is_positive.size} probabilities in [0, 1], one a label: "
                f"got shape {values.shape} with values from {values.min(initial=np.inf):g} "
                f"to {values.max(initial=-np.inf):g}"
            )
    return is_positive, scores


def _names(conditions: Sequence[Condition]) -> str:
    return ", ".join(condition.name for condition in conditions)


def _row(
    class_names: Sequence[str],
    is_positive: NDArray[np.bool_],
    scores: NDArray[np.float64],
    threshold: float,
    clean_decision: NDArray[np.bool_],
) -> dict[str, float]:
    decision = scores > threshold
    correct = decision == is_positive
    rates = {
        "accuracy": _rate(correct),
        f"recall_{class_names[0]}": _rate(correct[is_positive]),
        f"recall_{class_names[1]}": _rate(correct[~is_positive]),
        "flip_rate": _rate(decision != clean_decision),
    }
    row: dict[str, float] = {}
    for name, rate in rates.items():
        row |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
    row["balanced_accuracy"] = (correct[is_positive].mean() + correct[~is_positive].mean()) / 2
    row["roc_auc"] = float(roc_auc_score(is_positive, scores))
    return row


def _rate(hits: NDArray[np.bool_]) -> Rate:
    return wilson(int(hits.sum()), hits.size)


PHRASES: Mapping[str, str] = {
    "jpeg": "Saved again as JPEG of quality {level:g}",
    "blur": "Blurred with a sigma of {level:g} px",
    "rescale": "Scaled to {level:g} of its size and back",
    "gray": "Without colour",
    "flip": "Mirrored",
    "shift": "Shifted by {level:g} %",
    "crop": "Cropped to {level:g} %",
    "pad": "Padded to {level:g} %",
    "noise": "With noise of sigma {level:g} of 255",
}


def _sentence(table: pd.DataFrame, worst_condition: str, worst_class: str) -> str:
    worst, clean = table.loc[worst_condition], table.loc[CLEAN.name]
    recall = f"recall_{worst_class}"
    change = PHRASES[str(worst["family"])].format(level=worst["level"])
    collapse = f"{change}, it finds {worst[recall]:.2f} of the {worst_class} images instead of {clean[recall]:.2f}."
    if worst[f"{recall}_high"] >= clean[recall]:
        collapse = f"{collapse[0].lower()}{collapse[1:]}"
        return f"No change lowers a recall beyond its interval; the largest fall: {collapse}"
    return collapse
