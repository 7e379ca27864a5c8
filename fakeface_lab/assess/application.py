"""A tracked model applied to single files: decoded as in training, decided at the model's own threshold, doubted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from fakeface_lab.assess.tracked_model import TrackedModel
from fakeface_lab.data.images import UnusableImageError, decode_image
from fakeface_lab.detector.fit import predict
from fakeface_lab.evaluation.card import Card
from fakeface_lab.terminal import console, say, wide_console
from fakeface_lab.tracking.datasets import find_audit
from fakeface_lab.tracking.lookup import FoundModel, find_evaluations

__all__ = [
    "Decision",
    "audit_note",
    "classify_files",
    "doubts",
    "headline",
    "print_card",
    "print_decisions",
    "print_evaluation",
    "tell",
]

_CHUNK_NUM_FILES = 256  # decoded pictures in memory at a time


@dataclass(frozen=True)
class Decision:
    """What a model says of one file: the class, its probability, and that of each class, in [0, 1]."""

    file: str
    decided: str
    probability: float
    probabilities: dict[str, float]


def doubts(found: FoundModel) -> list[str]:
    """Return what speaks against believing a model: the audit of its data, and its newest evaluation under stress."""
    sentences = []
    audit = find_audit(found.store, str(found.metadata["data_digest"]))
    if audit is None:
        sentences.append(
            "the images this model was trained on were never audited; python -m fakeface_lab.audit says what they can "
            "be told apart by"
        )
    elif audit.worst == "fail":
        sentences.append(f"the audit of this model's data says that it must not be trusted: {audit.verdict}")
    evaluations = find_evaluations(found.store, found.run.info.run_id)
    stressed = next((run for run in evaluations if "stress_collapse" in run.data.tags), None)
    if stressed is not None and stressed.data.tags["stress_collapse"] == "true":
        sentences.append(f"under stress this model fails: {stressed.data.tags['stress_sentence']}")
    return sentences


def classify_files(model: TrackedModel, names: Sequence[str]) -> tuple[tuple[Decision, ...], dict[str, str]]:
    """Decode files as in training and decide each at the model's own threshold.

    Returns:
        The decisions on the usable files, in the order given, and for every other file the reason why not.
    """
    decisions: list[Decision] = []
    skipped: dict[str, str] = {}
    for first in range(0, len(names), _CHUNK_NUM_FILES):
        pictures = {}
        for name in names[first : first + _CHUNK_NUM_FILES]:
            try:
                pictures[name] = decode_image(Path(name), model.image_size_px)[0]
            except UnusableImageError as err:
                skipped[name] = str(err)
            except OSError as err:
                skipped[name] = err.strerror or str(err)
        if pictures:
            scores = predict(model.network, np.stack(list(pictures.values())), np.arange(len(pictures)))
            decisions += [_decide(model, name, pair) for name, pair in zip(pictures, scores, strict=True)]
    return tuple(decisions), skipped


def _decide(model: TrackedModel, name: str, pair: npt.NDArray[np.float32]) -> Decision:
    positive, negative = model.class_names
    probabilities = {positive: float(pair[0]), negative: float(pair[1])}
    decided = positive if probabilities[positive] > model.threshold else negative
    return Decision(name, decided, probabilities[decided], probabilities)


_STYLES = {"fail": "bold white on red", "warn": "bold yellow", "info": "dim"}


def audit_note(card: Card) -> str:
    """Return the audit as Markdown for the head of its run's page: verdict and findings, worst first."""
    lines = [f"**{card.verdict}**", ""]
    lines += [f"- **{finding.severity}** ({finding.check}): {finding.sentence}" for finding in card.findings]
    return "\n".join([*lines, "", "The whole card: `card.md` among the artifacts."])


def headline(card: Card) -> str:
    """Return the verdict in a form that stands alone: the worst finding, or that there is none."""
    alarms = [finding for finding in card.findings if finding.severity != "info"]
    return alarms[0].sentence if alarms else card.verdict


def print_card(card: Card) -> None:
    """Print the verdict, the findings, worst first, and what every probe gets right."""
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
        console.print("          Results on these images are void until this is mended (exit code 3).", style="bold")


def print_evaluation(sentences: Sequence[str], tables: Mapping[str, Any]) -> None:
    """Print what an evaluation found, sentence by sentence, and its tables (pandas) with their rates."""
    for title, frame in tables.items():
        table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
        for column in frame.columns:
            table.add_column(str(column), justify="left" if frame[column].dtype == object else "right")
        for row in frame.itertuples(index=False):
            table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
        wide_console.print(table)
    for sentence in sentences:
        console.print(f"- {sentence}")


def print_decisions(decisions: Sequence[Decision], class_names: Sequence[str]) -> None:
    """Print one row a file: the class it is called, and the probability of each class."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("file", "class", *(f"P({name})" for name in class_names)):
        table.add_column(heading, no_wrap=True)
    for decision in decisions:
        chances = (f"{decision.probabilities[name]:.4f}" for name in class_names)
        table.add_row(decision.file, decision.decided, *chances)
    wide_console.print(table)


def tell(step: str) -> None:
    """Say what is being done, in passing."""
    console.print(f"          {step} ...", style="dim")
