"""The result of an audit: findings, card and verdict, as Markdown for people and as JSON for programs.

The checks behind the findings are in `audit` and `findings`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fakeface_lab.evaluation.audit.probes import ProbeResult

__all__ = ["SEVERITIES", "Card", "Finding", "Severity"]

Severity = Literal["fail", "warn", "info"]
SEVERITIES: tuple[Severity, ...] = ("fail", "warn", "info")
"""Worst first: fail voids results on these images, warn inflates them, info is good to know."""


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found.

    Attributes:
        severity: one of `SEVERITIES`.
        check: that found it: "probe", "trace", "slice", "two labels", "straddle", "duplicate", "labels" or "skipped".
        sentence: what was found and what follows from it, in words that need no statistics.
        evidence: the figures behind it, JSON values only.
        share: share of the images concerned, 0 to 1; orders findings of equal severity.
    """

    severity: Severity
    check: str
    sentence: str
    evidence: Mapping[str, Any]
    share: float


@dataclass(frozen=True)
class Card:
    """The whole audit.

    Attributes:
        counts: images of each class, in the order of the class index.
        findings: worst first.
        probes: the results of all probes.
        files: property -> class -> {"median", "min", "max"} of a measured property (None if no image has it), or
            {"counts": {value: number of images}} of one with few values.
        settings: the thresholds of the findings.
    """

    counts: Mapping[str, int]
    findings: Sequence[Finding]
    probes: Sequence[ProbeResult]
    files: Mapping[str, Mapping[str, Mapping[str, Any]]]
    settings: Mapping[str, float]

    @property
    def worst(self) -> Severity | None:
        """Severity of the worst finding, None without any."""
        return self.findings[0].severity if self.findings else None

    @property
    def alarms(self) -> list[Finding]:
        """Findings that void or inflate results, worst first."""
        return [finding for finding in self.findings if finding.severity != "info"]

    @property
    def traces(self) -> list[Finding]:
        """Findings about traces of processing: not alarms, but part of the verdict."""
        return [finding for finding in self.findings if finding.check == "trace"]

    @property
    def verdict(self) -> str:
        """The audit in a few sentences: the worst alarm and a trace of processing, or that nothing was found."""
        traces = [finding.sentence for finding in self.traces[:1]]
        if self.alarms:
            others = len(self.alarms) - 1
            more = [] if others == 0 else [f"{others} more {'finding' if others == 1 else 'findings'} below."]
            return " ".join([self.alarms[0].sentence, *more, *traces])
        shortcuts = [probe for probe in self.probes if probe.kind == "shortcut"]
        if not shortcuts:
            return "Nothing was found that gives the label away, but no probe was run."
        best = max(shortcuts, key=lambda probe: probe.auc)
        nothing = "Nothing else was found" if traces else "Nothing was found"
        return " ".join(
            [
                *traces,
                f"{nothing} that gives the label away: the best of {len(shortcuts)} shortcut probes "
                f"(it sees only {best.sees}) is right on {best.accuracy.value:.3f} of these images.",
            ]
        )

    def to_json(self) -> str:
        """The card as one JSON object (no NaN), without the probes' per-image scores."""
        content = {
            "verdict": self.verdict,
            "worst": self.worst,
            "counts": dict(self.counts),
            "findings": [
                {
                    "severity": finding.severity,
                    "check": finding.check,
                    "sentence": finding.sentence,
                    "share": finding.share,
                    "evidence": finding.evidence,
                }
                for finding in self.findings
            ],
            "probes": [
                {
                    "name": probe.name,
                    "kind": probe.kind,
                    "sees_only": probe.sees,
                    **probe.accuracy.metrics("accuracy"),
                    "auc": probe.auc,
                }
                for probe in self.probes
            ],
            "files": self.files,
            "settings": dict(self.settings),
        }
        # Python would write a bare NaN, which is not JSON and which other readers refuse.
        return json.dumps(content, indent=2, allow_nan=False)

    def to_markdown(self) -> str:
        """The card as a Markdown page: verdict, findings, probes, files, thresholds."""
        lines = ["# Data set audit", "", f"**{self.verdict}**", ""]
        lines += [
            ", ".join(f"{count} {name}" for name, count in self.counts.items()) + ".",
            "",
            "## Findings",
            "",
        ]
        lines += [f"- **{finding.severity}** ({finding.check}): {finding.sentence}" for finding in self.findings]
        lines += [] if self.findings else ["None."]
        lines += ["", "## Probes", ""]
        lines += _table(
            ["probe", "kind", "sees only", "accuracy", "AUC"],
            ([probe.name, probe.kind, probe.sees, str(probe.accuracy), f"{probe.auc:.3f}"] for probe in self.probes),
        )
        lines += ["", "## Files", ""]
        lines += _table(
            ["property", *self.counts],
            ([name, *(_describe(classes[label]) for label in self.counts)] for name, classes in self.files.items()),
        )
        lines += ["", "## Thresholds", ""]
        lines += [f"- {name}: {value:g}" for name, value in self.settings.items()]
        lines += [
            "",
            "Two pictures look the same when that is confirmed on their pixels: pHash at most "
            f"{self.settings['max_bits']:g} of 64 bits apart, and details that correlate by "
            f"{self.settings['min_correlation']:g} or more. Details are the gray pictures at 64x64 pixels without "
            "what a Gaussian of 3 pixels leaves of them, one of them mirrored if necessary, at the best of five scales "
            "from 0.95 to 1.05 and of shifts up to 4 pixels.",
        ]
        return "\n".join(lines) + "\n"


def _describe(figures: Mapping[str, Any]) -> str:
    if "counts" in figures:
        return ", ".join(f"{value}: {count}" for value, count in figures["counts"].items())
    if figures["median"] is None:
        return "missing"
    median, low, high = (
        f"{figures[name]:,.0f}" if abs(figures[name]) >= 1000 else f"{figures[name]:.3g}"
        for name in ("median", "min", "max")
    )
    return f"{median} ({low} to {high})"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    # A bar in a value, such as the text of an EXIF entry, would begin a new cell.
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *cells]]
