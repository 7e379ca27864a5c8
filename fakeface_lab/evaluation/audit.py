"""The audit: from properties, hashes and probes to findings about a data set of two classes.

Owns every threshold, the order of the findings, and the alarms of the probes. It reads no file and trains
nothing; the other checks are in `pure_slices` and `duplicates`, how findings read on a page is in `card`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.card import SEVERITIES, Card, Finding, Severity
from fakeface_lab.evaluation.duplicates import duplicate_findings, near_duplicate_bits
from fakeface_lab.evaluation.probes import ProbeResult
from fakeface_lab.evaluation.pure_slices import holm, pure_slice_findings, slice_names

__all__ = ["AuditInputs", "AuditSettings", "Card", "Finding", "audit"]

_SAYS = {
    "thumbnail": "how the pictures are framed",
    "border": "what surrounds the face",
    "corners": "what is in the corners",
    "histogram": "what colours the pictures have",
    "colour": "how colourful the pictures are",
    "file": "how the files were saved",
}


@dataclass(frozen=True)
class AuditSettings:
    """Every threshold of the audit.

    Attributes:
        warn_auc: AUC from which a shortcut probe is reported, 0.5 to 1.
        fail_auc: AUC from which it makes results void, 0.5 to 1.
        significance: largest p-value, after Holm's correction, that counts as a finding, 0 to 1. Out-of-fold
            scores share their training pictures, which makes a probe's p-value too small: on clean sets of 20 to
            60 images it was below 0.01 in 3 to 7 %, below 0.001 in 1 of 560, below 0.0001 in none.
        min_slice_fraction: share of all images that a slice must hold to be looked at, 0 to 1.
        min_slice_purity: lower end of the Wilson interval of a slice's purity from which it is pure, 0 to 1.
        fail_slice_fraction: share of all images in pure slices of one property that makes results void.
        certain_bits: distance, of 64 bits, up to which look-alikes in two classes are one picture under two
            labels rather than chance.
        max_bits: largest distance that the calibration may choose for near-duplicates.
    """

    warn_auc: float = 0.70
    fail_auc: float = 0.90
    significance: float = 0.0001
    min_slice_fraction: float = 0.01
    min_slice_purity: float = 0.95
    fail_slice_fraction: float = 0.5
    certain_bits: int = 2
    max_bits: int = 6


@dataclass(frozen=True)
class AuditInputs:
    """What the audit looks at; position i is the same image everywhere.

    Attributes:
        names: file names, as the evidence shows them.
        labels: int64 (N,), class index, 0 for the positive class.
        class_names: name of class 0 and of class 1.
        properties: N rows, the columns of `data.properties` side by side.
        pairs: look-alikes from `data.hashes.closest_pairs`, up to `max_bits + CHANCE_MARGIN_BITS` or farther.
        probes: from `probes.run_probes`; may be empty.
        file_digests: one digest per file's bytes.
        pixel_digests: one digest per decoded picture.
        splits: name of the split each image is in, or None without splits.
    """

    names: Sequence[str]
    labels: NDArray[np.int64]
    class_names: tuple[str, str]
    properties: pd.DataFrame
    pairs: pd.DataFrame
    probes: Sequence[ProbeResult]
    file_digests: Sequence[str]
    pixel_digests: Sequence[str]
    splits: Sequence[str] | None = None


def audit(inputs: AuditInputs, settings: AuditSettings | None = None) -> Card:
    """Look for everything by which these images could be told apart, or told twice, without looking at faces.

    Raises:
        DataError: an input has another length than there are labels.
    """
    settings = settings or AuditSettings()
    _check_lengths(inputs)
    bits = near_duplicate_bits(
        inputs.pairs,
        inputs.labels,
        certain_bits=settings.certain_bits,
        max_bits=settings.max_bits,
    )
    findings = [
        *_probe_findings(inputs, settings),
        *pure_slice_findings(
            inputs.properties,
            inputs.labels,
            inputs.class_names,
            significance=settings.significance,
            min_fraction=settings.min_slice_fraction,
            min_purity=settings.min_slice_purity,
            fail_fraction=settings.fail_slice_fraction,
        ),
        *duplicate_findings(
            inputs.pairs,
            inputs.labels,
            inputs.names,
            file_digests=inputs.file_digests,
            pixel_digests=inputs.pixel_digests,
            splits=inputs.splits,
            max_bits=bits,
        ),
    ]
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), -finding.share))
    counts = np.bincount(inputs.labels, minlength=2)
    return Card(
        counts={name: int(count) for name, count in zip(inputs.class_names, counts, strict=True)},
        findings=findings,
        probes=inputs.probes,
        files=_per_class(inputs),
        near_duplicate_bits=bits,
        settings=asdict(settings),
    )


def _probe_findings(inputs: AuditInputs, settings: AuditSettings) -> list[Finding]:
    """Alarms of the probes whose AUC is high and no accident; forensic ones only inform."""
    is_positive = inputs.labels == 0
    probes = [probe for probe in inputs.probes if probe.kind != "majority"]
    tests = [
        mannwhitneyu(probe.scores[is_positive], probe.scores[~is_positive], alternative="greater") for probe in probes
    ]
    findings = []
    for probe, p_value in zip(probes, holm([float(test.pvalue) for test in tests]), strict=True):
        if probe.auc < settings.warn_auc or p_value > settings.significance:
            continue
        evidence = {
            "probe": probe.name,
            "auc": probe.auc,
            "holm_p": p_value,
            **probe.accuracy.metrics("accuracy"),
        }
        share = probe.accuracy.value
        right = f"A simple model that sees only {probe.sees} is right on {share:.3f} of these images."
        says = _SAYS.get(probe.name, f"what {probe.sees} show")
        if probe.kind == "forensic":
            severity: Severity = "info"
            so = "That is a trace generators are known to leave, and one that compression can wipe out."
        elif probe.auc >= settings.fail_auc:
            severity, so = "fail", f"Accuracy here says {says}, not whether they are forged."
        else:
            severity, so = "warn", f"Part of any accuracy here says {says}."
        findings.append(Finding(severity, "probe", f"{right} {so}", evidence, share))
    return findings


def _per_class(inputs: AuditInputs) -> dict[str, dict[str, dict[str, Any]]]:
    described: dict[str, dict[str, dict[str, Any]]] = {}
    for column in inputs.properties:
        values = inputs.properties[column]
        names = slice_names(values)
        is_measured = pd.api.types.is_numeric_dtype(values) and names.str.startswith("from ").any()
        described[str(column)] = {}
        for index, class_name in enumerate(inputs.class_names):
            own = inputs.labels == index
            described[str(column)][class_name] = (
                {
                    figure: float(getattr(values[own], figure)()) if values[own].notna().any() else None
                    for figure in ("median", "min", "max")
                }
                if is_measured
                else {"counts": {str(name): int(num) for name, num in names[own].value_counts().items()}}
            )
    return described


def _check_lengths(inputs: AuditInputs) -> None:
    lengths = {
        "names": len(inputs.names),
        "properties": len(inputs.properties),
        "file_digests": len(inputs.file_digests),
        "pixel_digests": len(inputs.pixel_digests),
        "splits": len(inputs.labels if inputs.splits is None else inputs.splits),
    }
    for name, length in lengths.items():
        if length != len(inputs.labels):
            raise DataError(f"{len(inputs.labels)} labels but {length} {name}; pass one per image")
