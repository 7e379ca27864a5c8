"""The input of each picture probe: a few numbers of one picture, forensic features first, then those of shortcuts.

Owns the features and the list of probes; `probes` trains and scores them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft

from fakeface_lab.evaluation.intervals import FloatArray

__all__ = [
    "PICTURE_PROBES",
    "THUMBNAIL_PROBE",
    "THUMBNAIL_PX",
    "Images",
    "Kind",
    "PictureProbe",
    "block_features",
    "feature_table",
    "level_features",
    "residual_features",
    "spectrum_features",
]

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
Kind = Literal["majority", "shortcut", "forensic"]

# In a picture of 64 px four rings stay at the floor: three hold no frequency, the first only the mean, which is
# removed.
_SPECTRUM_BINS = 64
_RESIDUAL_STEP = 2.0  # gray levels; coarser than a camera's noise, finer than an edge
# Two, as in the rich models: the 125 triples share the 7,680 samples of a picture of 64 px.
_RESIDUAL_STEPS = 2  # on either side of 0; larger residuals are clipped
_BLOCK_PX = 8  # of JPEG
# Of JPEG's 63 AC coefficients the coarse ones are most often not 0, so their histograms show the quantizer best;
# subsampling of the chroma removes the fine ones.
_COARSE_MODES = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2, 1), (1, 2), (0, 3), (3, 0))
_FINE_MODES = ((7, 7), (0, 7), (7, 0), (4, 4), (5, 0), (0, 5))
_MAX_LUMA_STEP, _MAX_CHROMA_STEP = 20, 8  # largest coefficient counted

# A linear model on 16x16 is right on all 1,289 documented images (docs/truth.md).
THUMBNAIL_PX = 16
_BORDER_CELLS = 2  # of 16 on each side: what remains of a portrait if its face is covered
_CORNER_FRACTION = 32 / 300  # of the side
_CORNER_CELLS = 4
_HISTOGRAM_BINS = 16


def spectrum_features(pixels: NDArray[np.uint8]) -> FloatArray:
    """Log of the power averaged over each ring of spatial frequency, (64,) (Durall et al. 2019, section 3)."""
    gray = _luma_and_chroma(pixels)[0]
    # Without the mean, or the lowest ring would measure brightness, which is not a forensic trace.
    # Divided by the number of pixels, with which the power of noise grows.
    power = np.abs(fft.rfft2(gray - gray.mean())) ** 2 / gray.size
    vertical, horizontal = fft.fftfreq(gray.shape[0]), fft.rfftfreq(gray.shape[1])
    radius = np.hypot(vertical[:, None], horizontal[None, :])  # cycles per pixel, 0.5 is the finest along an axis
    ring = np.floor(radius * 2 * _SPECTRUM_BINS).astype(np.int64)
    inside = ring < _SPECTRUM_BINS  # beyond 0.5 cycles there are only diagonals
    totals = np.bincount(ring[inside], weights=power[inside], minlength=_SPECTRUM_BINS)
    counts = np.bincount(ring[inside], minlength=_SPECTRUM_BINS)
    return np.asarray(np.log(totals / np.maximum(counts, 1) + 1e-3))  # the floor keeps a flat picture finite


def residual_features(pixels: NDArray[np.uint8]) -> FloatArray:
    """How often three neighbouring second differences occur together, (125,): resampling, blur and sharpening.

    Co-occurrences of quantized, clipped residuals along rows and columns, symmetrized under reversal and change of sign
    (Fridrich and Kodovsky 2012, "Rich Models for Steganalysis"); square roots of their shares.
    """
    gray, num_values = _luma_and_chroma(pixels)[0], 2 * _RESIDUAL_STEPS + 1
    counts = np.zeros((num_values,) * 3)
    for lines in (gray, gray.T):
        residual = lines[:, :-2] - 2 * lines[:, 1:-1] + lines[:, 2:]
        step = np.clip(np.rint(residual / _RESIDUAL_STEP), -_RESIDUAL_STEPS, _RESIDUAL_STEPS).astype(np.int64)
        step += _RESIDUAL_STEPS
        triple = (step[:, :-2] * num_values + step[:, 1:-1]) * num_values + step[:, 2:]
        counts += np.bincount(triple.ravel(), minlength=counts.size).reshape(counts.shape)
    counts = counts + counts[::-1, ::-1, ::-1]
    counts = counts + counts.transpose(2, 1, 0)
    # A square root evens out the variance of counts, so that frequent patterns do not drown rare ones.
    return np.asarray(np.sqrt(counts / counts.sum()).ravel())


def block_features(pixels: NDArray[np.uint8]) -> FloatArray:
    """Histograms of cosine coefficients of the 8x8 blocks, (459,): the grid, quantizer and chroma of earlier JPEGs.

    Coefficients that were quantized, once or twice, fall on a comb (Fridrich and Lukas 2003, "Estimation of Primary
    Quantization Matrix in Double Compressed JPEG Images"), and cropping or scaling moves it off the grid. Square roots
    of the shares.
    """
    luma, *chroma = _luma_and_chroma(pixels)
    parts = [_coefficient_shares(luma, _COARSE_MODES, _MAX_LUMA_STEP)]
    parts += [_coefficient_shares(plane, _COARSE_MODES + _FINE_MODES, _MAX_CHROMA_STEP) for plane in chroma]
    return np.sqrt(np.concatenate(parts))


def level_features(pixels: NDArray[np.uint8]) -> FloatArray:
    """How much more or less frequent each level is than its neighbours, (254,): the gaps that a tone curve leaves.

    Second differences of the log histogram, mean over the channels (Stamm and Liu 2010, "Forensic Detection of Image
    Manipulation Using Statistical Intrinsic Fingerprints").
    """
    num_pixels = pixels.shape[0] * pixels.shape[1]
    counts = np.stack([np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)])
    # The floor, 9 pixels of 300x300, keeps an empty level from giving minus infinity.
    log_share = np.log(counts / num_pixels + 1e-4)
    # A tone curve leaves its gaps at the same levels of each channel.
    return np.asarray((log_share[:, 1:-1] - (log_share[:, :-2] + log_share[:, 2:]) / 2).mean(axis=0))


def _luma_and_chroma(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
    # Pillow converts as JFIF does, so these are the planes that an earlier JPEG quantized.
    planes = np.asarray(Image.fromarray(pixels).convert("YCbCr"), dtype=np.float32)
    missing = [(0, max(0, _BLOCK_PX - side)) for side in pixels.shape[:2]]
    return tuple(np.pad(planes[..., index], missing, mode="edge") for index in range(3))


def _coefficient_shares(plane: NDArray[np.float32], modes: tuple[tuple[int, int], ...], largest: int) -> FloatArray:
    """Share of each rounded absolute value, 0 to `largest`, of each mode: flat, (len(modes) * (largest + 1),)."""
    rows, columns = (side // _BLOCK_PX for side in plane.shape)
    blocks = plane[: rows * _BLOCK_PX, : columns * _BLOCK_PX].reshape(rows, _BLOCK_PX, columns, _BLOCK_PX)
    # JPEG first subtracts 128 from each level; that only moves the mean of a block, which no mode here uses.
    coefficients = np.abs(np.rint(fft.dctn(blocks, axes=(1, 3), norm="ortho"))).astype(np.int64)
    shares = []
    for vertical, horizontal in modes:
        values = coefficients[:, vertical, :, horizontal].ravel()
        counts = np.bincount(values[values <= largest], minlength=largest + 1)
        shares.append(counts / max(counts.sum(), 1))
    return np.concatenate(shares)


@dataclass(frozen=True)
class PictureProbe:
    """What one probe sees of a picture.

    Attributes:
        name: short name, used in metric keys.
        kind: "shortcut" or "forensic".
        sees: its input, in words that follow "sees only".
        features: takes uint8 (H, W, 3), returns an array of the same size for all pictures.
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
    # BOX averages whole cells, which cancels fine detail: a thumbnail has framing and light, but no traces.
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


THUMBNAIL_PROBE = PictureProbe("thumbnail", "shortcut", f"{THUMBNAIL_PX}x{THUMBNAIL_PX} thumbnails", _thumbnail)
# Each forensic probe is the best at a trace of its own in drawn faces: the spectrum at blur and rescaling, residuals at
# sharpening, cropping and noise, blocks at the chroma of an earlier JPEG, levels at a tone curve (docs/truth.md).
PICTURE_PROBES = (
    THUMBNAIL_PROBE,
    PictureProbe("border", "shortcut", "the border around a covered face", _border),
    PictureProbe("corners", "shortcut", "the four corners", _corners),
    PictureProbe("histogram", "shortcut", "the counts of each colour", _histogram),
    PictureProbe("spectrum", "forensic", "the strength of each spatial frequency", spectrum_features),
    PictureProbe("residuals", "forensic", "how neighbouring pixels differ", residual_features),
    PictureProbe("blocks", "forensic", "the 8x8 blocks that JPEG works on", block_features),
    PictureProbe("levels", "forensic", "which levels are missing or too frequent", level_features),
)
