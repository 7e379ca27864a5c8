"""What callbacks leave on disk, in a form in which two equal trainings are equal."""

import io
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fakeface_lab.backend import tf

__all__ = ["event_points", "file_contents"]


def file_contents(folder: Path) -> dict[str, Any]:
    """Return the bytes of each table, and of each saved model those of its arrays, as the rest of it has a date."""
    paths = [path for path in sorted(folder.rglob("*.*")) if "tfevents" not in path.name]
    return {path.relative_to(folder).as_posix(): _content(path) for path in paths}


def _content(path: Path) -> Any:
    if path.suffix == ".keras":
        return _arrays(zipfile.ZipFile(path).read("model.weights.h5"))
    return _arrays(path.read_bytes()) if path.suffix == ".h5" else path.read_bytes()


def _arrays(hdf5: bytes) -> dict[str, bytes]:
    found = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = np.asarray(item).tobytes()

    with h5py.File(io.BytesIO(hdf5)) as file:
        file.visititems(visit)
    return found


def event_points(folder: Path) -> set[tuple[str, str, int, bytes]]:
    """Return TensorBoard's points as (folder, tag, step, value).

    After a resume they are in several files, and those of an epoch that is trained again are there twice.
    """
    found = set()
    for path in folder.rglob("*tfevents*"):
        with suppress(tf.errors.DataLossError):  # a record that a kill has cut
            for record in tf.data.TFRecordDataset(str(path)):
                event = tf.compat.v1.Event.FromString(record.numpy())
                for value in event.summary.value:
                    if value.tag != "keras":  # the model, written at each start
                        point = value.tensor.SerializeToString()
                        found.add((path.parent.relative_to(folder).as_posix(), value.tag, event.step, point))
    return found
