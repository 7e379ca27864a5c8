"""The audit: from properties, hashes and probes to findings about a data set of two classes.

Owns every threshold and the order of the findings. It reads no file and trains nothing; the checks are in
`probe_findings`, `pure_slices`, `duplicates` and `label_errors`, how findings read on a page is in `card`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.card import SEVERITIES, Card, Finding
from fakeface_lab.evaluation.duplicates import duplicate_findings, is_confirmed
from fakeface_lab.evaluation.label_errors import label_finding, likely_wrong_labels
from fakeface_lab.evaluation.probe_findings import probe_findings
from fakeface_lab.evaluation.probes import ProbeResult
from fakeface_lab.evaluation.pure_slices import pure_slice_findings, slice_names

__all__ = ["AuditInputs", "AuditSettings", "Card", "Finding", "audit"]

_MAX_LISTED_VALUES = 12  # of a text property on the card


@dataclass(frozen=True)
class AuditSettings:
    """Every threshold of the audit.

    Attributes:
        warn_auc: AUC from which a probe separates the classes, 0.5 to 1.
        fail_auc: AUC from which a shortcut that does makes results void, and from which all probes together are
            trusted with a doubt about a label, 0.5 to 1.
        significance: largest p-value, after Holm's correction, that counts as a finding, 0 to 1. Small, because
            out-of-fold scores share their training pictures, which makes a probe's p-value too small.
        min_slice_fraction: share of all images that a slice must hold to be looked at, 0 to 1.
        min_slice_purity: lower end of the Wilson interval of a slice's purity from which it is pure, 0 to 1.
        min_end_purity: the same for the images that a probe is surest of; lower, because a probe also errs.
        fail_slice_fraction: share of all images in pure slices of one property that makes results void.
        max_bits: largest pHash distance, of 64 bits, of two pictures that may be one.
        min_correlation: correlation of their details from which they are one, 0 to 1.
    """

    warn_auc: float = 0.70
    fail_auc: float = 0.90
    significance: float = 0.0001
    min_slice_fraction: float = 0.01
    min_slice_purity: float = 0.95
    min_end_purity: float = 0.9
    fail_slice_fraction: float = 0.5
    max_bits: int = 10
    min_correlation: float = 0.9


@dataclass(frozen=True)
class AuditInputs:
    """What the audit looks at; position i is the same image everywhere.

    Attributes:
        names: file names, as the evidence shows them.
        labels: int64 (N,), class index, 0 for the positive class.
        class_names: name of class 0 and of class 1.
        properties: N rows, the columns of `data.properties` side by side, for the card.
        pairs: look-alikes from `data.hashes.closest_pairs`, up to `max_bits` or farther, with their `correlation`
            from `data.hashes.detail_correlations`.
        probes: from `probes.run_probes`; may be empty.
        file_digests: one digest per file's bytes.
        pixel_digests: one digest per decoded picture.
        splits: name of the split each image is in, or None without splits.
        content_columns: columns that follow from what is on a picture: no slice is cut by them.
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
    content_columns: Sequence[str] = ()


def audit(inputs: AuditInputs, settings: AuditSettings | None = None) -> Card:
    """Look for everything by which these images could be told apart, or told twice, without looking at faces.

    Raises:
        DataError: an input has another length than there are labels.
    """
    settings = settings or AuditSettings()
    _check_lengths(inputs)
    same = is_confirmed(inputs.pairs, max_bits=settings.max_bits, min_correlation=settings.min_correlation)
    suspects = likely_wrong_labels(
        inputs.probes, inputs.labels, min_probe_auc=settings.warn_auc, min_auc=settings.fail_auc
    )
    findings = [  # of equal weight, a property by its name comes before a probe that sees it too
        *pure_slice_findings(
            inputs.properties.drop(columns=list(inputs.content_columns)),
            inputs.labels,
            inputs.class_names,
            significance=settings.significance,
            min_fraction=settings.min_slice_fraction,
            min_purity=settings.min_slice_purity,
            fail_fraction=settings.fail_slice_fraction,
        ),
        *probe_findings(
            inputs.probes,
            inputs.labels,
            inputs.class_names,
            warn_auc=settings.warn_auc,
            fail_auc=settings.fail_auc,
            significance=settings.significance,
            min_fraction=settings.min_slice_fraction,
            min_purity=settings.min_end_purity,
        ),
        *duplicate_findings(
            inputs.pairs[same],
            inputs.labels,
            inputs.names,
            file_digests=inputs.file_digests,
            pixel_digests=inputs.pixel_digests,
            splits=inputs.splits,
        ),
        *label_finding(suspects, inputs.names, len(inputs.labels)),
    ]
    findings.sort(key=lambda finding: (SEVERITIES.index(finding.severity), -finding.share))
    counts = np.bincount(inputs.labels, minlength=2)
    return Card(
        counts={name: int(count) for name, count in zip(inputs.class_names, counts, strict=True)},
        findings=findings,
        probes=inputs.probes,
        files=_per_class(inputs),
        settings=asdict(settings),
    )


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
                else {"counts": _counts(names[own])}
            )
    return described


def _counts(values: pd.Series) -> dict[str, int]:
    counts = {str(value): int(num) for value, num in values.value_counts().items()}
    listed = dict(list(counts.items())[:_MAX_LISTED_VALUES])
    rest = sum(counts.values()) - sum(listed.values())
    return listed | ({"others": rest} if rest else {})


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
