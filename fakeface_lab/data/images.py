"""How a file becomes pixels, and the cache that does it once.

A file is decoded as Keras's `load_img(path, target_size=(size, size))` does it: RGB, nearest neighbour, aspect
ratio not kept, EXIF orientation ignored. The pixels of a data set are one memory-mapped uint8 `.npy` file.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from PIL import Image, UnidentifiedImageError

from fakeface_lab.data.sources import ImageFile, Source, cache_folder, list_files
from fakeface_lab.errors import DataError

__all__ = ["ImageSet", "Skipped", "clear_cache", "decode_image", "load_images"]

# Part of each cache key: a change in how files are decoded makes old entries unreachable.
DECODER_VERSION = 1

EXIF_ORIENTATION = 0x0112


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
        files: one entry an image, the class to detect first, names sorted.
        pixels: uint8 (num_images, size, size, 3), RGB; memory-mapped, read-only.
        labels: int64 (num_images,), 0 for the class to detect.
        skipped: files that are not used.
        remarks: remark on used files (such as "alpha channel dropped") to number of files.
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
    def digest(self) -> str:
        """SHA-256 over name, label and content of every used file: 64 hexadecimal digits."""
        return _digest(self.files)

    def class_counts(self) -> dict[str, int]:
        """Return class name to number of images."""
        return {name: int((self.labels == index).sum()) for index, name in enumerate(self.source.class_names)}


class _UnusableImageError(Exception):
    """A file that is skipped; its text is the reason that the user reads."""


def decode_image(path: Path, size_px: int) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """Return the picture as uint8 (size, size, 3) and remarks on what was left out of it.

    Raises:
        _UnusableImageError: the file holds no single 8-bit picture that can be read whole.
    """
    try:
        with warnings.catch_warnings():
            # Between its limit and twice its limit Pillow only warns of a decompression bomb.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                remarks = _check_mode(image)
                rgb = image.convert("RGB") if image.mode != "RGB" else image
                resized = (
                    rgb.resize((size_px, size_px), Image.Resampling.NEAREST) if rgb.size != (size_px,) * 2 else rgb
                )
                return np.asarray(resized, dtype=np.uint8), remarks
    except UnidentifiedImageError as err:
        raise _UnusableImageError("empty file" if path.stat().st_size == 0 else "not an image") from err
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise _UnusableImageError("too many pixels (Pillow's limit against decompression bombs)") from err
    except FileNotFoundError as err:
        raise _UnusableImageError("link to a file that is not there") from err
    except (OSError, SyntaxError, ValueError) as err:  # what Pillow's decoders raise for damaged files
        raise _UnusableImageError("truncated or damaged") from err


def _check_mode(image: Image.Image) -> list[str]:
    if getattr(image, "n_frames", 1) > 1:
        raise _UnusableImageError("animated: which frame is meant?")
    if image.mode.startswith("I") or image.mode == "F":
        raise _UnusableImageError("more than 8 bits a channel: convert it to 8 bits first")
    remarks = []
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        remarks.append("alpha channel dropped")
    if image.mode == "CMYK":
        remarks.append("CMYK converted without its colour profile")
    if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
        remarks.append("EXIF orientation ignored, as the documented loader does")
    return remarks


def load_images(source: Source, size_px: int) -> ImageSet:
    """Return the pixels of a data set, decoded once for each size and read from the cache afterwards.

    The cache entry is keyed by the content of all files and the size, written to a temporary folder and renamed, so
    a killed process leaves nothing behind that counts; of two processes one decodes and the other waits.

    Raises:
        DataError: a class has no usable image.
    """
    candidates = list_files(source)
    entry = _cache_root() / f"{_digest(candidates)[:32]}-{size_px}px-v{DECODER_VERSION}"
    entry.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(entry.with_suffix(".lock")):
        if not entry.is_dir():
            _write_entry(entry, candidates, size_px)
    index = json.loads((entry / "index.json").read_text())
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
        # Files that were skipped leave unused rows at the end.
        pixels=np.load(entry / "pixels.npy", mmap_mode="r")[: len(used)],
        labels=labels,
        skipped=tuple(
            Skipped(candidates[position].name, candidates[position].label, reason)
            for position, reason in index["skipped"]
        ),
        remarks=index["remarks"],
        cache_path=entry / "pixels.npy",
    )


def clear_cache() -> int:
    """Delete all cached pixels and return how many bytes that freed."""
    root = _cache_root()
    num_bytes = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    shutil.rmtree(root, ignore_errors=True)
    return num_bytes


def _cache_root() -> Path:
    return cache_folder() / "pixels"


def _digest(files: Sequence[ImageFile]) -> str:
    lines = "".join(f"{file.name}\t{file.label}\t{file.sha256}\n" for file in files)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def _write_entry(entry: Path, candidates: Sequence[ImageFile], size_px: int) -> None:
    """Decode all files in threads straight into the mapped file; memory stays flat whatever their number."""
    partial = entry.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    contradictory = _contradictory_hashes(candidates)
    used: list[int] = []
    skipped: list[tuple[int, str]] = []
    remarks: Counter[str] = Counter()
    shape = (max(len(candidates), 1), size_px, size_px, 3)
    pixels = np.lib.format.open_memmap(partial / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)

    def decode(position: int) -> tuple[npt.NDArray[np.uint8], list[str]] | str:
        if candidates[position].sha256 in contradictory:
            return "the same file lies in both classes"
        try:
            return decode_image(candidates[position].path, size_px)
        except _UnusableImageError as err:
            return str(err)

    with ThreadPoolExecutor() as threads:
        for position, decoded in enumerate(threads.map(decode, range(len(candidates)))):
            if isinstance(decoded, str):
                skipped.append((position, decoded))
                continue
            pixels[len(used)] = decoded[0]
            used.append(position)
            remarks.update(decoded[1])
    pixels.flush()
    del pixels
    index = {"used": used, "skipped": skipped, "remarks": dict(remarks)}
    (partial / "index.json").write_text(json.dumps(index))
    os.replace(partial, entry)


def _contradictory_hashes(candidates: Sequence[ImageFile]) -> set[str]:
    labels: dict[str, set[int]] = {}
    for file in candidates:
        labels.setdefault(file.sha256, set()).add(file.label)
    return {sha256 for sha256, found in labels.items() if sha256 and len(found) > 1}
