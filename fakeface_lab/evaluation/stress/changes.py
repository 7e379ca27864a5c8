"""The changes of the stress suite: one function per family, each applied to a single picture at its own size.

`suite` says at which levels.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter, rotate

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.stress.suite import Condition

__all__ = ["CHANGES", "apply"]

Pixels = NDArray[np.uint8]

PADDING_GRAY = 128  # of 0..255: the canvas around a shrunken image


def _jpeg(image: Pixels, quality: float) -> Pixels:
    buffer = io.BytesIO()
    # Pillow's default also halves the resolution of the chroma (4:2:0); here that is part of saving again.
    Image.fromarray(image).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer))


def _blur(image: Pixels, sigma_px: float) -> Pixels:
    # SciPy as in UniversalFakeDetect, because Pillow's GaussianBlur approximates a Gaussian by box filters.
    blurred = gaussian_filter(image.astype(np.float32), sigma=(sigma_px, sigma_px, 0), mode="nearest")
    return np.rint(blurred).astype(np.uint8)


def _rescale(image: Pixels, factor: float) -> Pixels:
    height, width = image.shape[:2]
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    # Pillow's filter widens when it shrinks, so that what is lost is detail and nothing is added by aliasing.
    shrunk = Image.fromarray(image).resize(small, Image.Resampling.BILINEAR)
    return np.asarray(shrunk.resize((width, height), Image.Resampling.BILINEAR))


def _gray(image: Pixels, _level: float) -> Pixels:
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def _flip(image: Pixels, _level: float) -> Pixels:
    return image[:, ::-1]


def _shift(image: Pixels, percent: float, *, down: bool = True, right: bool = True) -> Pixels:
    """Move the content and fill the gap by repeating its edge."""
    height, width = image.shape[:2]
    rows, columns = round(height * percent / 100), round(width * percent / 100)
    # Not with zeros: a black bar would be a second change.
    padded = np.pad(image, ((rows, rows), (columns, columns), (0, 0)), mode="edge")
    top, left = 0 if down else 2 * rows, 0 if right else 2 * columns
    return padded[top : top + height, left : left + width]


def _crop(image: Pixels, percent: float) -> Pixels:
    height, width = image.shape[:2]
    kept_height, kept_width = max(1, round(height * percent / 100)), max(1, round(width * percent / 100))
    top, left = (height - kept_height) // 2, (width - kept_width) // 2
    box = (left, top, left + kept_width, top + kept_height)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=box))


def _pad(image: Pixels, percent: float, mode: Literal["constant", "edge", "symmetric"] = "constant") -> Pixels:
    """Surround the picture with gray, its edge or its reflection, and scale it back to its size."""
    height, width = image.shape[:2]
    missing = round(height * percent / 100) - height, round(width * percent / 100) - width
    borders = [(side // 2, side - side // 2) for side in missing] + [(0, 0)]
    fill = {"constant_values": PADDING_GRAY} if mode == "constant" else {}
    padded = Image.fromarray(np.pad(image, borders, mode=mode, **fill))  # type: ignore[call-overload]
    return np.asarray(padded.resize((width, height), Image.Resampling.BILINEAR))


def _noise(image: Pixels, sigma: float) -> Pixels:
    """Add Gaussian noise seeded by the picture's content, so that it does not depend on what else is scored."""
    # Not `hash()`, which differs from process to process. A mirrored picture is a view with a negative step, which has
    # no single block of bytes to digest.
    seed = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(seed, "little"))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noisy: NDArray[np.float32] = np.rint(np.clip(image + np.float32(sigma) * noise, 0, 255))
    return noisy.astype(np.uint8)


def _rotate(image: Pixels, degrees: float) -> Pixels:
    """Rotate counter-clockwise about the centre and fill the corners with the reflected picture."""
    # Linear, because SciPy's default, a cubic spline, overshoots at edges, and uint8 would wrap around.
    # SciPy's "reflect" repeats the edge pixel, which NumPy and `_pad` call "symmetric".
    turned = rotate(image, degrees, axes=(1, 0), reshape=False, order=1, mode="reflect", output=np.float32)
    return np.rint(turned).astype(np.uint8)


def _rescale_jpeg(image: Pixels, quality: float) -> Pixels:
    height, width = image.shape[:2]
    # In the order of a social network, which scales down what is uploaded and then compresses it.
    small = Image.fromarray(image).resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BILINEAR)
    saved = Image.fromarray(_jpeg(np.asarray(small), quality))
    return np.asarray(saved.resize((width, height), Image.Resampling.BILINEAR))


def _brightness(image: Pixels, percent: float) -> Pixels:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(percent / 100))


def _contrast(image: Pixels, percent: float) -> Pixels:
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(percent / 100))


CHANGES: Mapping[str, Callable[[Pixels, float], Pixels]] = {
    "clean": lambda image, _level: image,
    "jpeg": _jpeg,
    "blur": _blur,
    "rescale": _rescale,
    "gray": _gray,
    "flip": _flip,
    "shift": _shift,
    "crop": _crop,
    "pad": _pad,
    "noise": _noise,
    # Blur before JPEG, as in CNNDetection and UniversalFakeDetect; SIDBench also combines sigma 2 with JPEG.
    "blur_jpeg": lambda image, quality: _jpeg(_blur(image, 2), quality),
    "rescale_jpeg": _rescale_jpeg,
    "rotate": _rotate,
    "brightness": _brightness,
    "contrast": _contrast,
    "shift_up_left": partial(_shift, down=False, right=False),
    "shift_up_right": partial(_shift, down=False),
    "shift_down_left": partial(_shift, right=False),
    # Both without a gray frame, which tells the effect of the frame from that of the smaller face.
    "pad_edge": partial(_pad, mode="edge"),
    "pad_reflect": partial(_pad, mode="symmetric"),
}
"""Family to its change: uint8 (H, W, 3) and a level to uint8 (H, W, 3)."""


def apply(condition: Condition, image: Pixels) -> Pixels:
    """Change one property of a picture; the result depends only on the condition and the pixels.

    Args:
        condition: an entry of `CONDITIONS`, or another level of one of its families.
        image: uint8 (H, W, 3), RGB in 0..255, any size; not modified.

    Returns:
        uint8 (H, W, 3); may be the input itself if nothing changes.

    Raises:
        DataError: the picture has a wrong dtype or shape.
        KeyError: the family does not exist.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise DataError(
            f"stress condition {condition.name!r} takes a uint8 image of shape (H, W, 3), "
            f"not {image.dtype} {image.shape}: pass the pixels before they are scaled to [0, 1]"
        )
    return CHANGES[condition.family](image, condition.level)
