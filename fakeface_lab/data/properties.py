"""Properties of pictures that have nothing to do with faces: one table row per picture.

Owns the properties of the file, read from its header without decoding it, and a few colour figures of the decoded
pixels. `evaluation.audit.audit` decides whether a property gives the label away.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import ExifTags, Image, JpegImagePlugin

from fakeface_lab.errors import DataError

__all__ = ["CONTENT_COLUMNS", "FILE_COLUMNS", "PIXEL_COLUMNS", "file_properties", "pixel_properties"]

FILE_COLUMNS = (
    "bytes",
    "bytes_per_pixel",
    "width_px",
    "height_px",
    "mode",
    "format",
    "jpeg_quality",
    "chroma_subsampling",
    "is_progressive",
    "dpi",
    "metadata",
    "exif",
)
"""Columns of `file_properties`."""

CONTENT_COLUMNS = ("bytes", "bytes_per_pixel")
"""Columns that depend on how well a picture compresses, so on its content, not only on how the file was saved."""

PIXEL_COLUMNS = ("is_gray", "saturation", "colourfulness", "mean_red", "mean_green", "mean_blue")
"""Columns of `pixel_properties`."""

# Pillow numbers these three and gives -1 for any other.
_SUBSAMPLING_NAMES = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
# A description or a comment may be kilobytes long.
_MAX_EXIF_CHARS = 60  # of one value
# Times and places differ between pictures of the same origin.
# The offsets say where in the file another directory begins.
_EXIF_LEFT_OUT = {
    ExifTags.Base.DateTime,
    ExifTags.Base.DateTimeOriginal,
    ExifTags.Base.DateTimeDigitized,
    ExifTags.Base.ExifOffset,
    ExifTags.Base.GPSInfo,
    ExifTags.Base.ExifInteroperabilityOffset,
}
# 118 of the 1,289 documented images are gray by these two, 91 to the last bit (docs/truth.md).
_GRAY_SPREAD = 8  # largest difference between channels, of 255, that JPEG's rounding leaves on a gray pixel
_GRAY_PIXEL_FRACTION = 0.99


def file_properties(paths: Iterable[Path | str]) -> pd.DataFrame:
    """Read the header of each file.

    Returns:
        One row per path in the given order, columns `FILE_COLUMNS`. `mode` and `format` are Pillow's names.
        `jpeg_quality` is the IJG quality, 1 to 100, with the nearest luma table (mean squared difference), NaN if the
        file has no such table. `chroma_subsampling` is "4:4:4", "4:2:2", "4:2:0", "other" or "none" (not a JPEG, or a
        gray one). `dpi` is the declared resolution, `metadata` names the kinds of metadata in the file, `exif` the
        values of the main EXIF directory without times (camera, software, orientation, ...); each is "none" if the
        file has none.

    Raises:
        DataError: a file is missing or is not an image.
    """
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(_file_row, map(Path, paths)))
    return pd.DataFrame(rows, columns=list(FILE_COLUMNS))


def pixel_properties(images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> pd.DataFrame:
    """Measure the colours of each decoded picture.

    Args:
        images: uint8 (N, H, W, 3), RGB; may be memory-mapped, one picture is read at a time.

    Returns:
        One row per picture, columns `PIXEL_COLUMNS`. `is_gray`: in 99 % of the pixels the channels differ by at most 8
        of 255. `saturation`: mean HSV saturation, 0 to 1. `colourfulness`: M3 of Hasler and Suesstrunk 2003, 0 (gray)
        to about 110 (vivid). `mean_*`: 0 to 255.
    """
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(_pixel_row, images))
    return pd.DataFrame(rows, columns=list(PIXEL_COLUMNS))


def _file_row(path: Path) -> dict[str, object]:
    try:
        num_bytes = path.stat().st_size
        with Image.open(path) as image:
            width, height = image.size
            return {
                "bytes": num_bytes,
                "bytes_per_pixel": num_bytes / (width * height),
                "width_px": width,
                "height_px": height,
                "mode": image.mode,
                "format": image.format,
                "jpeg_quality": _jpeg_quality(image),
                "chroma_subsampling": _chroma_subsampling(image),
                "is_progressive": bool(image.info.get("progressive", False)),
                "dpi": _dpi(image),
                "metadata": _metadata(image),
                "exif": _exif(image),
            }
    # Pillow raises a SyntaxError for some damaged headers, among them those of PNG.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} cannot be read as an image ({error}): remove the file or leave it out of the data set."
        ) from error


def _jpeg_quality(image: Image.Image) -> float:
    tables: dict[int, list[int]] = getattr(image, "quantization", {})
    if 0 not in tables:
        return float("nan")
    # Encoders other than the IJG's have their own tables, which match no quality exactly.
    distance = ((_luma_tables() - np.asarray(tables[0])) ** 2).mean(axis=1)
    return float(np.argmin(distance) + 1)


@cache
def _luma_tables() -> NDArray[np.int64]:
    """Every luma table of the IJG quality scale, (100, 64), as the encoder writes it."""
    # Asked of the encoder, so that rounding, clipping and the order of the 64 values are those that Pillow reads.
    tables = []
    for quality in range(1, 101):
        encoded = BytesIO()
        Image.new("L", (8, 8)).save(encoded, "JPEG", quality=quality)
        with Image.open(encoded) as image:
            assert isinstance(image, JpegImagePlugin.JpegImageFile)
            tables.append(image.quantization[0])
    return np.asarray(tables, dtype=np.int64)


def _chroma_subsampling(image: Image.Image) -> str:
    # For a gray JPEG, which has no chroma, Pillow returns the same -1 as for a sampling that it does not know.
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.layers == 1:
        return "none"
    return _SUBSAMPLING_NAMES.get(JpegImagePlugin.get_sampling(image), "other")


def _dpi(image: Image.Image) -> str:
    declared = image.info.get("dpi")
    return "x".join(f"{float(value):g}" for value in declared) if declared else "none"


def _metadata(image: Image.Image) -> str:
    """Pillow's names of the metadata it found, except those in other columns and those of every JFIF file."""
    names = {str(name) for name in image.info} - {"dpi", "progressive", "progression"}
    return ", ".join(sorted(name for name in names if not name.startswith("jfif_"))) or "none"


def _exif(image: Image.Image) -> str:
    values = {tag: value for tag, value in image.getexif().items() if tag not in _EXIF_LEFT_OUT}
    named = (f"{ExifTags.TAGS.get(tag, tag)}={str(values[tag])[:_MAX_EXIF_CHARS]}" for tag in sorted(values))
    return "; ".join(named) or "none"


def _pixel_row(pixels: NDArray[np.uint8]) -> dict[str, object]:
    # As planes, because NumPy is slow to reduce over a last axis of three.
    channels = [np.ascontiguousarray(pixels[..., channel]) for channel in range(3)]
    brightest, darkest = np.maximum.reduce(channels), np.minimum.reduce(channels)
    # Never negative, so the unsigned difference does not wrap.
    spread = brightest - darkest
    # As floats, because these differences may be negative.
    red, green, blue = (channel.astype(np.float32) for channel in channels)
    red_green, yellow_blue = red - green, (red + green) / 2 - blue
    deviation = np.hypot(red_green.std(), yellow_blue.std())
    offset = np.hypot(red_green.mean(), yellow_blue.mean())
    return {
        "is_gray": bool((spread <= _GRAY_SPREAD).mean() >= _GRAY_PIXEL_FRACTION),
        # A black pixel has the saturation 0, as in HSV.
        "saturation": float((spread / np.maximum(brightest, 1).astype(np.float32)).mean()),
        "colourfulness": float(deviation + 0.3 * offset),
        "mean_red": float(red.mean()),
        "mean_green": float(green.mean()),
        "mean_blue": float(blue.mean()),
    }
