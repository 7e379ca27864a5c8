"""Scores a model on images changed by the stress suite, and compares its accuracy with that of a simple shortcut.

`evaluation.stress` defines the changes and interprets the scores, `evaluation.audit.probes` the shortcuts.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from fakeface_lab.backend import keras, num_cores
from fakeface_lab.data.images import ImageSet, decode_image, resize
from fakeface_lab.data.properties import CONTENT_COLUMNS, file_properties
from fakeface_lab.data.splits import TEST, VALIDATION, Split
from fakeface_lab.detector.fit import predict
from fakeface_lab.evaluation.audit.probes import ProbeResult, probe_on_split
from fakeface_lab.evaluation.explanation import explain_by_probe
from fakeface_lab.evaluation.intervals import THRESHOLD, wilson
from fakeface_lab.evaluation.stress.changes import apply
from fakeface_lab.evaluation.stress.suite import (
    CLEAN,
    CONDITIONS,
    SEARCH_CONDITIONS,
    Condition,
    StressReport,
    objective_values,
)

__all__ = [
    "MAX_RECALL_DROP",
    "Scored",
    "best_shortcut",
    "compare_with_shortcut",
    "is_collapse",
    "score_for_search",
    "stress_scores",
]

MAX_RECALL_DROP = 0.1
"""Largest tolerated drop of a class's recall, beyond its interval, under a change."""

Scored = Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.floating[Any]]]]
"""Split name to rows of images and one row of scores per image."""

_CHUNK_NUM_IMAGES = 256  # changed copies in memory at a time


def stress_scores(
    model: keras.Model,
    images: ImageSet,
    rows: npt.NDArray[np.int64],
    conditions: Sequence[Condition] = CONDITIONS,
    show: Callable[[Condition], None] = lambda condition: None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Score the same images under each change.

    Each change is applied to the decoded image at its original size, before it is resized for the model, as it would
    happen to a file.

    Args:
        model: from float32 (n, size, size, 3) in [0, 1] to probabilities (n, 2).
        images: all images.
        rows: int64 (num_images,), which of them, in the order of the scores.
        conditions: the changes.
        show: called with each condition before it is scored.

    Returns:
        Name of the condition to the probabilities of the positive class, float64 (num_images,).
    """
    scores = {}
    for condition in conditions:
        show(condition)
        parts = []
        for first in range(0, len(rows), _CHUNK_NUM_IMAGES):
            chunk = rows[first : first + _CHUNK_NUM_IMAGES]
            changed = images.pixels[chunk] if condition == CLEAN else _changed(condition, images, chunk)
            parts.append(predict(model, changed, np.arange(len(changed)))[:, 0])
        scores[condition.name] = np.concatenate(parts).astype(np.float64)
    return scores


def _changed(condition: Condition, images: ImageSet, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Decode images, change them and resize them for the model; holds one decoded image per thread."""

    def change(row: np.int64) -> npt.NDArray[np.uint8]:
        pixels, _ = decode_image(images.files[row].path, None)
        return resize(apply(condition, pixels), images.size_px)

    # Threads are enough: Pillow releases the GIL while it decodes and resizes.
    with ThreadPoolExecutor(num_cores()) as pool:
        return np.stack(list(pool.map(change, rows)))


def score_for_search(
    model: keras.Model, images: ImageSet, split: Split, scored: Scored
) -> tuple[dict[str, float], dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]]:
    """Score images as a search for robustness does: under `SEARCH_CONDITIONS`, the clean images among them.

    Args:
        model: as in `stress_scores`.
        images: all images.
        split: the rows of each split.
        scored: split name to rows and class probabilities (num_images, 2) of the clean images.

    Returns:
        Metrics and scores. Metrics: `worst_stress` and `mean_stress` on the images that trials are validated on (see
        `objective_values`); if `scored` has test images, also the same as `test_*`, and
        `test_stress_CONDITION_accuracy` with its 95 % Wilson interval as `_low` and `_high`. Scores: split name to rows
        and probabilities of the positive class, float64 (num_images, len(SEARCH_CONDITIONS)).

    Raises:
        DataError: the images of a split are all of one class.
    """
    metrics: dict[str, float] = {}
    scores_of = {}
    changes = [condition for condition in SEARCH_CONDITIONS if condition != CLEAN]
    for part, (rows, probabilities) in scored.items():
        clean = probabilities[:, 0].astype(np.float64)
        scores = {CLEAN.name: clean} | stress_scores(model, images, rows, changes)
        objectives = objective_values(images.labels[rows], scores)
        if part == VALIDATION or split.test_is_validation:
            metrics |= objectives
        if part == TEST:
            found = objectives | _accuracies(images.is_positive[rows], scores)
            metrics |= {f"{TEST}_{name}": value for name, value in found.items()}
        scores_of[part] = (rows, np.column_stack([scores[condition.name] for condition in SEARCH_CONDITIONS]))
    return metrics, scores_of


def _accuracies(is_positive: npt.NDArray[np.bool_], scores: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for condition, values in scores.items():
        rate = wilson(int(((values > THRESHOLD) == is_positive).sum()), is_positive.size)
        name = f"stress_{condition}_accuracy"
        metrics |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return metrics


def is_collapse(report: StressReport) -> bool:
    """Return whether some change lowers a class's recall by more than `MAX_RECALL_DROP` and beyond its interval."""
    worst, clean = report.table.loc[report.worst_condition], report.table.loc[CLEAN.name]
    recall = f"recall_{report.worst_class}"
    # Both: on few images a recall falls by a tenth by chance, on many a hundredth is beyond the interval.
    return bool(worst[f"{recall}_high"] < clean[recall] and clean[recall] - worst[recall] > MAX_RECALL_DROP)


# Part of the file name: increase it when the probes change, so that earlier results are not read.
_PROBES_VERSION = 2


def best_shortcut(images: ImageSet, split: Split, part: Literal["validation", "test"] = "validation") -> ProbeResult:
    """Return the best quick shortcut probe, trained on the train split and scored on another one.

    Results are cached. If there is no validation split, as in a final training, the probe is scored on test.

    Raises:
        DataError: a split lacks a class.
    """
    rows = split.test if part == "test" or not len(split.validation) else split.validation
    path = images.cache_path.with_name(f"shortcut-{_digest(split.train, rows)}-v{_PROBES_VERSION}.json")
    known = _read(path, len(rows))
    if known is not None:
        return known
    labels = images.labels
    both = np.concatenate([split.train, rows])
    # The number of bytes measures how well a picture compresses: content, not a trace of its source.
    properties = file_properties(images.files[row].path for row in both).drop(columns=list(CONTENT_COLUMNS))
    # On tables this small, threads cost more than they gain, above all on busy cores.
    with threadpool_limits(1):
        probe = probe_on_split(
            images.pixels[split.train], labels[split.train], images.pixels[rows], labels[rows], properties
        )
    _write(path, probe)
    return probe


def compare_with_shortcut(
    images: ImageSet,
    split: Split,
    is_correct: npt.NDArray[np.bool_],
    part: Literal["validation", "test"] = "validation",
) -> tuple[dict[str, float], str]:
    """Compare a model's decisions with those of the best shortcut on the same images.

    Args:
        images: all images.
        split: the model's own.
        is_correct: bool (n,), whether the model is right about each image of `part`, in the order of the split.
        part: the split of these images.

    Returns:
        Metrics (`shortcut_accuracy` with its interval and counts, `shortcut_auc`, `majority_accuracy`, and
        `explained_share` with its interval, in [0, 1], if the accuracy beats the majority beyond chance) and a sentence
        for the user.
    """
    probe = best_shortcut(images, split, part)
    rows = split.test if part == "test" or not len(split.validation) else split.validation
    explained = explain_by_probe(probe, images.labels[rows], is_correct)
    metrics = probe.accuracy.metrics("shortcut_accuracy") | {"shortcut_auc": probe.auc}
    return metrics | explained.metrics(), explained.sentence


def _digest(*parts: npt.NDArray[np.int64]) -> str:
    state = hashlib.sha256()
    for rows in parts:
        # With the lengths: the same rows, cut elsewhere into train and test, are another split.
        state.update(len(rows).to_bytes(8, "little") + rows.astype("<i8").tobytes())
    return state.hexdigest()[:24]


def _read(path: Path, num_scores: int) -> ProbeResult | None:
    """Return the cached result; None if there is none or it is damaged."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        scores = np.array(content["scores"], dtype=np.float64)
        accuracy = wilson(content["num_correct"], content["num_total"])
        known = ProbeResult(content["name"], content["kind"], content["sees"], accuracy, content["auc"], scores)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return known if len(scores) == num_scores else None


def _write(path: Path, probe: ProbeResult) -> None:
    """Cache the result next to the pixels, atomically; ignore a cache that cannot be written."""
    content = {
        "name": probe.name,
        "kind": probe.kind,
        "sees": probe.sees,
        "num_correct": probe.accuracy.num_correct,
        "num_total": probe.accuracy.num_total,
        "auc": probe.auc,
        "scores": probe.scores.tolist(),
    }
    try:
        # A unique name, because several workers may compute the same probe at the same time.
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
        with os.fdopen(handle, "w") as file:
            json.dump(content, file)
        os.replace(partial, path)
    except OSError:
        return
