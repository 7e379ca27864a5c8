"""What is planted in data sets so that the audit may find it: the list of faults, and how each gets into the files.

The changes of single pictures are in `changes`, the program that plants faults is `planted_faults`.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from fakeface_lab.data.demo import MIN_SIZE_PX
from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import Split, make_split
from tests.changes import (
    QUALITY,
    add_noise,
    blur,
    brighten,
    curve,
    enlarge,
    frame,
    launder_chroma,
    open_image,
    reencode,
    rotate,
    save_jpeg,
    sharpen,
    shrink,
    tint,
    upsample,
    watermark,
)

NUM_COPIES = 20
NUM_UNDER_BOTH_LABELS = 5

CLASSES = ("fake", "real")
FORENSIC = ("spectrum", "residuals", "blocks", "levels")

Change = Callable[[Image.Image], Image.Image]
Pairs = set[frozenset[str]]  # of files, named as findings name them; a file alone where the fault is its own


@dataclass(frozen=True)
class Fault:
    """Something that makes results on a data set void, or a trace that may, and the check that is meant to notice.

    Attributes:
        name: words for the table, with a place for the strength.
        plant: puts it into a data set, in a strength; returns the pairs of files that are now one picture.
        strength: modest, as it would occur.
        sweep: other strengths, weakest first; the first one of a fault in a class leaves the pictures as they are.
        check: which check should find it.
        subjects: which probe, property or kind of duplicate the finding may be about.
        min_pairs: of the planted pairs, how many the finding must name.
    """

    name: str
    plant: Callable[[Path, float], Pairs]
    strength: float
    sweep: tuple[float, ...]
    check: str
    subjects: tuple[str, ...]
    min_pairs: int = 0


def load(root: Path, size_px: int) -> tuple[ImageSet, Split]:
    """Return the images of a folder and their documented split."""
    images = load_images(find_source(str(root), None, root, size_px), size_px)
    return images, make_split(images, "documented", 0)


def deal(photographs: Path, root: Path, seed: int) -> Path:
    """Deal the pictures of one folder to two classes at random, so that nothing tells the classes apart."""
    files = sorted(photographs.glob("*.jpg"))
    for position, number in enumerate(np.random.default_rng(seed).permutation(len(files))):
        folder = root / CLASSES[position % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(files[number], folder)
    return root


def change_fakes(root: Path, change: Change, quality: int = QUALITY, share: float = 1.0) -> Pairs:
    """Change the fakes, or a share of them, and save all files anew: nothing but the change tells the classes apart."""
    fakes = sorted((root / "fake").glob("*.jpg"))
    changed = set(fakes[: round(share * len(fakes))])
    for path in sorted(root.rglob("*.jpg")):
        picture = open_image(path)
        save_jpeg(change(picture) if path in changed else picture, path, quality if path in changed else QUALITY)
    return set()


def store_without_loss(root: Path, change: Change) -> Pairs:
    """Change the fakes and store all pictures as PNG, which keeps every trace in the pixels and none in the file."""
    for path in sorted(root.rglob("*.jpg")):
        picture = open_image(path)
        (change(picture) if path.parent.name == "fake" else picture).save(path.with_suffix(".png"))
        path.unlink()
    return set()


def save_differently(root: Path, fake: Mapping[str, object], real: Mapping[str, object]) -> Pairs:
    """Save all files anew, with these options of Pillow's JPEG encoder for each class."""
    for path in sorted(root.rglob("*.jpg")):
        options = {"quality": QUALITY, "subsampling": 0} | dict(fake if path.parent.name == "fake" else real)
        open_image(path).save(path, "JPEG", **options)
    return set()


def swap_labels(root: Path, fraction: float) -> Pairs:
    """Move a fraction of each class, picked at random, to the other class; return the files as they are then named."""
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
        changes: what is done to the copies, by turns; the files themselves are copied where there are none.
    """
    originals = sorted(root.rglob("*.jpg"))
    copies = [root / CLASSES[number % 2] / f"copy_{number:02}.jpg" for number in range(NUM_COPIES)]
    for copy in copies:  # the split depends on how many files there are and on the order of their names
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
    """Put fakes among the real faces as well: the same files, or changed and saved anew."""
    originals = sorted((root / "fake").glob("*.jpg"))[:NUM_UNDER_BOTH_LABELS]
    return {_copy(original, root / "real" / f"copy_of_{original.name}", change) for original in originals}


def _copy(original: Path, copy: Path, change: Change | None) -> frozenset[str]:
    if change is None:
        shutil.copy(original, copy)
    else:
        save_jpeg(change(open_image(original)), copy, QUALITY)
    return frozenset(f"{path.parent.name}/{path.name}" for path in (original, copy))


def _exif(software: str) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = software
    return exif


FAULTS: Mapping[str, Fault] = {
    "tint": Fault(
        "one class tinted: red +{0:g}, blue -{0:g} levels",
        lambda root, levels: change_fakes(root, lambda image: tint(image, levels)),
        strength=15,
        sweep=(0, 2, 4, 6, 8, 10, 25),
        check="probe",
        subjects=("colour", "histogram"),
    ),
    "quality": Fault(
        "one class saved at JPEG quality {0:g} instead of 95",
        lambda root, quality: change_fakes(root, lambda image: image, round(quality)),
        strength=75,
        sweep=(95, 94, 90, 85),
        check="slice",
        subjects=("jpeg_quality",),
    ),
    "framing": Fault(
        "one class framed {0:g} times larger",
        lambda root, factor: change_fakes(root, lambda image: enlarge(image, factor)),
        strength=1.2,
        sweep=(1, 1.05, 1.1, 1.15, 1.3),
        check="probe",
        subjects=("thumbnail", "border"),
    ),
    "watermark": Fault(
        "a square in a corner of one class, {0:.0%} white",
        lambda root, opacity: change_fakes(root, lambda image: watermark(image, opacity)),
        strength=0.3,
        sweep=(0, 0.01, 0.02, 0.05, 0.1),
        check="probe",
        subjects=("corners",),
    ),
    "exact copies": Fault(
        f"{NUM_COPIES} exact duplicates across the split",
        lambda root, _: copy_across_split(root),
        strength=1,
        sweep=(),
        check="straddle",
        subjects=("file",),
        min_pairs=NUM_COPIES,
    ),
    "changed copies": Fault(
        f"{NUM_COPIES} duplicates across the split: JPEG quality {{0:g}}, 3/4 of the size, mirrored, brighter",
        lambda root, quality: copy_across_split(
            root, [lambda image: reencode(image, quality), shrink, ImageOps.mirror, brighten]
        ),
        strength=75,
        sweep=(),
        check="straddle",
        subjects=("near",),
        min_pairs=NUM_COPIES * 2 // 3,  # of drawn faces, the smaller copies lose the grain that is compared
    ),
    "cropped copies": Fault(
        f"{NUM_COPIES} duplicates across the split, framed {{0:g}} times larger",
        lambda root, factor: copy_across_split(root, [lambda image: enlarge(image, factor)]),
        strength=1.05,
        sweep=(1, 1.02, 1.03, 1.07, 1.1),
        check="straddle",
        subjects=("near",),
        min_pairs=NUM_COPIES // 2,
    ),
    "both labels": Fault(
        f"{NUM_UNDER_BOTH_LABELS} files under both labels",
        lambda root, _: copy_to_other_class(root),
        strength=1,
        sweep=(),
        check="two labels",
        subjects=("the same file lies in both classes",),
        min_pairs=NUM_UNDER_BOTH_LABELS,
    ),
    "both labels, changed": Fault(
        f"{NUM_UNDER_BOTH_LABELS} pictures under both labels, saved anew at JPEG quality {{0:g}}",
        lambda root, quality: copy_to_other_class(root, lambda image: reencode(image, quality)),
        strength=75,
        sweep=(),
        check="two labels",
        subjects=("near",),
        min_pairs=NUM_UNDER_BOTH_LABELS // 2,
    ),
}


def _trace(name: str, plant: Callable[[Path, float], Pairs], strength: float, *sweep: float) -> Fault:
    return Fault(name, plant, strength, sweep, "trace", FORENSIC)


def _changed(change: Callable[[Image.Image, float], Image.Image]) -> Callable[[Path, float], Pairs]:
    return lambda root, strength: change_fakes(root, lambda image: change(image, strength))


DEALT_FAULTS: Mapping[str, Fault] = {
    "blurred": _trace("one class blurred by sigma {0:g}", _changed(blur), 1.5, 0, 0.3, 0.4, 0.5),
    "hardly blurred": _trace("one class blurred by sigma {0:g}", _changed(blur), 0.7),
    "up-sampled": _trace("one class scaled down by {0:g} and up again", _changed(upsample), 2, 1, 1.1, 1.25, 1.5),
    "sharpened": _trace("one class sharpened by {0:g} %", _changed(sharpen), 50, 0, 5, 10, 25),
    "cropped": _trace(
        "one class cropped by {0:g} % and scaled back",
        lambda root, percent: change_fakes(root, lambda image: enlarge(image, 1 / (1 - percent / 100))),
        5,
        0,
        1,
        2,
    ),
    "rotated": _trace("one class rotated by {0:g} degrees", _changed(rotate), 2, 0, 0.25, 0.5, 1),
    "gamma": _trace(
        "one class changed by a gamma of {0:g}, all stored without loss",
        lambda root, gamma: store_without_loss(root, lambda image: curve(image, gamma)),
        0.92,
        1,
        0.99,
        0.98,
        0.96,
    ),
    "gamma in a JPEG": _trace("one class changed by a gamma of {0:g}", _changed(curve), 0.85, 1, 0.98, 0.95, 0.92),
    "laundered chroma": _trace(
        "one class saved as 4:2:0 once, then all as 4:4:4",
        lambda root, _: change_fakes(root, launder_chroma),
        1,
    ),
    "noise": _trace("one class with noise of sigma {0:g}", _changed(add_noise), 4, 0, 0.5, 1, 2),
    "hidden quality": _trace(
        "one class saved at JPEG quality {0:g} once, then all at 95", _changed(reencode), 75, 100, 97, 95, 92, 90, 85
    ),
    "stored without loss": _trace(
        "one class at JPEG quality {0:g}, all stored without loss",
        lambda root, quality: store_without_loss(root, lambda image: reencode(image, quality)),
        75,
        100,
        97,
        95,
        92,
        90,
    ),
    "some with a watermark": Fault(
        "a square in a corner of 30 % of one class, {0:.0%} white",
        lambda root, opacity: change_fakes(root, lambda image: watermark(image, opacity), share=0.3),
        strength=1,
        sweep=(0, 0.1, 0.3, 0.5),
        check="probe",
        subjects=("corners", "border"),
    ),
    "1-px border": Fault(
        "one class with a black border of {0:g} px",
        _changed(frame),
        strength=1,
        sweep=(),
        check="probe",
        subjects=("border", "corners", "thumbnail"),
    ),
    "subsampling": Fault(
        "one class saved as 4:2:0 instead of 4:4:4",
        lambda root, _: save_differently(root, {"subsampling": 2}, {}),
        strength=1,
        sweep=(),
        check="slice",
        subjects=("chroma_subsampling",),
    ),
    "EXIF": Fault(
        "EXIF in one class",
        lambda root, _: save_differently(root, {"exif": _exif("Camera")}, {}),
        strength=1,
        sweep=(),
        check="slice",
        subjects=("exif", "metadata"),
    ),
    "EXIF content": Fault(
        "EXIF that names another program in one class",
        lambda root, _: save_differently(root, {"exif": _exif("Generator")}, {"exif": _exif("Camera")}),
        strength=1,
        sweep=(),
        check="slice",
        subjects=("exif",),
    ),
    "resolution": Fault(
        "{0:g} dpi declared in one class, 72 in the other",
        lambda root, dpi: save_differently(root, {"dpi": (dpi, dpi)}, {"dpi": (72, 72)}),
        strength=96,
        sweep=(),
        check="slice",
        subjects=("dpi",),
    ),
}
"""Faults in pictures of one source, dealt to two classes at random."""

WRONG_LABELS = Fault(
    "{0:.0%} of the labels of each class wrong",
    swap_labels,
    strength=0.05,
    sweep=(0, 0.01, 0.02, 0.1),
    check="labels",
    subjects=("suspect labels",),
    min_pairs=1,
)
"""In two classes that can be told apart: where they cannot, no label can be called wrong."""
