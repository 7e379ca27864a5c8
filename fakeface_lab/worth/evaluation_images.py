"""Which images a tracked model is evaluated on: the test split of its own ledger, or another folder's unseen ones.

Owns the seal: an opening of a sealed test split is counted on the model's run and said aloud.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import Split
from fakeface_lab.errors import DataError
from fakeface_lab.shortcuts import explain_accuracy
from fakeface_lab.tracking.lookup import FoundModel
from fakeface_lab.worth.tracked_model import TrackedModel, own_images, own_split, unseen_rows

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

    @property
    def is_sealed(self) -> bool:
        """Whether this evaluation opens a test split that no epoch was judged on."""
        return self.split is not None and not self.split.test_is_validation

    def count_opening(self, found: FoundModel) -> None:
        """Count the opening of a sealed test split on the model's run, before its images are scored."""
        if self.is_sealed:
            found.store.client.set_tag(found.run.info.run_id, "test_openings", str(_num_openings(found) + 1))

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
    rows = unseen_rows(model, images)
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
        sentences.append(f"{known} more are in the model's own data and left out.")
    if images.source.class_names != model.class_names:
        pairs = zip(images.source.class_names, model.class_names, strict=True)
        sentences.append("Classes: " + ", ".join(f"{theirs} is taken as {ours}" for theirs, ours in pairs) + ".")
    return ChosenImages(images, rows, "external", None, tuple(sentences))


def _own_test(model: TrackedModel, images: ImageSet) -> ChosenImages:
    split = own_split(model, images)
    if split.test_is_validation:
        seal = "The split is the documented one: every epoch was judged on these images too."
    else:
        times = _num_openings(model.found) + 1
        seal = f"The sealed test split is opened, for the {_ordinal(times)} time; this is counted on the model's run."
        if times > 1:
            seal += " A choice made by what it shows is a choice made on test images."
    return ChosenImages(images, split.test, "test", split, (f"{len(split.test)} test images of its own ledger.", seal))


def _num_openings(found: FoundModel) -> int:
    """How often the test split was opened: what is counted, else once where the run itself has test figures."""
    counted = found.store.client.get_run(found.run.info.run_id).data.tags.get("test_openings")
    return int(counted) if counted is not None else int("test_accuracy" in found.run.data.metrics)


def _ordinal(number: int) -> str:
    words = ("first", "second", "third")
    return words[number - 1] if number <= len(words) else f"{number}th"


def _names(metrics: Mapping[str, float], part: str) -> list[str]:
    return [name.removeprefix(f"{part}_") for name in metrics if name.startswith(f"{part}_")]


def _is_value(name: str) -> bool:
    return not name.endswith(("_low", "_high", "_num_correct", "_num_total"))
