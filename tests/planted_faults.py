"""Program: does the audit find planted faults, and raise no alarm without them?

    python -m tests.planted_faults
    python -m tests.planted_faults --per-class 100 --seeds 5 --sweep
    python -m tests.planted_faults --photographs FOLDER

Each fault is planted in its own copy of a clean set, as weak as it might occur in practice, and the copy goes through
the checks of `python -m fakeface_lab.audit`. Some faults are planted in the two drawn classes; those that leave traces
are planted in pictures of one source that are dealt to two classes at random: drawn faces, or the photographs in
FOLDER/real. The first table lists the check that found each fault. The last one is about clean sets, drawn or dealt
from each seed: the number of false alarms, and the largest AUC of each probe. Drawn fakes have the traces of a
generator, so that a trace is not a false alarm in drawn sets, but it is in dealt ones. `--sweep` adds a table of other
strengths, which does not affect the exit code: 0 if each fault was found by its own check and no clean set raised a
false alarm, else 1.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from unittest.mock import patch

from fakeface_lab.assess.inspection import Inspection, inspect_images
from fakeface_lab.data.demo import generate_demo
from fakeface_lab.evaluation.audit.audit import AuditSettings
from fakeface_lab.evaluation.audit.card import Finding
from tests.faults import DEALT_FAULTS, FAULTS, WRONG_LABELS, Fault
from tests.plants import Pairs, deal, load

MIN_PER_CLASS = 80  # a slice of fewer than 73 images is never called pure, and copies need room in the split


@dataclass(frozen=True)
class Outcome:
    """The audit's result for one planted fault.

    Attributes:
        finding: of the check meant for the fault, or None.
        figure: of this finding.
        others: subjects of the other findings.
        verdict: the audit in words.
    """

    finding: Finding | None
    figure: str
    others: list[str]
    verdict: str


def inspect(root: Path, size_px: int) -> Inspection:
    """Run the audit's checks on a folder."""
    return inspect_images(*load(root, size_px), AuditSettings(), seed=0)


def alarms(inspection: Inspection) -> list[Finding]:
    """Return the findings that void or inflate results."""
    return inspection.card.alarms


def differences(inspection: Inspection) -> list[Finding]:
    """Return the findings that separate the classes, including traces; dealt pictures must not have any."""
    return [finding for finding in inspection.card.findings if finding.check in ("probe", "trace", "slice", "labels")]


def try_fault(fault: Fault, clean: Path, size_px: int, strength: float) -> Outcome:
    """Plant a fault in a copy of a clean set and audit it."""
    with _scratch() as folder:
        root = shutil.copytree(clean, folder / "planted")
        planted = fault.plant(root, strength)
        card = inspect(root, size_px).card
    meant = [
        finding
        for finding in card.findings
        if finding.check == fault.check
        and _subject(finding) in fault.subjects
        and _num_named(finding, planted) >= fault.min_pairs
    ]
    best = meant[0] if meant else None  # they are sorted, worst first
    figure = "" if best is None else _figure(best, planted)
    return Outcome(best, figure, [_subject(finding) for finding in card.findings if finding is not best], card.verdict)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A temporary folder for one data set and its pixels, which take hundreds of megabytes over all sets."""
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
    if "auc" in evidence:
        right = f"{evidence['accuracy_num_correct']:.0f}/{evidence['accuracy_num_total']:.0f}"
        return f"accuracy {right}, AUC {evidence['auc']:.3f}, p {evidence['holm_p']:.0e}"
    if finding.check == "slice":
        rows = evidence["slices"]
        pure = ", ".join(f"{row['purity_num_correct']:.0f}/{row['purity_num_total']:.0f}" for row in rows)
        return f"pure {pure}, p {max(row['holm_p'] for row in rows):.0e}"
    if "class" in evidence:
        return (
            f"pure {evidence['purity_num_correct']:.0f}/{evidence['purity_num_total']:.0f}, p {evidence['holm_p']:.0e}"
        )
    if finding.check == "labels":
        return f"{_num_named(finding, planted)}/{len(planted)} wrong labels among {evidence['num_images']} suspects"
    return f"{_num_named(finding, planted)}/{len(planted)} pairs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant the faults and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, help="folder with fake/ and real/; default: drawn faces")
    parser.add_argument("--per-class", type=int, default=300, help="drawn faces of each class (default 300)")
    parser.add_argument("--size-px", type=int, help="edge of the pictures (default 64, of photographs 300)")
    parser.add_argument("--seeds", type=int, default=20, help="clean sets (default 20)")
    parser.add_argument("--sweep", action="store_true", help="also plant the faults with other strengths")
    given = parser.parse_args(arguments)
    if given.per_class < MIN_PER_CLASS:
        parser.error(f"--per-class {given.per_class}: too few to plant every fault; give {MIN_PER_CLASS} or more")
    size_px = given.size_px or (300 if given.photographs else 64)
    with tempfile.TemporaryDirectory() as folder:
        clean, one_source = given.photographs, given.photographs and given.photographs / "real"
        if given.photographs is None:
            clean = generate_demo(Path(folder) / "clean", given.per_class, size_px, seed=0)
        if given.photographs is None and DEALT_FAULTS:
            one_source = generate_demo(Path(folder) / "source", 2 * given.per_class, size_px, seed=1) / "real"
        dealt = one_source and deal(one_source, Path(folder) / "dealt", seed=0)
        tries = [(fault, dealt) for fault in DEALT_FAULTS.values()] + [(WRONG_LABELS, clean)]
        if given.photographs is None:
            tries = [(fault, clean) for fault in FAULTS.values()] + tries
        else:
            tries += [(FAULTS[name], dealt) for name in ("changed copies", "cropped copies")]
        outcomes: list[Outcome] = []
        rows = (_fault_row(fault, root, size_px, outcomes) for fault, root in tries)
        _print_table(["planted", "found", "by", "figure", "it says", "found beside"], rows)
        if given.sweep:
            swept = [(fault, root) for fault, root in tries if fault.sweep]
            _print_table(["planted", "found at"], (_sweep_row(fault, root, size_px) for fault, root in swept))
        if given.photographs:
            num_alarmed = _try_clean_sets(given.seeds, size_px, partial(deal, one_source), differences)
        else:
            draw = partial(_draw, num_per_class=given.per_class, size_px=size_px)
            num_alarmed = _try_clean_sets(given.seeds, size_px, draw, alarms)
    return 1 if num_alarmed or any(outcome.finding is None for outcome in outcomes) else 0


def _draw(root: Path, seed: int, num_per_class: int, size_px: int) -> Path:
    return generate_demo(root, num_per_class, size_px, seed)


def _fault_row(fault: Fault, clean: Path, size_px: int, outcomes: list[Outcome]) -> list[str]:
    """Plant a fault, append the outcome to `outcomes`, and return its row of the table."""
    outcome = try_fault(fault, clean, size_px, fault.strength)
    outcomes.append(outcome)
    planted, finding = fault.name.format(fault.strength), outcome.finding
    others = ", ".join(outcome.others)
    if finding is None:
        return [planted, "**no**", "", "", "", others]
    words = " ".join(finding.sentence.split()[:12]) + " ..."
    return [planted, finding.severity, f"{finding.check}: {_subject(finding)}", outcome.figure, words, others]


def _sweep_row(fault: Fault, clean: Path, size_px: int) -> list[str]:
    cells = []
    for strength in fault.sweep:
        outcome = try_fault(fault, clean, size_px, strength)
        found = f"{outcome.finding.severity} ({outcome.figure})" if outcome.finding else "no"
        cells.append(f"{strength:g}: {found}")
    return [fault.name.format(fault.strength), "; ".join(cells)]


def _try_clean_sets(
    num_seeds: int,
    size_px: int,
    make: Callable[[Path, int], Path],
    false_alarms: Callable[[Inspection], list[Finding]],
) -> int:
    """Print the results of clean sets from `num_seeds` seeds; return how many raised a false alarm."""
    num_alarms, num_alarmed = 0, 0
    largest: dict[str, float] = {}
    for seed in range(num_seeds):
        with _scratch() as folder:
            inspection = inspect(make(folder / "clean", seed), size_px)
        num_alarms += len(false_alarms(inspection))
        num_alarmed += bool(false_alarms(inspection))
        for probe in inspection.card.probes:
            if probe.kind != "majority":
                largest[probe.name] = max(probe.auc, largest.get(probe.name, 0.0))
    header = ["clean sets", "alarms", *(f"{name}, largest AUC" for name in largest)]
    _print_table(header, [[str(num_seeds), str(num_alarms), *(f"{auc:.3f}" for auc in largest.values())]])
    return num_alarmed


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    for row in chain([header, ["---"] * len(header)], rows):
        print(f"| {' | '.join(row)} |", flush=True)
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
