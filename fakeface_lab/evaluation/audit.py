"""The audit: from properties, hashes and probes to findings about a data set of two classes.

Owns every threshold and the order of the findings. It reads no file and trains nothing; the checks are in
`probe_findings`, `pure_slices`, `duplicates` and `label_errors`, how findings read on a page is in `card`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import hypergeom, mannwhitneyu

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.card import SEVERITIES, Card, Finding, Severity
from fakeface_lab.evaluation.findings import (
    duplicate_findings,
    is_confirmed,
    label_finding,
    likely_wrong_labels,
    pure_slice_findings,
    slice_names,
)
from fakeface_lab.evaluation.intervals import Rate, wilson
from fakeface_lab.evaluation.probes import ProbeResult
from fakeface_lab.evaluation.significance import holm

__all__ = ["AuditInputs", "AuditSettings", "Card", "Finding", "audit", "probe_findings"]

_SAYS = {
    "thumbnail": "how the pictures are framed",
    "border": "what surrounds the face",
    "corners": "what is in the corners",
    "histogram": "what colours the pictures have",
    "colour": "how colourful the pictures are",
    "file": "how the files were saved",
}
_UNDECIDED = "forgery, or the way the two sources were saved; this data cannot say which."


def probe_findings(
    probes: Sequence[ProbeResult],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    warn_auc: float,
    fail_auc: float,
    significance: float,
    min_fraction: float,
    min_purity: float,
) -> list[Finding]:
    """Find the probes that separate the classes, and among the others those whose surest images are of one class.

    A trace on a tenth of the images moves no AUC far, but the probe that sees it puts these images first.

    Args:
        probes: from `probes.run_probes`.
        labels: int64 (N,), 0 for the positive class.
        class_names: name of each class index.
        warn_auc: AUC from which a probe separates the classes.
        fail_auc: AUC from which a shortcut makes results void.
        significance: largest p-value, Holm-corrected over all probes and over all ends of their rankings.
        min_fraction: share of all images that the surest ones must be.
        min_purity: lower end of the Wilson interval of one class's share among them.

    Returns:
        One finding per separating shortcut (check "probe"), one for all forensic probes that separate (check "trace"),
        and one per probe that does not but has a pure end (check "probe" or "trace").
    """
    is_positive = labels == 0
    probes = [probe for probe in probes if probe.kind != "majority"]
    tests = [
        float(mannwhitneyu(probe.scores[is_positive], probe.scores[~is_positive], alternative="greater").pvalue)
        for probe in probes
    ]
    separating = {
        probe.name: p_value
        for probe, p_value in zip(probes, holm(tests), strict=True)
        if probe.auc >= warn_auc and p_value <= significance
    }
    found = [probe for probe in probes if probe.name in separating]
    findings = [_shortcut(probe, separating[probe.name], fail_auc) for probe in found if probe.kind == "shortcut"]
    forensic = [probe for probe in found if probe.kind == "forensic"]
    if forensic:
        findings.append(_trace(sorted(forensic, key=lambda probe: -probe.auc), separating))
    others = [probe for probe in probes if probe.name not in separating]
    return findings + _pure_ends(others, is_positive, class_names, significance, min_fraction, min_purity)


def _shortcut(probe: ProbeResult, p_value: float, fail_auc: float) -> Finding:
    right = f"A simple model that sees only {probe.sees} is right on {probe.accuracy.value:.3f} of these images."
    says = _SAYS[probe.name]
    severity: Severity = "fail" if probe.auc >= fail_auc else "warn"
    so = (
        f"Accuracy here says {says}, not whether they are forged."
        if severity == "fail"
        else f"Part of any accuracy here says {says}."
    )
    return Finding(severity, "probe", f"{right} {so}", _evidence(probe, p_value), probe.accuracy.value)


def _trace(probes: Sequence[ProbeResult], p_values: Mapping[str, float]) -> Finding:
    best = probes[0]
    figures = ", ".join(f"{probe.name} {probe.accuracy.value:.3f}" for probe in probes[1:])
    sentence = (
        f"A trace of processing separates the classes ({best.name} probe right on {best.accuracy.value:.3f}"
        f"{f'; {figures}' if figures else ''}): {_UNDECIDED}"
    )
    evidence = _evidence(best, p_values[best.name])
    evidence["others"] = [_evidence(probe, p_values[probe.name]) for probe in probes[1:]]
    return Finding("info", "trace", sentence, evidence, best.accuracy.value)


def _evidence(probe: ProbeResult, p_value: float) -> dict[str, Any]:
    return {"probe": probe.name, "auc": probe.auc, "holm_p": p_value, **probe.accuracy.metrics("accuracy")}


def _pure_ends(
    probes: Sequence[ProbeResult],
    is_positive: NDArray[np.bool_],
    class_names: Sequence[str],
    significance: float,
    min_fraction: float,
    min_purity: float,
) -> list[Finding]:
    """Per probe, the largest pure end of its ranking, where there is one that is no accident."""
    ends = []
    for probe in probes:
        for index, scores, belongs in ((0, probe.scores, is_positive), (1, -probe.scores, ~is_positive)):
            purity, p_value = _largest_pure_end(scores, belongs, min_purity)
            ends.append((probe, class_names[index], purity, p_value))
    largest: dict[str, Finding] = {}
    for (probe, class_name, purity, _), p_value in zip(ends, holm([end[3] for end in ends]), strict=True):
        if purity is None or p_value > significance or purity.num_total < min_fraction * is_positive.size:
            continue
        share = purity.num_total / is_positive.size
        if probe.name not in largest or share > largest[probe.name].share:
            largest[probe.name] = _pure_end(probe, class_name, purity, p_value, share)
    return list(largest.values())


def _largest_pure_end(
    scores: NDArray[np.float64], belongs: NDArray[np.bool_], min_purity: float
) -> tuple[Rate | None, float]:
    """The longest beginning of the ranking that is pure, and its p-value (hypergeometric, times the lengths tried)."""
    order = np.argsort(-scores, kind="stable")
    # Between equal scores there is no order: cutting there would cut by the order of the images, that is by label.
    is_cut = np.append(np.diff(scores[order]) != 0, True)
    hits, lengths = np.cumsum(belongs[order]), np.arange(1, scores.size + 1)
    for at in np.flatnonzero(is_cut & (hits >= min_purity * lengths))[::-1]:
        purity = wilson(int(hits[at]), int(lengths[at]))
        if purity.low >= min_purity:
            p_value = hypergeom.sf(hits[at] - 1, scores.size, belongs.sum(), lengths[at]) * is_cut.sum()
            return purity, min(1.0, float(p_value))
    return None, 1.0


def _pure_end(probe: ProbeResult, class_name: str, purity: Rate, p_value: float, share: float) -> Finding:
    counted = f"{purity.num_correct} of the {purity.num_total} images"
    evidence = {"probe": probe.name, "class": class_name, "holm_p": p_value, **purity.metrics("purity")}
    if probe.kind == "forensic":
        sentence = (
            f"A trace of processing marks {share:.1%} of the images ({counted} that the {probe.name} probe is surest "
            f"of are {class_name}): {_UNDECIDED}"
        )
        return Finding("info", "trace", sentence, evidence, share)
    sentence = (
        f"{counted} that a simple model of {probe.sees} is surest of are {class_name}: for {share:.1%} of all images "
        f"this alone gives the label away."
    )
    return Finding("warn", "probe", sentence, evidence, share)


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
