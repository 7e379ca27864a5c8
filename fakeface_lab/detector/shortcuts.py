"""How much of a model's accuracy a simple shortcut has too: the best quick probe on the model's own split.

Trained once for each split and kept beside the cached pixels, so that later runs on the same split pay nothing.
Whether a shortcut voids results is for the audit to say.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from fakeface_lab.data.images import ImageSet
from fakeface_lab.data.properties import CONTENT_COLUMNS, file_properties
from fakeface_lab.data.splits import Split
from fakeface_lab.evaluation.explained import explain
from fakeface_lab.evaluation.intervals import wilson
from fakeface_lab.evaluation.probes import ProbeResult, probe_on_split

__all__ = ["best_shortcut", "explain_accuracy"]

# Part of each file's name: a change in the probes makes earlier results unreachable.
_PROBES_VERSION = 2


def best_shortcut(images: ImageSet, split: Split, part: Literal["validation", "test"] = "validation") -> ProbeResult:
    """Return the best quick shortcut probe, trained on the train split and scored on another one.

    Trained the first time, then read from the cache. Where nothing is left to validate on,
    as in a final training, it is scored on test.

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
    properties = file_properties(images.files[row].path for row in both).drop(columns=list(CONTENT_COLUMNS))
    # On tables this small threads cost more than they bring, above all on busy cores.
    with threadpool_limits(1):
        probe = probe_on_split(
            images.pixels[split.train], labels[split.train], images.pixels[rows], labels[rows], properties
        )
    _write(path, probe)
    return probe


def explain_accuracy(
    images: ImageSet,
    split: Split,
    is_correct: npt.NDArray[np.bool_],
    part: Literal["validation", "test"] = "validation",
) -> tuple[dict[str, float], str]:
    """Set a model's decisions beside what the best shortcut reaches on the same images.

    Args:
        images: all images.
        split: the model's own.
        is_correct: bool (n,), whether the model is right about each image of `part`, in the split's order.
        part: which split the decisions are about.

    Returns:
        Metrics (`shortcut_accuracy` with its interval and counts, `shortcut_auc`, `majority_accuracy`, and
        `explained_share` with its interval, in [0, 1], where the accuracy is better than the majority beyond chance),
        and a sentence for the user.
    """
    probe = best_shortcut(images, split, part)
    rows = split.test if part == "test" or not len(split.validation) else split.validation
    explained = explain(probe, images.labels[rows], is_correct)
    metrics = probe.accuracy.metrics("shortcut_accuracy") | {"shortcut_auc": probe.auc}
    return metrics | explained.metrics(), explained.sentence


def _digest(*parts: npt.NDArray[np.int64]) -> str:
    state = hashlib.sha256()
    for rows in parts:
        state.update(len(rows).to_bytes(8, "little") + rows.astype("<i8").tobytes())
    return state.hexdigest()[:24]


def _read(path: Path, num_scores: int) -> ProbeResult | None:
    """Return what an earlier run left; None where there is none, or only a damaged file."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
        scores = np.array(content["scores"], dtype=np.float64)
        accuracy = wilson(content["num_correct"], content["num_total"])
        known = ProbeResult(content["name"], content["kind"], content["sees"], accuracy, content["auc"], scores)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return known if len(scores) == num_scores else None


def _write(path: Path, probe: ProbeResult) -> None:
    """Put the result beside the pixels, whole or not at all; a cache that cannot be written costs seconds, no run."""
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
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
        with os.fdopen(handle, "w") as file:
            json.dump(content, file)
        os.replace(partial, path)
    except OSError:
        return
