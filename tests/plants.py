"""Planting of faults in the files of a data set.

`changes` has the changes of single pictures, `faults` the list of faults.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fakeface_lab.data.demo import MIN_SIZE_PX, generate_demo
from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import Split, make_split
from tests.changes import QUALITY, open_image, save_jpeg

SIZE_PX, NUM_PER_CLASS = 64, 80  # of the drawn faces that tests plant faults in
NUM_COPIES = 20
NUM_UNDER_BOTH_LABELS = 5

CLASSES = ("fake", "real")

Change = Callable[[Image.Image], Image.Image]
Pairs = set[frozenset[str]]  # of files, named as in findings; a single file if the fault concerns only one


def draw_faces(root: Path, seed: int = 0) -> Path:
    """Draw a clean set."""
    return generate_demo(root, NUM_PER_CLASS, SIZE_PX, seed)


def load(root: Path, size_px: int) -> tuple[ImageSet, Split]:
    """Return the images of a folder and their documented split."""
    images = load_images(find_source(str(root), None, root, size_px), size_px)
    return images, make_split(images, "documented", 0)


def deal(photographs: Path, root: Path, seed: int) -> Path:
    """Deal the pictures of one folder to two classes at random, so that nothing separates the classes."""
    files = sorted(photographs.glob("*.jpg"))
    for position, number in enumerate(np.random.default_rng(seed).permutation(len(files))):
        folder = root / CLASSES[position % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[number], folder)
    return root


def change_fakes(root: Path, change: Change, quality: int = QUALITY, share: float = 1.0) -> Pairs:
    """Change the fakes, or a share of them, and save all files again, so that only the change separates the classes."""
    fakes = sorted((root / "fake").glob("*.jpg"))
    changed = set(fakes[: round(share * len(fakes))])
    for path in sorted(root.rglob("*.jpg")):
        picture = open_image(path)
        save_jpeg(change(picture) if path in changed else picture, path, quality if path in changed else QUALITY)
    return set()


def store_without_loss(root: Path, change: Change) -> Pairs:
    """Change the fakes and save all pictures as PNG, which keeps traces in the pixels but none in the file."""
    for path in sorted(root.rglob("*.jpg")):
        picture = open_image(path)
        (change(picture) if path.parent.name == "fake" else picture).save(path.with_suffix(".png"))
        path.unlink()
    return set()


def save_differently(root: Path, fake: Mapping[str, object], real: Mapping[str, object]) -> Pairs:
    """Save all files again, with these options of Pillow's JPEG encoder per class."""
    for path in sorted(root.rglob("*.jpg")):
        options = {"quality": QUALITY, "subsampling": 0} | dict(fake if path.parent.name == "fake" else real)
        open_image(path).save(path, "JPEG", **options)
    return set()


def swap_labels(root: Path, fraction: float) -> Pairs:
    """Move a random fraction of each class to the other class; return the new names of the files."""
    rng, moved = np.random.default_rng(0), set()
    files = {name: sorted((root / name).glob("*.jpg")) for name in CLASSES}
    for name, other in (CLASSES, CLASSES[::-1]):
        for number in rng.permutation(len(files[name]))[: round(fraction * len(files[name]))]:
            path = files[name][number]
            path.rename(root / other / f"swapped_{path.name}")
            moved.add(frozenset([f"{other}/swapped_{path.name}"]))
    return moved


def copy_across_split(root: Path, changes: Sequence[Change] = ()) -> Pairs:
    """Add copies of faces of both classes, each on the other side of the split than its original.

    Args:
        root: of the data set.
        changes: applied to the copies in turn; without changes the files themselves are copied.
    """
    originals = sorted(root.rglob("*.jpg"))
    copies = [root / CLASSES[number % 2] / f"copy_{number:02}.jpg" for number in range(NUM_COPIES)]
    for copy in copies:  # the split depends on the number of files and on the order of their names
        shutil.copy(next(path for path in originals if path.parent == copy.parent), copy)
    images, split = load(root, MIN_SIZE_PX)
    test = {images.files[row].path for row in split.test}
    pairs = set()
    for number, copy in enumerate(copies):
        original = next(path for path in originals if path.parent == copy.parent and (path in test) != (copy in test))
        originals.remove(original)
        pairs.add(_copy(original, copy, changes[number // 2 % len(changes)] if changes else None))
    return pairs


def copy_to_other_class(root: Path, change: Change | None = None) -> Pairs:
    """Copy fakes to the real faces: the same files, or changed and saved again."""
    originals = sorted((root / "fake").glob("*.jpg"))[:NUM_UNDER_BOTH_LABELS]
    return {_copy(original, root / "real" / f"copy_of_{original.name}", change) for original in originals}


def _copy(original: Path, copy: Path, change: Change | None) -> frozenset[str]:
    if change is None:
        shutil.copy(original, copy)
    else:
        save_jpeg(change(open_image(original)), copy, QUALITY)
    return frozenset(f"{path.parent.name}/{path.name}" for path in (original, copy))
