"""The audit of a data set: collects its inputs, runs every check, writes card, tables and figures, prints the findings.

The checks and their thresholds are in `evaluation.audit.audit`; the program writes to MLflow.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.table import Table
from threadpoolctl import threadpool_limits

from fakeface_lab.data.images import IN_BOTH_CLASSES, ImageSet
from fakeface_lab.data.properties import CONTENT_COLUMNS, file_properties, pixel_properties
from fakeface_lab.data.splits import (
    NEAR_DUPLICATE_DISTANCE,
    TEST,
    TRAIN,
    VALIDATION,
    Split,
    closest_pairs,
    detail_correlations,
    near_duplicate_groups,
    perceptual_hashes,
    pixel_digests,
)
from fakeface_lab.evaluation.audit.audit import AuditInputs, AuditSettings, audit
from fakeface_lab.evaluation.audit.card import SEVERITIES, Card, Finding
from fakeface_lab.evaluation.audit.probes import (
    ProbeResult,
    mean_faces,
    run_probes,
    stratified_folds,
    thumbnail_weights,
)
from fakeface_lab.figures import save_figures
from fakeface_lab.figures.audit import (
    closest_pairs_sheet,
    mean_faces_figure,
    printable,
    suspects_sheet,
    thumbnail_weights_figure,
)
from fakeface_lab.terminal import console, say, wide_console

__all__ = ["Inspection", "audit_note", "headline", "inspect_images", "print_card", "write_card"]

_NUM_PROBE_FOLDS = 5  # of the probes' cross-validation

_STYLES = {"fail": "bold white on red", "warn": "bold yellow", "info": "dim"}


@dataclass(frozen=True)
class Inspection:
    """What an audit found, and what it looked at.

    Attributes:
        card: findings, probes and thresholds.
        properties: one row per image, file and colour properties.
        pairs: look-alikes, closest first.
        folds: int64 (num_images,), the fold that scored each image.
    """

    card: Card
    properties: pd.DataFrame
    pairs: pd.DataFrame
    folds: npt.NDArray[np.int64]

    def metrics(self) -> dict[str, float]:
        """Figures of every probe, and `num_findings_fail`, `_warn` and `_info`."""
        flat = {f"num_{name}": float(count) for name, count in self.card.counts.items()}
        severities = Counter(finding.severity for finding in self.card.findings)
        flat |= {f"num_findings_{severity}": float(severities[severity]) for severity in SEVERITIES}
        for probe in self.card.probes:
            flat |= probe.accuracy.metrics(f"probe_{probe.name}_accuracy") | {f"probe_{probe.name}_auc": probe.auc}
        return flat

    def write(self, images: ImageSet, folder: Path) -> None:
        """Write card, per-image tables and figures as files."""
        card = self.card
        write_card(card, folder)
        names = [file.name for file in images.files]
        classes = [images.source.class_names[label] for label in images.labels]
        first = {"file": names, "label": classes, "fold": self.folds}
        tables = {
            "probes": pd.DataFrame(first | {probe.name: probe.scores for probe in card.probes}),
            "properties": pd.concat([pd.DataFrame({"file": names, "label": classes}), self.properties], axis=1),
            "pairs": self.pairs.assign(
                first=[names[row] for row in self.pairs["first"]], second=[names[row] for row in self.pairs["second"]]
            ),
        }
        for name, table in tables.items():
            # File names may contain bytes that are not UTF-8; reading them back restores these.
            table.to_csv(folder / f"{name}.csv", index=False, encoding="utf-8", errors="surrogateescape")
        captions = [printable(f"{name} ({label})") for name, label in zip(names, classes, strict=True)]
        figures = {
            "mean_faces": mean_faces_figure(mean_faces(images.pixels, images.labels), images.source.class_names),
            "thumbnail_weights": thumbnail_weights_figure(
                thumbnail_weights(images.pixels, images.labels), images.source.class_names
            ),
            "closest_pairs": closest_pairs_sheet(images.pixels, self.pairs, captions),
        }
        for finding in card.findings:
            if finding.check == "labels":
                rows = [names.index(name) for name in finding.evidence["files"]]
                figures["suspects"] = suspects_sheet(
                    images.pixels, rows, [captions[row] for row in rows], finding.evidence["probabilities"]
                )
        save_figures(figures, folder)


def write_card(card: Card, folder: Path) -> None:
    """Write a card as `card.md` and `card.json`."""
    (folder / "card.md").write_text(card.to_markdown(), encoding="utf-8", errors="surrogateescape")
    (folder / "card.json").write_text(card.to_json())


def inspect_images(
    images: ImageSet,
    split: Split | None,
    thresholds: AuditSettings,
    seed: int,
    show: Callable[[str], None] = lambda step: None,
) -> Inspection:
    """Run every check of the audit on a data set; no network is trained.

    Args:
        images: all images.
        split: to find the same picture in two splits; None without splits.
        thresholds: of the findings.
        seed: of the folds and the boosted trees.
        show: called with the name of each step before it runs.

    Raises:
        DataError: a file can no longer be read.
    """
    show("looking at files and colours")
    paths = [file.path for file in images.files]
    properties = pd.concat([file_properties(paths), pixel_properties(images.pixels)], axis=1)
    show("looking for duplicates")
    hashes = perceptual_hashes(images.pixels)
    pairs = closest_pairs(hashes, thresholds.max_bits)
    # Only of what the hashes call alike: one pair takes 14 ms, and 1,289 images make 830,116 pairs.
    pairs["correlation"] = detail_correlations(images.pixels, pairs)
    # The correlation decides what is the same picture, and the sheet shows only the first pairs.
    pairs = pairs.sort_values("correlation", ascending=False, kind="stable", ignore_index=True)
    # A copy in another fold would be recognized, and the probe would seem to see a trace.
    groups = near_duplicate_groups(hashes, NEAR_DUPLICATE_DISTANCE)
    show("training probes")
    # Each fold must score an image of each class.
    num_folds = min(_NUM_PROBE_FOLDS, *images.class_counts().values())
    folds, probes = _probes(images, properties, groups, num_folds, seed)
    inputs = AuditInputs(
        names=[file.name for file in images.files],
        labels=images.labels,
        class_names=images.source.class_names,
        properties=properties,
        pairs=pairs,
        probes=probes,
        file_digests=[file.sha256 for file in images.files],
        pixel_digests=pixel_digests(images.pixels),
        splits=None if split is None else _split_names(split, len(images.files)),
        content_columns=CONTENT_COLUMNS,
    )
    card = audit(inputs, thresholds)
    findings = sorted(
        [*card.findings, *_skipped_findings(images)],
        key=lambda finding: (SEVERITIES.index(finding.severity), -finding.share),
    )
    return Inspection(replace(card, findings=findings), properties, pairs, folds)


def _probes(
    images: ImageSet, properties: pd.DataFrame, groups: npt.NDArray[np.int64], num_folds: int, seed: int
) -> tuple[npt.NDArray[np.int64], list[ProbeResult]]:
    if num_folds < 2:  # with one image in a class there is nothing to train on
        return np.zeros(len(images.files), dtype=np.int64), []
    folds = stratified_folds(images.labels, groups, num_folds, seed)
    # On tables this small, threads cost more time than they save, especially on busy cores.
    # On two busy cores five folds of the boosted trees took 8 s with two threads and 0.3 s with one.
    with threadpool_limits(1):
        table = properties.drop(columns=list(CONTENT_COLUMNS))
        return folds, run_probes(images.pixels, table, images.labels, folds, seed)


def _split_names(split: Split, num_images: int) -> list[str]:
    names = np.full(num_images, "", dtype=object)
    for name, rows in ((TRAIN, split.train), (VALIDATION, split.validation), (TEST, split.test)):
        names[rows] = name  # last wins: the documented split validates on its test images, which are named test
    return [str(name) for name in names]


def _skipped_findings(images: ImageSet) -> list[Finding]:
    """Findings about files that are not used; a warning if the same file is in both classes."""
    findings = []
    for reason, num_files in Counter(skipped.reason for skipped in images.skipped).items():
        is_contradiction = reason == IN_BOTH_CLASSES
        counted = "1 file is" if num_files == 1 else f"{num_files} files are"
        because = "at least one label of each pair is wrong, and it is unknown which" if is_contradiction else ""
        findings.append(
            Finding(
                # Not a "fail": these files are left out, so they void nothing.
                "warn" if is_contradiction else "info",
                "two labels" if is_contradiction else "skipped",
                f"{counted} left out of everything: {reason}{'; ' + because if because else ''}.",
                {"reason": reason, "files": [skipped.name for skipped in images.skipped if skipped.reason == reason]},
                num_files / (len(images.files) + len(images.skipped)),
            )
        )
    return findings


def audit_note(card: Card) -> str:
    """Return the audit as Markdown for the head of its run's page: verdict and findings, worst first."""
    lines = [f"**{card.verdict}**", ""]
    lines += [f"- **{finding.severity}** ({finding.check}): {finding.sentence}" for finding in card.findings]
    return "\n".join([*lines, "", "The whole card is `card.md` among the artifacts."])


def headline(card: Card) -> str:
    """Return the verdict without references to the rest of the card: the worst alarm, if there is one."""
    return card.alarms[0].sentence if card.alarms else card.verdict


def print_card(card: Card) -> None:
    """Print every probe's result, the findings, worst first, and the verdict."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("probe", "kind", "sees only", "accuracy", "AUC"):
        table.add_column(heading)
    for probe in card.probes:
        table.add_row(probe.name, probe.kind, probe.sees, str(probe.accuracy), f"{probe.auc:.3f}")
    wide_console.print(table)
    for finding in card.findings:
        say(finding.severity, finding.sentence, label_style=_STYLES[finding.severity])
    if not card.findings:
        say("ok", "no findings", label_style="green")
    say("verdict", card.verdict)
    if card.worst == "fail":
        console.print("          Results on these images are void until this is fixed (exit code 3).", style="bold")
