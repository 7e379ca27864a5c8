"""What the forensic probes are shown: traces that generators, resampling, retouching and JPEG leave in pixels.

Owns the features; each function sees one picture alone. How probes are trained and scored is in `probes`. Pixels that
were scaled after the fact, as a picture is that has not the model's size, have lost most of these traces.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft

__all__ = ["block_features", "level_features", "residual_features", "spectrum_features"]

FloatArray = NDArray[np.float64]

_SPECTRUM_BINS = 64
_RESIDUAL_STEP = 2.0  # gray levels; coarser than a camera's noise, finer than an edge
_RESIDUAL_STEPS = 2  # to either side of 0; larger residuals are clipped
_BLOCK_PX = 8  # JPEG's
# Of JPEG's 63 AC coefficients the coarse ones are the most often not 0, so their histograms show the quantiser best;
# the fine ones are what subsampled chroma has lost.
_COARSE_MODES = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2, 1), (1, 2), (0, 3), (3, 0))
_FINE_MODES = ((7, 7), (0, 7), (7, 0), (4, 4), (5, 0), (0, 5))
_MAX_LUMA_STEP, _MAX_CHROMA_STEP = 20, 8  # largest coefficient counted


def spectrum_features(pixels: NDArray[np.uint8]) -> FloatArray:
    """Log of the power averaged over each ring of spatial frequency, (64,) (Durall et al. 2019, section 3)."""
    gray = _luma_and_chroma(pixels)[0]
    power = np.abs(fft.rfft2(gray - gray.mean())) ** 2 / gray.size
    vertical, horizontal = fft.fftfreq(gray.shape[0]), fft.rfftfreq(gray.shape[1])
    radius = np.hypot(vertical[:, None], horizontal[None, :])  # cycles per pixel, 0.5 is the finest along an axis
    ring = np.floor(radius * 2 * _SPECTRUM_BINS).astype(np.int64)
    inside = ring < _SPECTRUM_BINS  # the corners beyond 0.5 cycles hold diagonals only
    totals = np.bincount(ring[inside], weights=power[inside], minlength=_SPECTRUM_BINS)
    counts = np.bincount(ring[inside], minlength=_SPECTRUM_BINS)
    return np.asarray(np.log(totals / np.maximum(counts, 1) + 1e-3))  # the floor keeps a flat picture finite


def residual_features(pixels: NDArray[np.uint8]) -> FloatArray:
    """How often three neighbouring second differences occur together, (125,): resampling, blur and sharpening.

    Co-occurrences of quantised, clipped residuals along rows and columns, made alike under reversal and change of
    sign (Fridrich and Kodovsky 2012, "Rich Models for Steganalysis"); square roots of their shares.
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
    return np.asarray(np.sqrt(counts / counts.sum()).ravel())


def block_features(pixels: NDArray[np.uint8]) -> FloatArray:
    """Histograms of cosine coefficients of the 8x8 blocks, (459,): the grid, quantiser and chroma of earlier JPEGs.

    Coefficients that were quantised, once or twice, fall on a comb (Fridrich and Lukas 2003, "Estimation of Primary
    Quantization Matrix in Double Compressed JPEG Images"), and cropping or scaling moves it off the grid. Square roots
    of the shares.
    """
    luma, *chroma = _luma_and_chroma(pixels)
    parts = [_coefficient_shares(luma, _COARSE_MODES, _MAX_LUMA_STEP)]
    parts += [_coefficient_shares(plane, _COARSE_MODES + _FINE_MODES, _MAX_CHROMA_STEP) for plane in chroma]
    return np.sqrt(np.concatenate(parts))


def level_features(pixels: NDArray[np.uint8]) -> FloatArray:
    """How much rarer or more frequent each level is than its neighbours, (254,): the gaps that a tone curve leaves.

    Second differences of the log histogram, mean over the channels (Stamm and Liu 2010, "Forensic Detection of Image
    Manipulation Using Statistical Intrinsic Fingerprints").
    """
    num_pixels = pixels.shape[0] * pixels.shape[1]
    counts = np.stack([np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)])
    log_share = np.log(counts / num_pixels + 1e-4)
    return np.asarray((log_share[:, 1:-1] - (log_share[:, :-2] + log_share[:, 2:]) / 2).mean(axis=0))


def _luma_and_chroma(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
    planes = np.asarray(Image.fromarray(pixels).convert("YCbCr"), dtype=np.float32)
    missing = [(0, max(0, _BLOCK_PX - side)) for side in pixels.shape[:2]]
    return tuple(np.pad(planes[..., index], missing, mode="edge") for index in range(3))


def _coefficient_shares(plane: NDArray[np.float32], modes: tuple[tuple[int, int], ...], largest: int) -> FloatArray:
    """Share of each rounded absolute value, 0 to `largest`, of each mode: flat, (len(modes) * (largest + 1),)."""
    rows, columns = (side // _BLOCK_PX for side in plane.shape)
    blocks = plane[: rows * _BLOCK_PX, : columns * _BLOCK_PX].reshape(rows, _BLOCK_PX, columns, _BLOCK_PX)
    coefficients = np.abs(np.rint(fft.dctn(blocks, axes=(1, 3), norm="ortho"))).astype(np.int64)
    shares = []
    for vertical, horizontal in modes:
        values = coefficients[:, vertical, :, horizontal].ravel()
        counts = np.bincount(values[values <= largest], minlength=largest + 1)
        shares.append(counts / max(counts.sum(), 1))
    return np.concatenate(shares)
