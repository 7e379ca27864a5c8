"""Which images a tracked model is evaluated on: the test split of its own ledger, or another folder's unseen ones.

Owns the seal of an evaluation: an opening of the test split is recorded on the evaluation's run and said aloud.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from fakeface_lab.assess.tracked_model import TrackedModel, own_images, own_split, unseen_rows
from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import Split
from fakeface_lab.detector.shortcuts import explain_accuracy
from fakeface_lab.errors import DataError
from fakeface_lab.tracking.lookup import FoundModel
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.seal import describe_openings, record_opening, seal_key

__all__ = ["ChosenImages", "choose_images"]

_SIDE_BY_SIDE = ("accuracy", "balanced_accuracy", "roc_auc", "average_precision", "brier")


@dataclass(frozen=True)
class ChosenImages:
    """The images of one evaluation.

    Attributes:
        images: all images of the data set.
        rows: int64 (n,), which of them are evaluated.
        part: "test" for the model's own test split, "external" for another data set.
        split: the model's own split; None for another data set.
        sentences: which images these are, for the user.
    """

    images: ImageSet
    rows: npt.NDArray[np.int64]
    part: str
    split: Split | None
    sentences: tuple[str, ...]

    @property
    def split_name(self) -> str:
        """The tag by which figures of different kinds are kept apart."""
        return self.split.name if self.split else "external"

    def open(self, run: TrackedRun) -> str:
        """Record on the evaluation's run that it opens the model's test split; return what to say, "" otherwise."""
        if self.split is None:
            return ""
        test_set = seal_key(self.images.digest, self.split.name, self.split.seed)
        record_opening(run, test_set, "evaluation")
        return run.writer.call(lambda: describe_openings(run.store, test_set))

    def explain(
        self, metrics: Mapping[str, float], is_correct: npt.NDArray[np.bool_]
    ) -> tuple[dict[str, float], list[str]]:
        """Add the explained share where the model's own split is evaluated; return metrics and sentences."""
        if self.split is None:
            return dict(metrics), []
        more, sentence = explain_accuracy(self.images, self.split, is_correct, "test")
        return dict(metrics) | more, [sentence]

    def side_by_side(self, found: FoundModel, metrics: Mapping[str, float]) -> dict[str, pd.DataFrame]:
        """For another data set, a table of the figures there beside those that the model's run has."""
        known = found.run.data.metrics
        own = next((part for part in ("test", "validation") if f"{part}_accuracy" in known), None)
        if self.split is not None or own is None:
            return {}
        recalls = [name for name in _names(metrics, self.part) if name.startswith("recall_") and _is_value(name)]
        rows = [
            {"figure": name, f"own {own} split": known.get(f"{own}_{name}"), "here": metrics.get(f"{self.part}_{name}")}
            for name in (*_SIDE_BY_SIDE, *recalls)
        ]
        return {"the model's own images and these": pd.DataFrame(rows)}


def choose_images(model: TrackedModel, data: str | None, positive: str | None, project: Path) -> ChosenImages:
    """Return the images to evaluate a model on.

    Args:
        model: the model.
        data: where they are; None for the images that the model was trained with.
        positive: class folder to detect, for folder names that do not say it.
        project: the project folder.

    Raises:
        DataError: the images cannot be found, or all of them are the model's own.
    """
    if data is None:
        return _own_test(model, own_images(model, project))
    images = load_images(find_source(data, positive, project, model.image_size_px), model.image_size_px)
    if images.digest == model.data_digest:
        return _own_test(model, images)
    try:
        own: ImageSet | None = own_images(model, project)
    except DataError:
        own = None
    rows = unseen_rows(model, images, own)
    known = len(images.files) - len(rows)
    if len(rows) == 0:
        raise DataError(
            f"{images.source.root}: all {known} images are in the model's own data; leave --data out to evaluate its "
            f"test split"
        )
    sentences = [
        f"{images.source.root}: {len(rows)} images the model has never seen, at its own threshold {model.threshold:g}."
    ]
    if known:
        sentences.append(f"{known} more are in the model's own data, or look like a picture that is, and are left out.")
    if own is None:
        sentences.append("The model's own images are not at hand: known pictures in new files could not be left out.")
    if images.source.class_names != model.class_names:
        pairs = zip(images.source.class_names, model.class_names, strict=True)
        sentences.append("Classes: " + ", ".join(f"{theirs} is taken as {ours}" for theirs, ours in pairs) + ".")
    return ChosenImages(images, rows, "external", None, tuple(sentences))


def _own_test(model: TrackedModel, images: ImageSet) -> ChosenImages:
    split = own_split(model, images)
    return ChosenImages(images, split.test, "test", split, (f"{len(split.test)} test images of its own ledger.",))


def _names(metrics: Mapping[str, float], part: str) -> list[str]:
    return [name.removeprefix(f"{part}_") for name in metrics if name.startswith(f"{part}_")]


def _is_value(name: str) -> bool:
    return not name.endswith(("_low", "_high", "_num_correct", "_num_total"))
