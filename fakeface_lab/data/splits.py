"""Splits, the file that records one, and the look-alikes that must not end up on two sides of a split.

The `documented` split is 80/20, and its test images are also the validation images. The `sealed` split is 64/16/20, has
a test split that only a final evaluation opens, and keeps near-duplicates together. Look-alikes are found by perceptual
hashes; the audit compares their details too.
"""

import csv
import hashlib
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import imagehash
import numpy as np
import numpy.typing as npt
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import fft
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from fakeface_lab.data.images import ImageSet
from fakeface_lab.data.sources import ImageFile
from fakeface_lab.errors import DataError

__all__ = [
    "HASH_KINDS",
    "TEST",
    "TRAIN",
    "VALIDATION",
    "Split",
    "closest_pairs",
    "detail_correlations",
    "make_split",
    "near_duplicate_groups",
    "perceptual_hashes",
    "pixel_digests",
    "read_split",
    "write_split",
]

TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"

DOCUMENTED_TRAIN_FRACTION = 0.8

# Five folds give 20 % for the test split, and five of the rest 16 % for the validation split.
NUM_SPLIT_FOLDS = 5

SPLIT_COLUMNS = ("file", "sha256", "label", "split")

# Largest Hamming distance between two 64-bit perceptual hashes that still count as the same picture.
# The nearest two of the 1,289 documented images are 6 bits apart, upright or mirrored, and they are not the same.
NEAR_DUPLICATE_DISTANCE = 4

HASH_KINDS = ("phash", "dhash", "phash_mirrored", "dhash_mirrored")
"""Columns of a hash array; mirrored means left-right."""

_PHASH, _DHASH, _PHASH_MIRRORED, _DHASH_MIRRORED = range(len(HASH_KINDS))
_DETAIL_PX = 64
_DETAIL_SIGMA_PX = 3.0  # of the removed Gaussian: aligned portraits have similar light and background
# Of the copies framed 1.05 times larger all 20 photographs are found and 18 of 20 drawn faces (docs/truth.md).
_DETAIL_SCALES = (0.95, 0.975, 1.0, 1.025, 1.05)
_MAX_DETAIL_SHIFT_PX = 4
_COMPARISONS_PER_BLOCK = 1 << 22  # 32 MiB of XORed hashes at a time


def perceptual_hashes(images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Four 64-bit hashes of each picture: pHash and dHash, upright and mirrored.

    Args:
        images: uint8 (N, H, W, 3), RGB; may be memory-mapped, one picture is read at a time.

    Returns:
        uint64 (N, 4), columns as in `HASH_KINDS`. pHash holds the signs of the 8x8 lowest cosine
        frequencies against their median, dHash the signs of horizontal differences (both ImageHash).
    """
    with ThreadPoolExecutor() as pool:  # Pillow releases the GIL while it resizes
        rows = list(pool.map(_hash_row, images))
    return np.array(rows, dtype=np.uint64).reshape(len(rows), len(HASH_KINDS))


def pixel_digests(images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> list[str]:
    """BLAKE2b digest (hexadecimal) of each picture's pixels, equal for the same picture in different files."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda pixels: hashlib.blake2b(np.ascontiguousarray(pixels).data).hexdigest(), images))


def near_duplicate_groups(hashes: NDArray[np.uint64], max_distance: int = 4) -> NDArray[np.int64]:
    """Group pictures that look the same, upright or mirrored, directly or via others.

    Args:
        hashes: uint64 (N, 4) from `perceptual_hashes`.
        max_distance: largest pHash distance in bits, 0 to 64, at which two pictures are joined.

    Returns:
        int64 (N,): group ids 0, 1, ... in the order of their first member. A picture without near-duplicates is a
        separate group.
    """
    if len(hashes) == 0:
        return np.zeros(0, dtype=np.int64)
    # Equal rows share a node, because ten thousand copies of a picture would make fifty million pairs.
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
        One row per pair: `first` < `second` (positions), `phash_bits` and `dhash_bits` (distances in the orientation
        with the smaller pHash distance, 0 to 64), `is_mirrored` (whether that is the mirrored one). Sorted by
        `phash_bits`, `dhash_bits`, positions.
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
    """How well the details of look-alikes agree, which 64-bit hashes cannot tell.

    Brightness, contrast and small differences in framing do not matter: the best of five scales (0.95 to 1.05) and of
    shifts up to 4 of 64 pixels counts.

    Args:
        images: uint8 (N, H, W, 3), RGB; may be memory-mapped.
        pairs: from `closest_pairs`; if `is_mirrored`, the first picture is mirrored.

    Returns:
        float64 (len(pairs),): largest correlation of the gray pictures at 64x64 pixels after subtracting a Gaussian
        blur of 3 pixels; 1 for equal details, about 0 for unrelated ones.
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
    # In a circular correlation the shifts in the negative direction stand at the end.
    near = np.r_[: _MAX_DETAIL_SHIFT_PX + 1, -_MAX_DETAIL_SHIFT_PX:0]
    return max(
        float(fft.irfft2(fft.rfft2(_details(upright, scale)) * other.conj())[np.ix_(near, near)].max())
        for scale in _DETAIL_SCALES
    )


def _details(pixels: NDArray[np.uint8], scale: float) -> NDArray[np.float64]:
    """The details of a picture, cropped or edge-padded to the scale, (64, 64): mean 0, norm 1 (or all 0)."""
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
    """Compare each block of rows with all later rows and yield the close pairs."""
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


@dataclass(frozen=True)
class Split:
    """Row numbers of each split; their order is part of the split.

    Attributes:
        name: `documented` or `sealed`.
        seed: it was drawn with.
        train: int64 row numbers into the image set.
        validation: rows of the images that epochs are judged on; in `documented` the test images.
        test: rows of the images for the final figure.
    """

    name: str
    seed: int
    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]

    @property
    def test_is_validation(self) -> bool:
        """Whether the test images are scored in every epoch, as documented."""
        return self.name == "documented"


def make_split(images: ImageSet, name: str, seed: int) -> Split:
    """Return the split called `name`; the same images, name and seed give the same split.

    Raises:
        DataError: a class has too few images for every split to hold both classes.
    """
    split = _documented(images.files, seed) if name == "documented" else _sealed(images, seed)
    for part in (TRAIN, VALIDATION, TEST):
        present = set(images.labels[getattr(split, part)].tolist())
        if len(present) < len(images.source.class_names):
            counts = ", ".join(f"{count} {label}" for label, count in images.class_counts().items())
            raise DataError(f"{images.source.root}: too few images for a {name} split ({counts}): {part} lacks a class")
    return split


def _documented(files: Sequence[ImageFile], seed: int) -> Split:
    """Shuffle with Python's generator and cut at int(0.8 n), as documented."""
    order = list(range(len(files)))
    random.Random(seed).shuffle(order)
    cut = int(DOCUMENTED_TRAIN_FRACTION * len(order))
    test = np.array(order[cut:], dtype=np.int64)
    return Split("documented", seed, np.array(order[:cut], dtype=np.int64), test, test)


def _sealed(images: ImageSet, seed: int) -> Split:
    groups = near_duplicate_groups(perceptual_hashes(images.pixels), NEAR_DUPLICATE_DISTANCE)
    # The test split first, so that it does not depend on how the rest is divided.
    rest, test = _one_fold(np.arange(len(images.labels)), images, groups, seed)
    train, validation = _one_fold(rest, images, groups, seed)
    return Split("sealed", seed, train, validation, test)


def _one_fold(
    rows: npt.NDArray[np.int64], images: ImageSet, groups: npt.NDArray[np.int64], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    smallest = min(int((images.labels[rows] == label).sum()) for label in (0, 1))
    if smallest < NUM_SPLIT_FOLDS:
        raise DataError(f"{images.source.root}: a sealed split needs more images; a class is down to {smallest}")
    num_groups = len(np.unique(groups[rows]))
    if num_groups < NUM_SPLIT_FOLDS:
        raise DataError(
            f"{images.source.root}: a sealed split keeps near-duplicates together, and there are only {num_groups} "
            f"different pictures; give more of them"
        )
    folds = StratifiedGroupKFold(NUM_SPLIT_FOLDS, shuffle=True, random_state=seed)
    kept, held_out = next(iter(folds.split(rows, images.labels[rows], groups[rows])))
    return rows[kept], rows[held_out]


def write_split(split: Split, images: ImageSet, path: Path) -> None:
    """Write one row per image (file, sha256, label, split), in the order of the split."""
    parts = [(TRAIN, split.train), (TEST, split.test)]
    if not split.test_is_validation:
        parts.insert(1, (VALIDATION, split.validation))
    # Names may contain bytes that are not UTF-8; reading restores them.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file)
        # In the header, because a separate comment line would be a row of the table to pandas.
        rows.writerow((*SPLIT_COLUMNS, f"# split={split.name} seed={split.seed}"))
        for part, members in parts:
            for row in members:
                image = images.files[row]
                rows.writerow((image.name, image.sha256, images.source.class_names[image.label], part))


def read_split(path: Path, images: ImageSet) -> Split:
    """Return the split that `write_split` wrote, as rows of `images`.

    Raises:
        DataError: the file is not a split file, or it names an image that is missing from the set or has changed.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *lines = csv.reader(file)
        facts = dict(pair.split("=") for pair in header[-1].split() if "=" in pair)
        split_name, seed = facts["split"], int(facts["seed"])
        entries = [((name, sha256), part) for name, sha256, _, part in lines]
    except (OSError, ValueError, LookupError, csv.Error) as err:
        raise DataError(f"{path}: not a split file ({err}); give the split.csv of a run") from err
    rows_by_file = {(file.name, file.sha256): row for row, file in enumerate(images.files)}
    members: dict[str, list[int]] = {TRAIN: [], VALIDATION: [], TEST: []}
    for (name, sha256), part in entries:
        if (name, sha256) not in rows_by_file:
            raise DataError(
                f"{path.name}: {name} is not among the images of {images.source.root}, or its content has changed; "
                f"give the data set that the run was made with"
            )
        if part not in members:
            raise DataError(f"{path.name}: {name} is in split {part!r}; expected {', '.join(members)}")
        members[part].append(rows_by_file[name, sha256])
    train, validation, test = (np.array(members[part], dtype=np.int64) for part in (TRAIN, VALIDATION, TEST))
    # The file of a documented split lists its images once, as test images.
    return Split(split_name, seed, train, validation if len(validation) else test, test)
