"""A tracked model applied to images: what it decides about single files, and where in the images it looks.

Files are decoded as in training and decided at the model's own threshold. The maps behind "where it looks" come from
`evaluation.explanation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from rich.table import Table

from fakeface_lab.assess.tracked_model import TrackedModel
from fakeface_lab.data.images import ImageSet, UnusableImageError, decode_image
from fakeface_lab.detector.fit import predict_pictures
from fakeface_lab.errors import DataError, ModelError
from fakeface_lab.evaluation.explanation import BORDER_FRACTION, border_share, evidence, hirescam, mean_evidence
from fakeface_lab.evaluation.intervals import metric_key
from fakeface_lab.figures.audit import printable
from fakeface_lab.figures.images import mean_maps, saliency_overlays
from fakeface_lab.terminal import wide_console
from fakeface_lab.tracking.datasets import find_audit
from fakeface_lab.tracking.lookup import FoundModel, find_evaluations

__all__ = [
    "Decision",
    "Explanation",
    "classify_files",
    "decide",
    "explain_decisions",
    "print_decisions",
    "reliability_warnings",
]

_CHUNK_NUM_FILES = 256  # decoded pictures in memory at a time: 69 MB at 300 px
_MAX_MAPS = 512  # averaged, evenly spaced over the images
# A documented batch: the features of so many pictures fitted into memory in training.
_CHUNK_NUM_MAPS = 32
_NUM_OVERLAYS = 8


@dataclass(frozen=True)
class Decision:
    """What a model decides about one file.

    Attributes:
        file: as given.
        decided: name of the class.
        probability: of that class, in [0, 1].
        probabilities: class name to probability, in [0, 1].
    """

    file: str
    decided: str
    probability: float
    probabilities: dict[str, float]


def reliability_warnings(found: FoundModel) -> list[str]:
    """Return the reasons not to trust a model: the audit of its data, its newest evaluation under stress."""
    warnings = []
    # Not the audit that the run is linked to: the images may have been audited after the training.
    audit = find_audit(found.store, str(found.metadata["data_digest"]))
    if audit is None:
        warnings.append(
            "the images this model was trained on were never audited; run python -m fakeface_lab.audit to find out "
            "what gives their classes away"
        )
    elif audit.worst == "fail":
        warnings.append(f"the audit of this model's data says that it must not be trusted: {audit.verdict}")
    evaluations = find_evaluations(found.store, found.run.info.run_id)
    # Not simply the newest evaluation: one without --stress says nothing about it.
    stressed = next((run for run in evaluations if "stress_collapse" in run.data.tags), None)
    if stressed is not None and stressed.data.tags["stress_collapse"] == "true":
        warnings.append(f"under stress this model fails: {stressed.data.tags['stress_sentence']}")
    return warnings


def classify_files(model: TrackedModel, names: Sequence[str]) -> tuple[tuple[Decision, ...], dict[str, str]]:
    """Decode files as in training and decide each at the model's own threshold.

    Returns:
        The decisions on the usable files, in the order given, and file to reason for all others.
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
            decisions += decide(model, list(pictures), list(pictures.values()))
    return tuple(decisions), skipped


def decide(model: TrackedModel, names: Sequence[str], pictures: Sequence[npt.NDArray[np.uint8]]) -> list[Decision]:
    """Decide pictures at the model's own threshold.

    Args:
        model: the model.
        names: of the files, one per picture.
        pictures: uint8 (size, size, 3) each, at the model's size; at least one.
    """
    scores = predict_pictures(model.network, np.stack(pictures))
    return [_decide(model, name, pair) for name, pair in zip(names, scores, strict=True)]


def _decide(model: TrackedModel, name: str, pair: npt.NDArray[np.float32]) -> Decision:
    positive, negative = model.class_names
    probabilities = {positive: float(pair[0]), negative: float(pair[1])}
    decided = positive if probabilities[positive] > model.threshold else negative
    return Decision(name, decided, probabilities[decided], probabilities)


def print_decisions(decisions: Sequence[Decision], class_names: Sequence[str]) -> None:
    """Print one row per file: the decided class and the probability of each class."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("file", "class", *(f"P({name})" for name in class_names)):
        table.add_column(heading, no_wrap=True)
    for decision in decisions:
        probabilities = (f"{decision.probabilities[name]:.4f}" for name in class_names)
        table.add_row(decision.file, decision.decided, *probabilities)
    wide_console.print(table)


@dataclass(frozen=True)
class Explanation:
    """Where a model finds its evidence.

    Attributes:
        metrics: `saliency_border_energy_<class>` and `saliency_border_area`, all in [0, 1].
        figures: by name: `saliency_mean`, `saliency_wrongest`.
        sentence: the same in words.
    """

    metrics: dict[str, float]
    figures: dict[str, Figure]
    sentence: str


def explain_decisions(
    model: TrackedModel, images: ImageSet, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]
) -> Explanation:
    """Show where a model looks: HiResCAM's mean map of each class, and the maps of its worst scores.

    Args:
        model: the model.
        images: all images, at the model's size.
        rows: int64 (num_images,), which of them; both classes.
        scores: float64 (num_images,), probability of the positive class.

    Returns:
        The explanation; without metrics and figures if the model's maps cannot be computed.
    """
    # Evenly, because the rows of a folder are ordered by class, and the first 512 may all be of one.
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _MAX_MAPS).astype(np.int64))]
    labels = images.labels[chosen]
    try:
        maps = _maps(model, images, chosen)
        means = mean_evidence(maps, labels)
        shares = [border_share(evidence(maps[labels == index], index)) for index in (0, 1)]
    # Another kind of network has no such maps, and one that uses no part of the images only zeros; the figures stand
    # without them.
    except (ModelError, DataError) as err:
        return Explanation({}, {}, f"Where it looks cannot be shown: {err}.")
    area, energies = shares[0].area, [share.energy for share in shares]
    by_class = dict(zip(model.class_names, energies, strict=True))
    metrics = {f"saliency_border_energy_{metric_key(name)}": energy for name, energy in by_class.items()}
    in_border = " and ".join(f"{energy:.0%} of its evidence for {name}" for name, energy in by_class.items())
    wrongest = np.argsort(-np.abs(scores - images.is_positive[rows]), kind="stable")[:_NUM_OVERLAYS]
    captions = [
        f"{printable(Path(images.files[rows[at]].name).name)}\nP({model.class_names[0]}) = {scores[at]:.3f}"
        for at in wrongest
    ]
    figures = {
        "saliency_mean": mean_maps(means, model.class_names, energies, area, BORDER_FRACTION),
        "saliency_wrongest": saliency_overlays(
            images.pixels[rows[wrongest]], _maps(model, images, rows[wrongest]), captions, model.class_names
        ),
    }
    sentence = f"It finds {in_border} in the outer border, which is {area:.0%} of the area."
    return Explanation(metrics | {"saliency_border_area": area}, figures, sentence)


def _maps(model: TrackedModel, images: ImageSet, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    parts = []
    for first in range(0, len(rows), _CHUNK_NUM_MAPS):
        pixels = images.pixels[rows[first : first + _CHUNK_NUM_MAPS]]
        # Divided by NumPy as in training: inside a tf.function, TensorFlow multiplies by 1 / 255 instead, which gives
        # another result for 126 of the 256 values.
        parts.append(hirescam(model.network, (pixels / 255).astype(np.float32)))
    return np.concatenate(parts)
