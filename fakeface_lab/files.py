"""Files: replaced atomically, also through kills and power failures; arrays mapped from one; stderr, silenced."""

import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import numpy.typing as npt

__all__ = ["FileView", "file_view", "pickle_mapped", "replace_text", "silent_stderr", "sync", "unpickle_mapped"]

# Arrays above this size are pickled as separate files, which every reader maps instead of copying.
_MAPPED_BYTES = 1 << 16


def replace_text(path: Path, text: str) -> None:
    """Replace a file's text atomically and durably."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    # Without it, a power failure may leave the new name with lost content.
    sync(partial)
    os.replace(partial, path)


def sync(path: Path) -> None:
    """Wait until a file's content is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Drop what C++ writes to stderr: TensorFlow warns about missing GPUs on import at any log level."""
    # The descriptor itself: C++ does not write through `sys.stderr`.
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(sink)
        os.close(kept)


@dataclass(frozen=True)
class FileView:
    """The part of a file that holds a C-contiguous array.

    Attributes:
        path: the file.
        dtype: NumPy's dtype string.
        offset_bytes: where the array starts.
        shape: of the array.
    """

    path: str
    dtype: str
    offset_bytes: int
    shape: tuple[int, ...]

    def open(self) -> npt.NDArray[Any]:
        """Return the array in a new read-only mapping."""
        return np.memmap(self.path, np.dtype(self.dtype), "r", self.offset_bytes, self.shape)


def file_view(array: npt.NDArray[Any]) -> FileView | None:
    """Return where a memory-mapped array is; None if it is in memory or not a contiguous part of its file."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return None
    mapped: np.memmap[Any, Any] = array
    while isinstance(mapped.base, np.memmap):
        mapped = mapped.base
    # A slice keeps the offset of its base, so only its address tells where it starts.
    shift_bytes = array.__array_interface__["data"][0] - mapped.__array_interface__["data"][0]
    return FileView(str(array.filename), array.dtype.str, mapped.offset + shift_bytes, array.shape)


def pickle_mapped(content: object, folder: Path, name: str) -> Path:
    """Write an object for other processes of this program: functions by cloudpickle, large arrays as mapped files."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with path.open("wb") as file:
        _Pickler(file, folder).dump(content)
    return path


def unpickle_mapped(path: Path) -> Any:
    """Return what `pickle_mapped` wrote; a pickle runs code, so only a file of this program's own may be read."""
    with path.open("rb") as file:
        return _Unpickler(file).load()


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BufferedWriter, folder: Path) -> None:
        super().__init__(file)
        self._folder = folder
        self._num_files = 0
        # The same array is written once: pickle asks again for each mention of it.
        self._paths: dict[int, tuple[str, npt.NDArray[Any]]] = {}

    def persistent_id(self, obj: object) -> tuple[str, str | FileView] | None:
        # An array of objects holds memory addresses, which mean nothing in another process.
        if not isinstance(obj, np.ndarray) or obj.nbytes < _MAPPED_BYTES or obj.dtype.hasobject:
            return None
        view = file_view(obj)
        if view is not None:
            return ("view", view)
        if id(obj) not in self._paths:
            path = self._folder / f"array-{self._num_files}.npy"
            self._num_files += 1
            np.save(path, obj)
            # With the array itself: while it lives, its id cannot become that of another array.
            self._paths[id(obj)] = (str(path), obj)
        return ("npy", self._paths[id(obj)][0])


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: tuple[str, Any]) -> Any:
        kind, place = pid
        return place.open() if kind == "view" else np.load(place, mmap_mode="r")
