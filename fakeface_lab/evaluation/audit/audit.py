"""The audit: from properties, hashes and probes to findings about a data set of two classes.

Owns the thresholds, the order of the findings, and the findings about probes that separate the classes; those about
slices, duplicates and labels are in `findings`. Reads no files and trains nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import hypergeom, mannwhitneyu

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.audit.card import SEVERITIES, Card, Finding, Severity
from fakeface_lab.evaluation.audit.findings import (
    duplicate_findings,
    is_confirmed,
    label_finding,
    likely_wrong_labels,
    pure_slice_findings,
    slice_names,
)
from fakeface_lab.evaluation.audit.probes import ProbeResult
from fakeface_lab.evaluation.intervals import Rate, positives, wilson
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
_MAX_LISTED_VALUES = 12  # of a text property on the card


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
    """Find the probes that separate the classes, and those whose most confident decisions are all about one class.

    A trace on a tenth of the images hardly changes an AUC, but the probe that sees it ranks these images first.

    Args:
        probes: from `probes.run_probes`.
        labels: int64 (N,), 0 for the positive class.
        class_names: name of each class index.
        warn_auc: smallest AUC of a probe that separates the classes.
        fail_auc: smallest AUC of a shortcut that makes results void.
        significance: largest p-value, Holm-corrected over all probes and over all ends of their rankings.
        min_fraction: smallest share of all images in a pure end of a ranking.
        min_purity: smallest lower end of the Wilson interval of one class's share in it.

    Returns:
        One finding per separating shortcut (check "probe"), one for all separating forensic probes (check "trace"), and
        one per other probe whose ranking has a pure end (check "probe" or "trace").
    """
    is_positive = positives(labels)
    probes = [probe for probe in probes if probe.kind != "majority"]
    # One-sided: out of fold, a probe that ranks the classes the wrong way round has learned nothing.
    # The rank-sum test is the test of an AUC above one half (Bamber 1975).
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
    # The ranking of a probe that separates the classes has pure ends anyway.
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
    # Not an alarm: these probes cannot tell a generator from another camera, scaling or encoder (docs/truth.md).
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
    """One finding per probe whose ranking has a significant pure end, about the largest such end."""
    ends = []
    for probe in probes:
        for index, scores, belongs in ((0, probe.scores, is_positive), (1, -probe.scores, ~is_positive)):
            purity, p_value = _largest_pure_end(scores, belongs, min_purity)
            # Ends that are not pure were looked at too, so Holm has to count them.
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
    """The longest pure beginning of the ranking, and its p-value (hypergeometric, times the lengths tried)."""
    order = np.argsort(-scores, kind="stable")
    # Never cut between equal scores: they are ordered like the images, which is by label.
    is_cut = np.append(np.diff(scores[order]) != 0, True)
    hits, lengths = np.cumsum(belongs[order]), np.arange(1, scores.size + 1)
    # The lower end of an interval is below its rate, so most lengths need no interval.
    for at in np.flatnonzero(is_cut & (hits >= min_purity * lengths))[::-1]:
        purity = wilson(int(hits[at]), int(lengths[at]))
        if purity.low >= min_purity:
            # Hypergeometric, because an end is drawn without replacement; multiplied, because the longest pure end of
            # all those tried was picked (Bonferroni).
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


@dataclass(frozen=True)
class AuditSettings:
    """Every threshold of the audit.

    Attributes:
        warn_auc: smallest AUC of a probe that separates the classes, 0.5 to 1. The largest AUC
            of a shortcut in 60 clean sets was 0.636 (docs/truth.md).
        fail_auc: smallest AUC of a shortcut that makes results void, and of all probes together for suspecting a label,
            0.5 to 1.
        significance: largest p-value of a finding, after Holm's correction, 0 to 1. Small, because out-of-fold scores
            share their training pictures, which makes a probe's p-value too small.
        min_slice_fraction: smallest share of all images in a tested slice, 0 to 1.
        min_slice_purity: smallest lower end of the Wilson interval of a pure slice's purity, 0 to 1.
        min_end_purity: the same for the images that a probe is most confident about; lower, because probes err too.
        fail_slice_fraction: smallest share of all images in one property's pure slices that makes results void, 0 to 1.
        max_bits: largest pHash distance, of 64 bits, of the same picture twice.
        min_correlation: smallest correlation of the details of the same picture twice, 0 to 1.
    """

    warn_auc: float = 0.70
    # The weakest of the planted shortcuts that void a set, one class framed 1.2 times larger, has 0.908
    # (docs/truth.md).
    fail_auc: float = 0.90
    # In 40 random deals of the pictures of one class nothing was found (docs/truth.md).
    significance: float = 0.0001
    min_slice_fraction: float = 0.01
    min_slice_purity: float = 0.95  # takes at least 73 images, all of one class
    # With a white square in a corner of 30 % of a class, the 38 images that the corner probe is most confident about
    # are pure; the interval of 38 in 38 begins at 0.908 (docs/truth.md).
    min_end_purity: float = 0.9
    fail_slice_fraction: float = 0.5
    # 287 pairs of the documented images are within 10 bits; their largest correlation is 0.74 (docs/truth.md).
    # No fake is that close to a real: the nearest such pair is 12 bits apart.
    max_bits: int = 10
    # All 20 planted copies of photographs reach it, saved again at JPEG 75, scaled by 3/4, mirrored and brightened
    # (docs/truth.md).
    min_correlation: float = 0.9


@dataclass(frozen=True)
class AuditInputs:
    """The inputs of the audit; position i is the same image in all of them.

    Attributes:
        names: file names, for the evidence.
        labels: int64 (N,), class index, 0 for the positive class.
        class_names: name of class 0 and of class 1.
        properties: N rows, all columns of `data.properties`.
        pairs: look-alikes from `data.splits.closest_pairs`, up to `max_bits` or farther, with their `correlation` from
            `data.splits.detail_correlations`.
        probes: from `probes.run_probes`; may be empty.
        file_digests: one digest per file's bytes.
        pixel_digests: one digest per decoded picture.
        splits: name of the split each image is in, or None without splits.
        content_columns: columns that follow from the content of a picture; they are on the card but not sliced.
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
    """Look for everything that separates the classes without looking at faces, for duplicates, and for wrong labels.

    Raises:
        DataError: an input's length differs from the number of labels.
    """
    settings = settings or AuditSettings()
    _check_lengths(inputs)
    same = is_confirmed(inputs.pairs, max_bits=settings.max_bits, min_correlation=settings.min_correlation)
    suspects = likely_wrong_labels(
        inputs.probes, inputs.labels, min_probe_auc=settings.warn_auc, min_auc=settings.fail_auc
    )
    findings = [  # at equal severity and share, a named property precedes the probe that sees it
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
