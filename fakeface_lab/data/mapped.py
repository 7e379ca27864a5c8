"""Arrays that live in a file: where in which file, so that another process or a later moment can map them again."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FileView", "file_view"]


@dataclass(frozen=True)
class FileView:
    """A part of a file that holds one C-contiguous array.

    Attributes:
        path: the file.
        dtype: NumPy's string for the dtype.
        offset_bytes: where the array begins.
        shape: its shape.
    """

    path: str
    dtype: str
    offset_bytes: int
    shape: tuple[int, ...]

    def open(self) -> npt.NDArray[Any]:
        """Return the array, mapped anew and read-only."""
        return np.memmap(self.path, np.dtype(self.dtype), "r", self.offset_bytes, self.shape)


def file_view(array: npt.NDArray[Any]) -> FileView | None:
    """Return where a memory-mapped array lies; None for one that is in memory, or is no plain piece of its file."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return None
    mapped: np.memmap[Any, Any] = array
    while isinstance(mapped.base, np.memmap):
        mapped = mapped.base
    # A slice keeps the offset of what it was cut from; only the address tells where it begins.
    shift_bytes = array.__array_interface__["data"][0] - mapped.__array_interface__["data"][0]
    return FileView(str(array.filename), array.dtype.str, mapped.offset + shift_bytes, array.shape)
