"""Who is in which split, and the ledger that says so for good.

`documented` is the split of the document: 80/20, and the test images are also the validation images. `sealed` has
a test split that only a final evaluation opens, and keeps near-duplicates on one side.
"""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from fakeface_lab.data.hashes import near_duplicate_groups, perceptual_hashes
from fakeface_lab.data.images import ImageSet
from fakeface_lab.data.sources import ImageFile
from fakeface_lab.errors import DataError

__all__ = ["TEST", "TRAIN", "VALIDATION", "Split", "make_split", "read_ledger", "write_ledger"]

TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"

DOCUMENTED_TRAIN_FRACTION = 0.8

# Largest Hamming distance between two 64-bit perceptual hashes that still count as the same picture.
NEAR_DUPLICATE_DISTANCE = 4

# Five folds give 20 % for the test split, and five of the rest 16 % for the validation split.
NUM_FOLDS = 5

LEDGER_COLUMNS = ("file", "sha256", "label", "split")


@dataclass(frozen=True)
class Split:
    """Row numbers of each split, in an order that is part of the split.

    Attributes:
        name: `documented` or `sealed`.
        seed: what it was drawn with.
        train: int64 row numbers into the image set.
        validation: the images an epoch is judged on; in `documented` the test images themselves.
        test: the images of the final figure.
    """

    name: str
    seed: int
    train: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]

    @property
    def test_is_validation(self) -> bool:
        """Whether the test images were looked at in every epoch, as the document did."""
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
    """Shuffle with Python's generator and cut at int(0.8 n), as the document does."""
    order = list(range(len(files)))
    random.Random(seed).shuffle(order)
    cut = int(DOCUMENTED_TRAIN_FRACTION * len(order))
    test = np.array(order[cut:], dtype=np.int64)
    return Split("documented", seed, np.array(order[:cut], dtype=np.int64), test, test)


def _sealed(images: ImageSet, seed: int) -> Split:
    groups = near_duplicate_groups(perceptual_hashes(images.pixels), NEAR_DUPLICATE_DISTANCE)
    rest, test = _one_fold(np.arange(len(images.labels)), images, groups, seed)
    train, validation = _one_fold(rest, images, groups, seed)
    return Split("sealed", seed, train, validation, test)


def _one_fold(
    rows: npt.NDArray[np.int64], images: ImageSet, groups: npt.NDArray[np.int64], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    smallest = min(int((images.labels[rows] == label).sum()) for label in (0, 1))
    if smallest < NUM_FOLDS:
        raise DataError(f"{images.source.root}: a sealed split needs more images; a class is down to {smallest}")
    num_groups = len(np.unique(groups[rows]))
    if num_groups < NUM_FOLDS:
        raise DataError(
            f"{images.source.root}: a sealed split keeps near-duplicates together, and there are only {num_groups} "
            f"different pictures; give more of them"
        )
    folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    kept, held_out = next(iter(folds.split(rows, images.labels[rows], groups[rows])))
    return rows[kept], rows[held_out]


def write_ledger(split: Split, images: ImageSet, path: Path) -> None:
    """Write one row an image (file, sha256, label, split), in the order of the split."""
    parts = [(TRAIN, split.train), (TEST, split.test)]
    if not split.test_is_validation:
        parts.insert(1, (VALIDATION, split.validation))
    # Names may hold bytes that are no UTF-8; they come back as they were.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow((*LEDGER_COLUMNS, f"# split={split.name} seed={split.seed}"))
        for part, members in parts:
            for row in members:
                image = images.files[row]
                rows.writerow((image.name, image.sha256, images.source.class_names[image.label], part))


def read_ledger(path: Path, images: ImageSet) -> Split:
    """Return the split a ledger describes, as rows of `images`.

    Raises:
        DataError: the file is no ledger, or it names an image that the set lacks or whose content has changed.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *lines = csv.reader(file)
        facts = dict(pair.split("=") for pair in header[-1].split() if "=" in pair)
        split_name, seed = facts["split"], int(facts["seed"])
        entries = [((name, sha256), part) for name, sha256, _, part in lines]
    except (OSError, ValueError, LookupError, csv.Error) as err:
        raise DataError(f"{path}: not a split ledger ({err}); give the split.csv of a run") from err
    rows_by_file = {(file.name, file.sha256): row for row, file in enumerate(images.files)}
    members: dict[str, list[int]] = {TRAIN: [], VALIDATION: [], TEST: []}
    for (name, sha256), part in entries:
        if (name, sha256) not in rows_by_file:
            raise DataError(
                f"{path.name}: {name} is not among the images of {images.source.root}, or its content has changed; "
                f"give the data set that the run was made with"
            )
        if part not in members:
            raise DataError(f"{path.name}: {name} is in split {part!r}; allowed are {', '.join(members)}")
        members[part].append(rows_by_file[name, sha256])
    train, validation, test = (np.array(members[part], dtype=np.int64) for part in (TRAIN, VALIDATION, TEST))
    return Split(split_name, seed, train, validation if len(validation) else test, test)
