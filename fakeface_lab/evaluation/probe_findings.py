"""From the probes' out-of-fold scores to findings: which of them tell the classes apart, on all images or on some.

Owns the tests of the probes and the sentences about them. A shortcut that separates the classes makes results void or
inflates them; a trace of processing may be the forgery itself, so it informs. The thresholds are `audit`'s.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom, mannwhitneyu

from fakeface_lab.evaluation.card import Finding, Severity
from fakeface_lab.evaluation.comparison import holm
from fakeface_lab.evaluation.intervals import Rate, wilson
from fakeface_lab.evaluation.probes import ProbeResult

__all__ = ["probe_findings"]

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
