"""Files: replaced as a whole, whenever the process is killed or the power fails, and arrays that live in one."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FileView", "file_view", "replace_text", "sync"]


def replace_text(path: Path, text: str) -> None:
    """Write a file beside its place and move it there, once it is on the disk."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    # Without it a file system may keep the new name and lose the content.
    sync(partial)
    os.replace(partial, path)


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


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
