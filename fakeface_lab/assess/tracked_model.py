"""A tracked model made ready to be applied: its network, its own preprocessing, its own images and split.

Finding it in the store is `tracking.lookup`; what comes out of it is for `assessment` and the programs.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import numpy.typing as npt

from fakeface_lab.backend import keras
from fakeface_lab.data.hashes import HASH_KINDS, perceptual_hashes
from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import NEAR_DUPLICATE_DISTANCE, Split, read_ledger
from fakeface_lab.errors import DataError, FakefaceLabError
from fakeface_lab.tracking.lookup import FoundModel

__all__ = ["TrackedModel", "load_model", "own_images", "own_split", "unseen_rows"]


@dataclass(frozen=True)
class TrackedModel:
    """A model and what it was trained with.

    Attributes:
        found: where it is in the store.
        network: float32 (n, size, size, 3) in [0, 1] to probabilities (n, 2), the class to detect first.
        class_names: the class to detect first.
        image_size_px: edge of the pictures that it takes.
        threshold: an image is decided positive when its score is above it.
        data_digest: of the images it was trained with.
    """

    found: FoundModel
    network: keras.Model
    class_names: tuple[str, str]
    image_size_px: int
    threshold: float
    data_digest: str


def load_model(found: FoundModel) -> TrackedModel:
    """Load the network of a model that was found.

    Raises:
        ModelError: its files are gone or damaged, or were written by another Keras.
    """
    first, second = found.metadata["class_names"]
    return TrackedModel(
        found,
        _built_once(found.network()),
        (first, second),
        int(found.metadata["image_size_px"]),
        float(found.metadata["threshold"]),
        str(found.metadata["data_digest"]),
    )


def _built_once(loaded: keras.Model) -> keras.Model:
    """Return a copy whose layers belong to one graph: reading a file, Keras builds a Sequential once for each layer.

    Otherwise the layers' inputs and outputs are not connected, and no map of its features can be made.
    """
    network = keras.models.clone_model(loaded)
    network.set_weights(loaded.get_weights())
    return network


def own_images(model: TrackedModel, project: Path) -> ImageSet:
    """Return the images that the model was trained with, from where its run says they were.

    Raises:
        DataError: they are not there any more, or have changed.
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
    problem = "are not where they were" if images is None else "have changed since"
    raise DataError(f"the images of run {run.info.run_name} {problem}; say where they are with --data FOLDER")


def own_split(model: TrackedModel, images: ImageSet) -> Split:
    """Return the split that the model's run has logged, as rows of `images`.

    Raises:
        ModelError: the run has no ledger.
        DataError: the images are not those of the ledger.
    """
    with tempfile.TemporaryDirectory() as folder:
        return read_ledger(model.found.artifact("split.csv", folder), images)


def unseen_rows(model: TrackedModel, images: ImageSet, own: ImageSet | None) -> npt.NDArray[np.int64]:
    """Return the rows of another data set that are in no split of the model's own.

    An image that the model was trained on says nothing, and one of its sealed test split must not be opened here. Known
    are the same files and, where the model's own images are at hand, pictures that look the same, upright or mirrored.

    Args:
        model: the model.
        images: the other data set.
        own: the images that the model was trained with; None where they are gone.
    """
    with tempfile.TemporaryDirectory() as folder:
        lines = model.found.artifact("split.csv", folder).read_text(encoding="utf-8", errors="surrogateescape")
    is_known = np.array([file.sha256 in lines for file in images.files], dtype=bool)
    if own is not None:
        upright, mirrored = HASH_KINDS.index("phash"), HASH_KINDS.index("phash_mirrored")
        hashes = perceptual_hashes(images.pixels)[:, [upright, mirrored]]
        for phash in perceptual_hashes(own.pixels)[:, upright]:
            is_known |= (np.bitwise_count(hashes ^ phash) <= NEAR_DUPLICATE_DISTANCE).any(axis=1)
    return np.flatnonzero(~is_known)


def _places(model: TrackedModel) -> list[tuple[str, str | None]]:
    """Where the run's images may be: the folder it recorded, then what its settings said; each with --positive."""
    places: list[tuple[str, str | None]] = []
    uri = urlparse(model.found.data_uri())
    if uri.scheme == "file":
        places.append((url2pathname(uri.path), model.class_names[0]))
    with tempfile.TemporaryDirectory() as folder:
        try:
            settings = json.loads(model.found.artifact("settings.json", folder).read_text())
            places.append((settings["data"], settings.get("positive")))
        except (FakefaceLabError, ValueError, LookupError):
            pass
    return places
