"""What each picture probe is shown: a few numbers of one picture, and the words that say which.

Owns the shortcuts' features and the list of probes; what forensic probes see is in `forensic_features`. How probes are
trained and scored is in `probes`.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fakeface_lab.evaluation.forensic_features import (
    block_features,
    level_features,
    residual_features,
    spectrum_features,
)

__all__ = ["PICTURE_PROBES", "THUMBNAIL_PX", "Images", "Kind", "PictureProbe", "feature_table"]

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
Kind = Literal["majority", "shortcut", "forensic"]

THUMBNAIL_PX = 16
_BORDER_CELLS = 2  # of 16 on each side: what is left of a portrait when its face is covered
_CORNER_FRACTION = 32 / 300
_CORNER_CELLS = 4
_HISTOGRAM_BINS = 16


@dataclass(frozen=True)
class PictureProbe:
    """What one probe sees of a picture.

    Attributes:
        name: short name, as in a metric's key.
        kind: "shortcut" or "forensic".
        sees: what it is shown, in words that follow "sees only".
        features: takes uint8 (H, W, 3), gives an array of one size for all pictures.
    """

    name: str
    kind: Kind
    sees: str
    features: Callable[[NDArray[np.uint8]], NDArray[np.generic]]


def feature_table(images: Images, probe: PictureProbe) -> NDArray[np.float64]:
    """The probe's features of each picture, float64 (N, num_features); one picture is read at a time."""
    with ThreadPoolExecutor() as pool:
        rows = list(pool.map(lambda pixels: np.ravel(probe.features(pixels)), images))
    return np.stack(rows).astype(np.float64)


def _thumbnail(pixels: NDArray[np.uint8], cells: int = THUMBNAIL_PX) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize((cells, cells), Image.Resampling.BOX))


def _border(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    is_border = np.ones((THUMBNAIL_PX, THUMBNAIL_PX), dtype=bool)
    is_border[_BORDER_CELLS:-_BORDER_CELLS, _BORDER_CELLS:-_BORDER_CELLS] = False
    return _thumbnail(pixels)[is_border]


def _corners(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rows, columns = (max(1, round(_CORNER_FRACTION * side)) for side in pixels.shape[:2])
    patches = (pixels[r, c] for r in (np.s_[:rows], np.s_[-rows:]) for c in (np.s_[:columns], np.s_[-columns:]))
    return np.stack([_thumbnail(np.ascontiguousarray(patch), _CORNER_CELLS) for patch in patches])


def _histogram(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    channels = pixels.reshape(-1, 3) // (256 // _HISTOGRAM_BINS)
    counts = [np.bincount(channels[:, channel], minlength=_HISTOGRAM_BINS) for channel in range(3)]
    return np.stack(counts) / len(channels)


PICTURE_PROBES = (
    PictureProbe("thumbnail", "shortcut", f"{THUMBNAIL_PX}x{THUMBNAIL_PX} thumbnails", _thumbnail),
    PictureProbe("border", "shortcut", "the border around a covered face", _border),
    PictureProbe("corners", "shortcut", "the four corners", _corners),
    PictureProbe("histogram", "shortcut", "the counts of each colour", _histogram),
    PictureProbe("spectrum", "forensic", "the strength of each spatial frequency", spectrum_features),
    PictureProbe("residuals", "forensic", "how neighbouring pixels differ", residual_features),
    PictureProbe("blocks", "forensic", "the 8x8 blocks that JPEG works on", block_features),
    PictureProbe("levels", "forensic", "which levels are missing or too frequent", level_features),
)
