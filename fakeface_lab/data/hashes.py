"""Perceptual hashes of decoded images, their distances, and groups of near-duplicates.

Owns what "looks the same" means in numbers. It does not decide what a duplicate is worth
(`evaluation.duplicates`) or on which side of a split it goes (`data.splits`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import imagehash
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import fft
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = [
    "HASH_KINDS",
    "closest_pairs",
    "detail_correlations",
    "near_duplicate_groups",
    "perceptual_hashes",
    "pixel_digests",
]

HASH_KINDS = ("phash", "dhash", "phash_mirrored", "dhash_mirrored")
"""What the columns of a hash array hold, in this order; mirrored is left-right."""

_PHASH, _DHASH, _PHASH_MIRRORED, _DHASH_MIRRORED = range(len(HASH_KINDS))
_DETAIL_PX = 64
_DETAIL_SIGMA_PX = 3.0  # of the Gaussian that is taken away: light and background are alike in aligned portraits
_DETAIL_SCALES = (0.95, 0.975, 1.0, 1.025, 1.05)
_MAX_DETAIL_SHIFT_PX = 4
_COMPARISONS_PER_BLOCK = 1 << 22  # 32 MiB of XORed hashes at a time, however many images there are


def perceptual_hashes(images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Four 64-bit hashes of each picture: pHash and dHash, upright and mirrored.

    Args:
        images: uint8 (N, H, W, 3), RGB; may be memory-mapped, one picture is read at a time.

    Returns:
        uint64 (N, 4), columns as in `HASH_KINDS`. pHash holds the signs of the 8x8 lowest cosine
        frequencies against their median, dHash the signs of horizontal differences (both ImageHash).
    """
    with ThreadPoolExecutor() as pool:  # Pillow resizes without holding the interpreter's lock
        rows = list(pool.map(_hash_row, images))
    return np.array(rows, dtype=np.uint64).reshape(len(rows), len(HASH_KINDS))


def pixel_digests(images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> list[str]:
    """BLAKE2b digest (hexadecimal) of each picture's pixels; equal for equal pictures in different files."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda pixels: hashlib.blake2b(np.ascontiguousarray(pixels).data).hexdigest(), images))


def near_duplicate_groups(hashes: NDArray[np.uint64], max_distance: int = 4) -> NDArray[np.int64]:
    """Group pictures that look the same, upright or mirrored, directly or through others.

    Args:
        hashes: uint64 (N, 4) from `perceptual_hashes`.
        max_distance: largest pHash distance in bits, 0 to 64, at which two pictures are joined.

    Returns:
        int64 (N,): group ids 0, 1, ... in the order of their first member. A picture without a
        near-duplicate is a group of its own.
    """
    if len(hashes) == 0:
        return np.zeros(0, dtype=np.int64)
    # Equal rows are one node: ten thousand copies of a picture would otherwise be fifty million pairs.
    distinct, node = np.unique(hashes, axis=0, return_inverse=True)
    pairs = closest_pairs(distinct, max_distance)
    links = coo_array((np.ones(len(pairs)), (pairs["first"], pairs["second"])), shape=(len(distinct), len(distinct)))
    component = connected_components(links, directed=False)[1][node.reshape(-1)]
    _, first_member, group = np.unique(component, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first_member))
    return np.asarray(rank[group.reshape(-1)], dtype=np.int64)


def closest_pairs(hashes: NDArray[np.uint64], max_distance: int = 10) -> pd.DataFrame:
    """All pairs of pictures that look alike, closest first.

    Args:
        hashes: uint64 (N, 4) from `perceptual_hashes`.
        max_distance: largest pHash distance in bits, 0 to 64.

    Returns:
        One row a pair: `first` < `second` (positions), `phash_bits` and `dhash_bits` (distances in the
        orientation with the smaller pHash distance, 0 to 64), `is_mirrored` (that orientation is the
        mirrored one). Sorted by `phash_bits`, `dhash_bits`, positions.
    """
    blocks = list(_close_blocks(hashes, max_distance))
    first, second, phash, dhash, mirrored = (
        np.concatenate([block[column] for block in blocks]) if blocks else np.zeros(0, dtype=np.int64)
        for column in range(5)
    )
    table = pd.DataFrame(
        {
            "first": first.astype(np.int64),
            "second": second.astype(np.int64),
            "phash_bits": phash.astype(np.int64),
            "dhash_bits": dhash.astype(np.int64),
            "is_mirrored": mirrored.astype(bool),
        }
    )
    return table.sort_values(["phash_bits", "dhash_bits", "first", "second"], ignore_index=True)


def detail_correlations(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], pairs: pd.DataFrame
) -> NDArray[np.float64]:
    """How well the details of look-alikes agree, which hashes of 64 bits cannot tell.

    Brightness and contrast do not count, nor do small differences in framing: the best of five scales (0.95 to 1.05)
    and of shifts up to 4 of 64 pixels.

    Args:
        images: uint8 (N, H, W, 3), RGB; may be memory-mapped.
        pairs: from `closest_pairs`; where `is_mirrored`, the first picture is mirrored.

    Returns:
        float64 (len(pairs),): largest correlation of the gray pictures at 64x64 pixels, without what a Gaussian of 3
        pixels leaves of them; 1 for equal details, about 0 for unrelated ones.
    """
    with ThreadPoolExecutor() as pool:
        found = pool.map(
            lambda pair: _detail_correlation(images[pair[0]], images[pair[1]], pair[2]),
            zip(pairs["first"], pairs["second"], pairs["is_mirrored"], strict=True),
        )
        return np.array(list(found), dtype=np.float64)


def _detail_correlation(first: NDArray[np.uint8], second: NDArray[np.uint8], is_mirrored: bool) -> float:
    other = fft.rfft2(_details(second, 1.0))
    upright = first[:, ::-1] if is_mirrored else first
    near = np.r_[: _MAX_DETAIL_SHIFT_PX + 1, -_MAX_DETAIL_SHIFT_PX:0]
    return max(
        float(fft.irfft2(fft.rfft2(_details(upright, scale)) * other.conj())[np.ix_(near, near)].max())
        for scale in _DETAIL_SCALES
    )


def _details(pixels: NDArray[np.uint8], scale: float) -> NDArray[np.float64]:
    """The middle of a picture, or the picture with its edges continued, at 64x64 pixels: mean 0, norm 1 (or all 0)."""
    gray = np.asarray(Image.fromarray(pixels).convert("L"))
    around = [max(0, round(side * (scale - 1) / 2)) for side in gray.shape]
    padded = Image.fromarray(np.pad(gray, [(margin, margin) for margin in around], mode="edge"))
    across, down = (side * max(0.0, (1 - scale) / 2) for side in padded.size)
    box = (across, down, padded.width - across, padded.height - down)
    small = np.asarray(padded.resize((_DETAIL_PX, _DETAIL_PX), Image.Resampling.BILINEAR, box=box), dtype=np.float64)
    details = small - gaussian_filter(small, _DETAIL_SIGMA_PX)
    details -= details.mean()
    return np.asarray(details / max(float(np.linalg.norm(details)), 1e-9))


def _hash_row(pixels: NDArray[np.uint8]) -> list[int]:
    image = Image.fromarray(pixels)
    mirrored = ImageOps.mirror(image)
    hashed = (
        imagehash.phash(image),
        imagehash.dhash(image),
        imagehash.phash(mirrored),
        imagehash.dhash(mirrored),
    )
    return [int(str(value), 16) for value in hashed]


def _close_blocks(hashes: NDArray[np.uint64], max_distance: int) -> Iterator[tuple[NDArray[np.generic], ...]]:
    """Compare a block of rows with everything after it, keeping only the close pairs."""
    num_images = len(hashes)
    num_rows = max(1, _COMPARISONS_PER_BLOCK // max(1, num_images))
    phash = hashes[:, _PHASH]
    for start in range(0, num_images, num_rows):
        rows = np.arange(start, min(start + num_rows, num_images))
        upright = np.bitwise_count(phash[rows, None] ^ phash[None, start:])
        mirrored = np.bitwise_count(hashes[rows, None, _PHASH_MIRRORED] ^ phash[None, start:])
        nearest = np.minimum(upright, mirrored)
        row, column = np.nonzero(nearest <= max_distance)
        row, column = row[column > row], column[column > row]
        if len(row) == 0:
            continue
        first, second = rows[row], column + start
        is_mirrored = mirrored[row, column] < upright[row, column]
        dhash_kind = np.where(is_mirrored, _DHASH_MIRRORED, _DHASH)
        dhash = np.bitwise_count(hashes[first, dhash_kind] ^ hashes[second, _DHASH])
        yield first, second, nearest[row, column], dhash, is_mirrored
