"""Files: atomic replacement that survives kills and power failures, and arrays mapped from a file."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FileView", "file_view", "replace_text", "sync"]


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
