"""Decoding of image files, and the cache of decoded pixels.

A file is decoded like Keras's `load_img(path, target_size=(size, size))`: RGB, nearest neighbour, aspect ratio not
kept, EXIF orientation ignored. The pixels of a data set are one memory-mapped uint8 `.npy` file.
"""

import hashlib
import io
import json
import math
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from PIL import Image, UnidentifiedImageError

from fakeface_lab.data.sources import ImageFile, Source, cache_folder, list_files
from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.intervals import positives

__all__ = [
    "IN_BOTH_CLASSES", "ImageSet", "Skipped", "UnusableImageError", "clear_cache", "decode_bytes", "decode_image",
    "load_images", "missing_bytes", "resize",
]  # fmt: skip

# Part of each cache key; incrementing it invalidates old entries when decoding changes.
DECODER_VERSION = 1

CHUNK_NUM_IMAGES = 256  # in memory at a time while a data set is decoded: 69 MB at 300 px

EXIF_ORIENTATION = 0x0112

IN_BOTH_CLASSES = "the same file lies in both classes"
"""Reason why a file is skipped."""

BOMB_REASON = "too many pixels (Pillow's limit against decompression bombs)"


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    name: str
    label: int
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """The usable images of a data set.

    Attributes:
        source: where they come from.
        files: one entry per image, the class to detect first, names sorted.
        pixels: uint8 (num_images, size, size, 3), RGB; memory-mapped, read-only.
        labels: int64 (num_images,), 0 for the class to detect.
        skipped: files that are not used.
        remarks: remark on used files (e.g. "alpha channel dropped") to number of files.
        cache_path: the `.npy` file behind `pixels`.
    """

    source: Source
    files: tuple[ImageFile, ...]
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    skipped: tuple[Skipped, ...]
    remarks: dict[str, int]
    cache_path: Path

    @property
    def size_px(self) -> int:
        """Edge of the square pictures."""
        return int(self.pixels.shape[1])

    @property
    def is_positive(self) -> npt.NDArray[np.bool_]:
        """Which images belong to the class to detect, bool (num_images,)."""
        return positives(self.labels)

    @property
    def digest(self) -> str:
        """SHA-256 over name, label and content of every used file: 64 hexadecimal digits."""
        return _digest(self.files)

    def only(self, rows: npt.NDArray[np.int64]) -> "ImageSet":
        """Return the set with only the images of these rows; `skipped` and `remarks` stay those of the whole set."""
        if len(rows) == len(self.files):
            return self
        # A selection copies its pixels into memory; the whole set stays mapped.
        files = tuple(self.files[row] for row in rows)
        return replace(self, files=files, pixels=self.pixels[rows], labels=self.labels[rows])

    def class_counts(self) -> dict[str, int]:
        """Return class name to number of images."""
        return {name: int((self.labels == index).sum()) for index, name in enumerate(self.source.class_names)}


class UnusableImageError(DataError):
    """A file that does not contain exactly one picture with 8 bits per channel; the text is the reason for the user."""


def decode_image(path: Path, size_px: int | None) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Return the picture in a file; result and errors as in `decode_bytes`.

    Raises:
        OSError: the file cannot be read.
    """
    # Not opened by name, because Pillow maps some uncompressed files and mixes up the rows of a rotated TIFF.
    return decode_bytes(path.read_bytes(), size_px)


def decode_bytes(content: bytes, size_px: int | None) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Return the picture as uint8 (size, size, 3), and remarks on what was dropped from it.

    Args:
        content: of an image file.
        size_px: edge of the result; None for the picture's own size.

    Raises:
        UnusableImageError: the file does not contain exactly one complete 8-bit picture.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            remarks = _check(image)
            rgb = image.convert("RGB") if image.mode != "RGB" else image
            pixels = np.asarray(rgb, dtype=np.uint8)
            return (pixels if size_px is None else resize(pixels, size_px)), remarks
    # A lack of memory is not the file's fault; the cache would leave it out permanently.
    except (UnusableImageError, MemoryError):
        raise
    except UnidentifiedImageError as err:
        raise UnusableImageError("not an image" if content else "empty file") from err
    # The warning is raised where the caller turns warnings into errors.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise UnusableImageError(BOMB_REASON) from err
    except Exception as err:  # Pillow's decoders raise nearly everything on damaged files, TypeError included
        raise UnusableImageError("truncated or damaged") from err


def resize(pixels: npt.NDArray[np.uint8], size_px: int) -> npt.NDArray[np.uint8]:
    """Return a decoded picture at the model's size, resized as the documented loader does."""
    if pixels.shape[:2] == (size_px, size_px):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.NEAREST))


def _check(image: Image.Image) -> list[str]:
    """Return remarks on an opened image, or reject it; the pixels are not decoded yet."""
    # Between its limit and twice that limit, Pillow only warns.
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise UnusableImageError(BOMB_REASON)
    remarks = []
    if image.format == "MPO":  # photographs of many phones, followed by previews or a depth map
        remarks.append("first picture of a multi-picture file taken")
    elif getattr(image, "n_frames", 1) > 1:
        raise UnusableImageError("animated or several pages: it is unclear which frame to use")
    # Pillow clips the values when it converts, and nearly all of a 16-bit picture would turn white.
    if image.mode.startswith("I") or image.mode == "F":
        raise UnusableImageError("more than 8 bits per channel: convert it to 8 bits first")
    # Pillow opens 16-bit colour as RGB of 8 bits; only the raw mode of its tiles still tells.
    if any("16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        remarks.append("16 bits per channel reduced to the upper 8")
    # A palette declares its transparent colour in `info`, not in the mode.
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        remarks.append("alpha channel dropped")
    if image.mode == "CMYK":
        remarks.append("CMYK converted without its colour profile")
    if image.format != "TIFF" and image.getexif().get(EXIF_ORIENTATION, 1) != 1:  # Pillow rotates a TIFF itself
        remarks.append("EXIF orientation ignored, as the documented loader does")
    return remarks


def load_images(source: Source, size_px: int) -> ImageSet:
    """Return the pixels of a data set, decoded once per size and read from the cache afterwards.

    The cache entry is keyed by the content of all files and the size. It is written to a temporary folder and renamed,
    so that a killed process leaves no partial entry; of two processes, one decodes and the other waits.

    Raises:
        DataError: a class has no usable image, a file cannot be read, or the cache cannot be written or read.
    """
    candidates = list_files(source)
    entry = _entry(candidates, size_px)
    _ensure_entry(entry, candidates, size_px)
    index, pixels = _read_entry(entry)
    used = tuple(candidates[position] for position in index["used"])
    labels = np.array([file.label for file in used], dtype=np.int64)
    for label, class_name in enumerate(source.class_names):
        if not (labels == label).any():
            raise DataError(
                f"{source.root}: class {class_name} has no usable image in {source.class_folders[label].name}/"
                f" ({sum(file.label == label for file in candidates)} files seen); both classes are needed"
            )
    return ImageSet(
        source=source,
        files=used,
        # The mapped file has a row for each candidate; skipped ones leave unused rows at the end.
        pixels=pixels[: len(used)],
        labels=labels,
        skipped=tuple(
            Skipped(candidates[position].name, candidates[position].label, reason)
            for position, reason in index["skipped"]
        ),
        remarks=index["remarks"],
        cache_path=entry / "pixels.npy",
    )


def missing_bytes(candidates: Sequence[ImageFile], size_px: int) -> int:
    """Return how many bytes `load_images` will write to the cache: 0 if the pixels of these files are there already."""
    return 0 if _entry(candidates, size_px).is_dir() else len(candidates) * size_px**2 * 3


def clear_cache() -> int:
    """Delete all cached pixels and return how many bytes that freed; waits for processes that are writing."""
    num_bytes = 0
    for lock in _cache_root().glob("*.lock"):
        # The lock's own file stays: if it were deleted under a waiting process, two could write at once.
        with FileLock(lock):
            for folder in (lock.with_suffix(""), lock.with_suffix(".partial")):
                num_bytes += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                shutil.rmtree(folder, ignore_errors=True)
    return num_bytes


def _cache_root() -> Path:
    return cache_folder() / "pixels"


def _entry(candidates: Sequence[ImageFile], size_px: int) -> Path:
    # 32 hexadecimal digits are 128 bits: no collision to expect, and paths stay short.
    return _cache_root() / f"{_digest(candidates)[:32]}-{size_px}px-v{DECODER_VERSION}"


def _digest(files: Sequence[ImageFile]) -> str:
    lines = "".join(f"{file.name}\t{file.label}\t{file.sha256}\n" for file in files)
    # File names may contain bytes that are not UTF-8.
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _ensure_entry(entry: Path, candidates: Sequence[ImageFile], size_px: int) -> None:
    if entry.is_dir():  # entries are always complete, and a read-only cache can be used
        return
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.with_suffix(".lock")):
            if not entry.is_dir():  # another process may have written it while this one waited
                _write_entry(entry, candidates, size_px)
    except OSError as err:
        raise DataError(
            f"the cache folder {entry.parent} cannot be written ({err.strerror or err}); set FAKEFACE_CACHE to a "
            f"folder that can"
        ) from err


def _read_entry(entry: Path) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
    try:
        # Mapped: with the pixels read batch by batch, a run's memory peaks at 0.58 of that of the plain script, which
        # holds all images (docs/reproduction.md).
        return json.loads((entry / "index.json").read_text()), np.load(entry / "pixels.npy", mmap_mode="r")
    except (OSError, ValueError) as err:
        raise DataError(
            f"the cache entry {entry} is damaged ({err}); delete it with python -m fakeface_lab.data --clear-cache"
        ) from err


def _write_entry(entry: Path, candidates: Sequence[ImageFile], size_px: int) -> None:
    """Decode all files in threads into the mapped file; memory does not grow with their number."""
    partial = entry.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    shape = (max(len(candidates), 1), size_px, size_px, 3)
    _check_free_space(partial, math.prod(shape))
    contradictory = _contradictory_hashes(candidates)
    used: list[int] = []
    skipped: list[tuple[int, str]] = []
    remarks: Counter[str] = Counter()
    seen: set[str] = set()
    pixels = np.lib.format.open_memmap(partial / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)

    def decode(position: int) -> tuple[npt.NDArray[np.uint8], list[str]] | str:
        if candidates[position].sha256 in contradictory:
            return IN_BOTH_CLASSES
        return _decode_candidate(candidates[position], size_px)

    with ThreadPoolExecutor() as threads, warnings.catch_warnings():
        # Pillow's warnings are counted among the remarks or the skipped files.
        warnings.simplefilter("ignore")
        # In chunks, because `map` starts on everything at once, and decoded pictures would pile up in memory.
        for first in range(0, len(candidates), CHUNK_NUM_IMAGES):
            chunk = range(first, min(first + CHUNK_NUM_IMAGES, len(candidates)))
            for position, decoded in zip(chunk, threads.map(decode, chunk), strict=True):
                if isinstance(decoded, str):
                    skipped.append((position, decoded))
                    continue
                pixels[len(used)] = decoded[0]
                used.append(position)
                remarks.update(decoded[1])
                if candidates[position].sha256 in seen:
                    remarks["copy of another file of the same class"] += 1
                seen.add(candidates[position].sha256)
    # Before the folder gets its name, by which it counts as complete.
    pixels.flush()
    # Closed before the renaming, because some systems do not rename a folder with a mapped file in it.
    del pixels
    index = {"used": used, "skipped": skipped, "remarks": dict(remarks)}
    (partial / "index.json").write_text(json.dumps(index))
    os.replace(partial, entry)


def _check_free_space(folder: Path, needed_bytes: int) -> None:
    # A mapped file that outgrows the disk kills the process without any message.
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise DataError(
            f"the cache folder {folder.parent} has {free_bytes / 1e9:.1f} GB free, the pixels need "
            f"{needed_bytes / 1e9:.1f} GB; make room, set FAKEFACE_CACHE to another disk, or lower --image-size"
        )


def _decode_candidate(file: ImageFile, size_px: int) -> tuple[npt.NDArray[np.uint8], list[str]] | str:
    """Return the picture with its remarks, or the reason why it is skipped."""
    if not file.sha256:
        return "cannot be read: check its permissions" if file.path.exists() else "broken link"
    try:
        return decode_image(file.path, size_px)
    except UnusableImageError as err:
        return str(err)
    except OSError as err:  # hashing could read it; a cache entry without it would be wrong permanently
        raise DataError(f"{file.path}: cannot be read ({err.strerror}); rerun when it can") from err


def _contradictory_hashes(candidates: Sequence[ImageFile]) -> set[str]:
    labels: dict[str, set[int]] = {}
    for file in candidates:
        labels.setdefault(file.sha256, set()).add(file.label)
    # Files that cannot be read share the empty hash without being the same.
    return {sha256 for sha256, found in labels.items() if sha256 and len(found) > 1}
