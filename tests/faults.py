"""The faults that the audit is to find: each planted in a data set, with the check that is meant to notice.

How they get into the files is in `plants`; the program that plants them is `planted_faults`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

from tests.changes import (
    add_noise,
    blur,
    brighten,
    curve,
    enlarge,
    frame,
    launder_chroma,
    reencode,
    rotate,
    sharpen,
    shrink,
    tint,
    upsample,
    watermark,
)
from tests.plants import (
    NUM_COPIES,
    NUM_UNDER_BOTH_LABELS,
    Pairs,
    change_fakes,
    copy_across_split,
    copy_to_other_class,
    save_differently,
    store_without_loss,
    swap_labels,
)

FORENSIC = ("spectrum", "residuals", "blocks", "levels")


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
