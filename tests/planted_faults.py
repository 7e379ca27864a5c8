"""Program: does the audit find faults that are planted in drawn faces, and stay quiet where there is none?

    python -m tests.planted_faults
    python -m tests.planted_faults --per-class 100 --seeds 5 --sweep

Each fault is planted in its own copy of one clean set, as weak as it would occur, and the checks of
`python -m fakeface_lab.audit` look at the copy. The first table says by which check it was found. The second one is
about clean sets that are drawn anew from each seed: how many of them raised an alarm (severity warn or fail), and how
near each shortcut probe came to one. `--sweep` adds a table of other strengths of the same faults, which changes no
exit code. Exit code 0: each fault raised an alarm of the check that is meant for it, and no clean set raised any; 1:
otherwise.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from fakeface_lab.data.demo import MIN_SIZE_PX, generate_demo
from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import Split, make_split
from fakeface_lab.evaluation.audit import AuditSettings
from fakeface_lab.evaluation.card import Finding
from fakeface_lab.worth.inspection import Inspection, inspect_images

QUALITY = 95  # of the drawn faces, and of all files that are saved anew where the quality is not the fault
NUM_COPIES = 20
MIN_PER_CLASS = 80  # a pure slice of fewer than 73 images is not yet called pure, and 20 copies need room in the split
NUM_UNDER_BOTH_LABELS = 5

CLASSES = ("fake", "real")

Change = Callable[[Image.Image], Image.Image]
Pairs = set[frozenset[str]]  # of files, named as findings name them


@dataclass(frozen=True)
class Fault:
    """Something that makes results on a data set void, and the check that is meant to notice.

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


@dataclass(frozen=True)
class Outcome:
    """What the audit said of one planted fault.

    Attributes:
        finding: the alarm that is meant for it, None where there was none.
        figure: what this finding measured.
        others: subjects of the other alarms.
    """

    finding: Finding | None
    figure: str
    others: list[str]


def load(root: Path, size_px: int) -> tuple[ImageSet, Split]:
    """Return the images of a folder and their documented split."""
    images = load_images(find_source(str(root), None, root, size_px), size_px)
    return images, make_split(images, "documented", 0)


def inspect(root: Path, size_px: int) -> Inspection:
    """Run the audit's checks on a folder."""
    return inspect_images(*load(root, size_px), AuditSettings(), seed=0)


def alarms(inspection: Inspection) -> list[Finding]:
    """Return the findings that do more than inform."""
    return [finding for finding in inspection.card.findings if finding.severity != "info"]


def try_fault(fault: Fault, clean: Path, size_px: int, strength: float) -> Outcome:
    """Plant a fault in a copy of a clean set and let the audit look at it."""
    with _scratch() as folder:
        root = shutil.copytree(clean, folder / "planted")
        planted = fault.plant(root, strength)
        raised = alarms(inspect(root, size_px))
    meant = [
        finding
        for finding in raised
        if finding.check == fault.check
        and _subject(finding) in fault.subjects
        and _num_named(finding, planted) >= fault.min_pairs
    ]
    best = meant[0] if meant else None  # they are sorted, worst first
    figure = "" if best is None else _figure(best, planted)
    return Outcome(best, figure, [_subject(finding) for finding in raised if finding is not best])


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for one data set and its decoded pixels, which are hundreds of megabytes over all sets."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, FAKEFACE_CACHE=f"{folder}/cache"):
        yield Path(folder)


def _subject(finding: Finding) -> str:
    return next(
        str(finding.evidence[key]) for key in ("probe", "property", "kind", "reason") if key in finding.evidence
    )


def _num_named(finding: Finding, planted: Pairs) -> int:
    pairs = {frozenset(pair) for pair in finding.evidence.get("pairs", [])}
    files = set(finding.evidence.get("files", []))
    return sum(pair in pairs or pair <= files for pair in planted)


def _figure(finding: Finding, planted: Pairs) -> str:
    evidence = finding.evidence
    if finding.check == "probe":
        right = f"{evidence['accuracy_num_correct']:.0f}/{evidence['accuracy_num_total']:.0f}"
        return f"accuracy {right}, AUC {evidence['auc']:.3f}, p {evidence['holm_p']:.0e}"
    if finding.check == "slice":
        rows = evidence["slices"]
        pure = ", ".join(f"{row['purity_num_correct']:.0f}/{row['purity_num_total']:.0f}" for row in rows)
        return f"pure {pure}, p {max(row['holm_p'] for row in rows):.0e}"
    return f"{_num_named(finding, planted)}/{len(planted)} pairs"


def change_fakes(root: Path, change: Change, quality: int = QUALITY) -> Pairs:
    """Change the fakes, and save the real faces anew as well, so that nothing but the change tells them apart."""
    for path in sorted(root.rglob("*.jpg")):
        is_fake = path.parent.name == "fake"
        picture = _open(path)
        _save(change(picture) if is_fake else picture, path, quality if is_fake else QUALITY)
    return set()


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
        _save(change(_open(original)), copy, QUALITY)
    return frozenset(f"{path.parent.name}/{path.name}" for path in (original, copy))


def _open(file: Path | BytesIO) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _save(image: Image.Image, file: Path | BytesIO, quality: int) -> None:
    image.save(file, "JPEG", quality=quality, subsampling=0)


def tint(image: Image.Image, levels: float) -> Image.Image:
    """Make red brighter and blue darker."""
    pixels = np.asarray(image) + np.array([levels, 0, -levels])
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def reencode(image: Image.Image, quality: float) -> Image.Image:
    """Leave the traces of a JPEG quality in the pixels."""
    encoded = BytesIO()
    _save(image, encoded, round(quality))
    return _open(encoded)


def enlarge(image: Image.Image, factor: float) -> Image.Image:
    """Show the middle larger, in a picture of the same size."""
    margin_px = image.width * (1 - 1 / factor) / 2
    box = (margin_px, margin_px, image.width - margin_px, image.height - margin_px)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def watermark(image: Image.Image, opacity: float) -> Image.Image:
    """Lay a white square of a sixteenth of the edge over the lower right corner."""
    edge_px = image.width // 16
    veil = Image.new("L", (edge_px, edge_px), round(255 * opacity))
    marked = image.copy()
    marked.paste(Image.new("RGB", veil.size, "white"), (image.width - edge_px - 1, image.height - edge_px - 1), veil)
    return marked


def _shrink(image: Image.Image) -> Image.Image:
    return image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.BICUBIC)


def _brighten(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.1)


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
    "hidden quality": Fault(
        "one class saved at JPEG quality {0:g} once, then all at 95",
        lambda root, quality: change_fakes(root, lambda image: reencode(image, quality)),
        strength=75,
        sweep=(100, 95, 92, 90, 85, 80),
        check="probe",
        subjects=("file",),
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
            root, [lambda image: reencode(image, quality), _shrink, ImageOps.mirror, _brighten]
        ),
        strength=75,
        sweep=(),
        check="straddle",
        subjects=("near",),
        min_pairs=NUM_COPIES * 3 // 4,
    ),
    "cropped copies": Fault(
        f"{NUM_COPIES} duplicates across the split, framed {{0:g}} times larger",
        lambda root, factor: copy_across_split(root, [lambda image: enlarge(image, factor)]),
        strength=1.02,
        sweep=(1, 1.03, 1.05, 1.1),
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant what the command line says, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=300, help="faces of each class (default 300)")
    parser.add_argument("--size-px", type=int, default=64, help="their edge (default 64)")
    parser.add_argument("--seeds", type=int, default=20, help="clean sets (default 20)")
    parser.add_argument("--sweep", action="store_true", help="plant the faults in other strengths too")
    given = parser.parse_args(arguments)
    if given.per_class < MIN_PER_CLASS:
        parser.error(f"--per-class {given.per_class}: too few to plant every fault; give {MIN_PER_CLASS} or more")
    with tempfile.TemporaryDirectory() as folder:
        clean = generate_demo(Path(folder) / "clean", given.per_class, given.size_px, seed=0)
        outcomes = {name: try_fault(fault, clean, given.size_px, fault.strength) for name, fault in FAULTS.items()}
        _print_table(["planted", "found", "by", "figure", "it says", "alarms beside"], _fault_rows(outcomes))
        if given.sweep:
            swept = (fault for fault in FAULTS.values() if fault.sweep)
            _print_table(["planted", "found at"], (_sweep_row(fault, clean, given.size_px) for fault in swept))
    num_alarmed = _try_clean_sets(given.seeds, given.per_class, given.size_px)
    return 1 if num_alarmed or any(outcome.finding is None for outcome in outcomes.values()) else 0


def _fault_rows(outcomes: Mapping[str, Outcome]) -> Iterator[list[str]]:
    for name, outcome in outcomes.items():
        planted, finding = FAULTS[name].name.format(FAULTS[name].strength), outcome.finding
        others = ", ".join(outcome.others)
        if finding is None:
            yield [planted, "**no**", "", "", "", others]
        else:
            by = f"{finding.check}: {_subject(finding)}"
            words = " ".join(finding.sentence.split()[:12]) + " ..."
            yield [planted, finding.severity, by, outcome.figure, words, others]


def _sweep_row(fault: Fault, clean: Path, size_px: int) -> list[str]:
    cells = []
    for strength in fault.sweep:
        outcome = try_fault(fault, clean, size_px, strength)
        found = f"{outcome.finding.severity} ({outcome.figure})" if outcome.finding else "no"
        cells.append(f"{strength:g}: {found}")
    return [fault.name.format(fault.strength), "; ".join(cells)]


def _try_clean_sets(num_seeds: int, num_per_class: int, size_px: int) -> int:
    """Print what clean sets of `num_seeds` seeds led to; return how many raised an alarm."""
    num_alarms, num_alarmed = 0, 0
    largest: dict[str, float] = {}
    for seed in range(num_seeds):
        with _scratch() as folder:
            inspection = inspect(generate_demo(folder / "clean", num_per_class, size_px, seed), size_px)
        num_alarms += len(alarms(inspection))
        num_alarmed += bool(alarms(inspection))
        for probe in inspection.card.probes:
            if probe.kind == "shortcut":
                largest[probe.name] = max(probe.auc, largest.get(probe.name, 0.0))
    header = ["clean sets", "alarms", *(f"{name}, largest AUC" for name in largest)]
    _print_table(header, [[str(num_seeds), str(num_alarms), *(f"{auc:.3f}" for auc in largest.values())]])
    return num_alarmed


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
