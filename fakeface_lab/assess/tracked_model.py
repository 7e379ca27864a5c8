"""A tracked model loaded from the store, the images and split it was trained with, and the images to evaluate it on.

`tracking.lookup` finds the model; `assessment` measures it and `application` applies it.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import numpy.typing as npt
import pandas as pd

from fakeface_lab.backend import keras
from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import HASH_KINDS, NEAR_DUPLICATE_DISTANCE, Split, perceptual_hashes, read_split
from fakeface_lab.detector.stress import compare_with_shortcut
from fakeface_lab.errors import DataError, FakefaceLabError
from fakeface_lab.tracking.datasets import describe_openings, record_opening, seal_key
from fakeface_lab.tracking.lookup import FoundModel
from fakeface_lab.tracking.runs import TrackedRun

__all__ = [
    "EXTERNAL",
    "ChosenImages",
    "TrackedModel",
    "choose_images",
    "load_tracked_model",
    "own_images",
    "own_split",
    "unseen_rows",
]

EXTERNAL = "external"
"""Name of the part, and of the split, if the images are from another data set."""

_SIDE_BY_SIDE = ("accuracy", "balanced_accuracy", "roc_auc", "average_precision", "brier")


@dataclass(frozen=True)
class TrackedModel:
    """A model and its metadata.

    Attributes:
        found: its place in the store.
        network: float32 (n, size, size, 3) in [0, 1] to probabilities (n, 2), the positive class first.
        class_names: positive class first.
        image_size_px: edge of its input.
        threshold: an image is decided positive if its score is above it.
        data_digest: of the images it was trained with.
    """

    found: FoundModel
    network: keras.Model
    class_names: tuple[str, str]
    image_size_px: int
    threshold: float
    data_digest: str


def load_tracked_model(found: FoundModel) -> TrackedModel:
    """Load a model that was found in the store.

    Raises:
        ModelError: its files are missing or damaged, or were written by an incompatible Keras.
    """
    first, second = found.metadata["class_names"]
    return TrackedModel(
        found,
        _connected(found.network()),
        (first, second),
        int(found.metadata["image_size_px"]),
        float(found.metadata["threshold"]),
        str(found.metadata["data_digest"]),
    )


def _connected(loaded: keras.Model) -> keras.Model:
    """Return a copy whose layers form one graph, as HiResCAM needs it.

    When Keras reads a Sequential from a file it rebuilds it for each layer, which leaves the layers' inputs and
    outputs unconnected.
    """
    network = keras.models.clone_model(loaded)
    network.set_weights(loaded.get_weights())
    return network


def own_images(model: TrackedModel, project: Path) -> ImageSet:
    """Return the images that the model was trained with, from the places that its run has recorded.

    Raises:
        DataError: they are no longer there, or have changed.
    """
    run = model.found.run
    images = None
    for data, positive in _places(model):
        try:
            source = find_source(data, positive, project, model.image_size_px)
            images = load_images(source, model.image_size_px)
        except DataError:
            continue
        if images.digest == model.data_digest:
            return images
    problem = "cannot be found" if images is None else "have changed"
    raise DataError(f"the images of run {run.info.run_name} {problem}; give their folder with --data FOLDER")


def own_split(model: TrackedModel, images: ImageSet) -> Split:
    """Return the split that the model's run has logged, as rows of `images`.

    Raises:
        NotFoundError: the run has no split file.
        DataError: the file lists other images.
    """
    with tempfile.TemporaryDirectory() as folder:
        return read_split(model.found.artifact("split.csv", folder), images)


def unseen_rows(model: TrackedModel, images: ImageSet, own: ImageSet | None) -> npt.NDArray[np.int64]:
    """Return the rows of another data set that are not in any split of the model's own data.

    Images that the model was trained on prove nothing, and those of its sealed test split must not be opened here.
    Excluded are equal files and, if the model's own images are available, pictures that look the same, upright or
    mirrored.

    Args:
        model: the model.
        images: the other data set.
        own: the images that the model was trained with; None if they are not available.
    """
    with tempfile.TemporaryDirectory() as folder:
        lines = model.found.artifact("split.csv", folder).read_text(encoding="utf-8", errors="surrogateescape")
    # Searched as text, because 64 hexadecimal digits do not occur by chance.
    is_known = np.array([file.sha256 in lines for file in images.files], dtype=bool)
    if own is not None:
        upright, mirrored = HASH_KINDS.index("phash"), HASH_KINDS.index("phash_mirrored")
        # By hash alone, without comparing details as the audit does: a look-alike left out costs one image, a copy kept
        # would count what was trained on as unseen.
        hashes = perceptual_hashes(images.pixels)[:, [upright, mirrored]]
        # One hash at a time, because a table of all pairs would grow with the product of both sets.
        for phash in perceptual_hashes(own.pixels)[:, upright]:
            is_known |= (np.bitwise_count(hashes ^ phash) <= NEAR_DUPLICATE_DISTANCE).any(axis=1)
    return np.flatnonzero(~is_known)


def _places(model: TrackedModel) -> list[tuple[str, str | None]]:
    """Places of the run's images, each with its --positive: the recorded folder, then --data of its settings."""
    places: list[tuple[str, str | None]] = []
    # The recorded folder first, because `--data auto` may find another set by now.
    uri = urlparse(model.found.data_uri())
    if uri.scheme == "file":
        places.append((url2pathname(uri.path), model.class_names[0]))
    with tempfile.TemporaryDirectory() as folder:
        try:
            settings = json.loads(model.found.artifact("settings.json", folder).read_text())
            places.append((settings["data"], settings.get("positive")))
        # Without its settings the recorded folder has to do.
        except (FakefaceLabError, ValueError, LookupError):
            pass
    return places


@dataclass(frozen=True)
class ChosenImages:
    """The images of one evaluation.

    Attributes:
        images: all images of the data set.
        rows: int64 (n,), which of them are evaluated.
        part: "test" for the model's own test split, `EXTERNAL` for another data set.
        split: the model's own split; None for another data set.
        sentences: which images these are, in words.
    """

    images: ImageSet
    rows: npt.NDArray[np.int64]
    part: str
    split: Split | None
    sentences: tuple[str, ...]

    @property
    def split_name(self) -> str:
        """Name of the split, as tagged on the run; figures of different splits are never compared."""
        return self.split.name if self.split else EXTERNAL

    def open(self, run: TrackedRun) -> str:
        """Record on the run that it opens the model's test split; return how often that happened, "" if it does not."""
        if self.split is None:
            return ""
        test_set = seal_key(self.images.digest, self.split.name, self.split.seed)
        record_opening(run, test_set, "evaluation")
        return run.writer.call(lambda: describe_openings(run.store, test_set))

    def add_explained_share(
        self, metrics: Mapping[str, float], is_correct: npt.NDArray[np.bool_]
    ) -> tuple[dict[str, float], list[str]]:
        """Return the metrics, and for the model's own split also its explained share and the sentence about it."""
        if self.split is None:
            return dict(metrics), []
        more, sentence = compare_with_shortcut(self.images, self.split, is_correct, "test")
        return dict(metrics) | more, [sentence]

    def side_by_side(self, found: FoundModel, metrics: Mapping[str, float]) -> dict[str, pd.DataFrame]:
        """Return, for another data set, a table of its figures next to those of the model's own split."""
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
        data: `--data`; None for the test split of the images that the model was trained with.
        positive: class folder to detect, if the folder names do not tell.
        project: the project folder.

    Raises:
        DataError: the images cannot be found, or all of them are the model's own.
    """
    if data is None:
        return _own_test(model, own_images(model, project))
    images = load_images(find_source(data, positive, project, model.image_size_px), model.image_size_px)
    # The model's own images under another path: it was trained on most of them.
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
        sentences.append("The model's own images are not available: only equal files could be left out.")
    if images.source.class_names != model.class_names:
        pairs = zip(images.source.class_names, model.class_names, strict=True)
        sentences.append("Classes: " + ", ".join(f"{theirs} is taken as {ours}" for theirs, ours in pairs) + ".")
    return ChosenImages(images, rows, EXTERNAL, None, tuple(sentences))


def _own_test(model: TrackedModel, images: ImageSet) -> ChosenImages:
    split = own_split(model, images)
    return ChosenImages(
        images, split.test, "test", split, (f"{len(split.test)} test images of the model's own split.",)
    )


def _names(metrics: Mapping[str, float], part: str) -> list[str]:
    return [name.removeprefix(f"{part}_") for name in metrics if name.startswith(f"{part}_")]


def _is_value(name: str) -> bool:
    return not name.endswith(("_low", "_high", "_num_correct", "_num_total"))
