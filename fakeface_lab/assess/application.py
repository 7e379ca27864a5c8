"""A tracked model applied to single files: decoded as in training, decided at the model's own threshold, doubted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fakeface_lab.assess.tracked_model import TrackedModel
from fakeface_lab.data.images import UnusableImageError, decode_image
from fakeface_lab.detector.fit import predict
from fakeface_lab.tracking.lookup import FoundModel, find_audit, find_evaluations

__all__ = ["Decision", "classify_files", "doubts"]

_CHUNK_NUM_FILES = 256  # decoded pictures in memory at a time


@dataclass(frozen=True)
class Decision:
    """What a model says of one file: the class, its probability, and that of each class, in [0, 1]."""

    file: str
    decided: str
    probability: float
    probabilities: dict[str, float]


def doubts(found: FoundModel) -> list[str]:
    """Return what speaks against believing a model: the audit of its data, and its newest evaluation under stress."""
    sentences = []
    audit = find_audit(found.store, str(found.metadata["data_digest"]))
    if audit is None:
        sentences.append(
            "the images this model was trained on were never audited; python -m fakeface_lab.audit says what they can "
            "be told apart by"
        )
    elif audit.worst == "fail":
        sentences.append(f"the audit of this model's data says that it must not be trusted: {audit.verdict}")
    evaluations = find_evaluations(found.store, found.run.info.run_id)
    stressed = next((run for run in evaluations if "stress_collapse" in run.data.tags), None)
    if stressed is not None and stressed.data.tags["stress_collapse"] == "true":
        sentences.append(f"under stress this model fails: {stressed.data.tags['stress_sentence']}")
    return sentences


def classify_files(model: TrackedModel, names: Sequence[str]) -> tuple[tuple[Decision, ...], dict[str, str]]:
    """Decode files as in training and decide each at the model's own threshold.

    Returns:
        The decisions on the usable files, in the order given, and for every other file the reason why not.
    """
    decisions: list[Decision] = []
    skipped: dict[str, str] = {}
    for first in range(0, len(names), _CHUNK_NUM_FILES):
        pictures = {}
        for name in names[first : first + _CHUNK_NUM_FILES]:
            try:
                pictures[name] = decode_image(Path(name), model.image_size_px)[0]
            except UnusableImageError as err:
                skipped[name] = str(err)
            except OSError as err:
                skipped[name] = err.strerror or str(err)
        if pictures:
            scores = predict(model.network, np.stack(list(pictures.values())), np.arange(len(pictures)))
            decisions += [_decide(model, name, pair) for name, pair in zip(pictures, scores, strict=True)]
    return tuple(decisions), skipped


def _decide(model: TrackedModel, name: str, pair: npt.NDArray[np.float32]) -> Decision:
    positive, negative = model.class_names
    probabilities = {positive: float(pair[0]), negative: float(pair[1])}
    decided = positive if probabilities[positive] > model.threshold else negative
    return Decision(name, decided, probabilities[decided], probabilities)
