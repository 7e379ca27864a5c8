"""What people read of an audit, an evaluation and a prediction: in the terminal, and as the note of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from fakeface_lab.assess.application import Decision
from fakeface_lab.evaluation.card import Card
from fakeface_lab.terminal import console, say, wide_console

__all__ = ["audit_note", "headline", "print_card", "print_decisions", "print_evaluation", "tell"]

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
