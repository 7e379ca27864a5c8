"""Everything measured about one model on one set of images: scores with intervals, calibration, groups, stress, maps.

Combines the parts of `evaluation` and `figures`. `tracked_model` chooses the images; the program writes to MLflow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table
from sklearn.metrics import average_precision_score

from fakeface_lab.assess.application import explain_decisions
from fakeface_lab.assess.inspection import headline, inspect_images, write_card
from fakeface_lab.assess.tracked_model import EXTERNAL, TrackedModel
from fakeface_lab.data.images import ImageSet
from fakeface_lab.data.properties import pixel_properties
from fakeface_lab.detector.fit import predict
from fakeface_lab.detector.stress import is_collapse, stress_scores
from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.audit.audit import AuditSettings
from fakeface_lab.evaluation.audit.card import Card
from fakeface_lab.evaluation.intervals import bootstrap_interval, metric_key, roc_auc, slice_accuracies
from fakeface_lab.evaluation.scores import calibration, detection_scores
from fakeface_lab.evaluation.stress.suite import SEARCH_CONDITIONS, SUITE_VERSION, objective_values, stress_report
from fakeface_lab.figures import save_figures
from fakeface_lab.figures.audit import printable
from fakeface_lab.figures.images import decision_gallery
from fakeface_lab.figures.scores import confusion_figure, reliability_figure, robustness_curves, roc_figure
from fakeface_lab.terminal import console, wide_console
from fakeface_lab.tracking.scores import ScoredImage, write_scores

__all__ = ["Assessment", "assess", "print_evaluation"]

# The jackknife of the BCa interval scores all images once per image; with more images the interval is narrow anyway.
_MAX_BOOTSTRAPPED = 5000


@dataclass
class Assessment:
    """What was measured.

    Attributes:
        metrics: by name, as logged to the run.
        sentences: what they mean, most important first.
        tables: by file name without suffix.
        figures: by file name without suffix.
        tags: of the run, for later programs.
        is_correct: bool (num_images,), whether the model is right about each image.
        card: the audit of another data set's images, None for the model's own.
        class_names: of the model, the class to detect first.
        scores: the images with the probability of each class.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    is_correct: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))
    card: Card | None = None
    class_names: tuple[str, ...] = ()
    scores: list[ScoredImage] = field(default_factory=list)

    def shown(self) -> dict[str, pd.DataFrame]:
        """Return the tables that fit a terminal, by title."""
        tables = {"groups": self.tables["groups"]}
        if "stress" in self.tables:
            left_out = ("family", "level", "num_images", "balanced_accuracy")
            table = self.tables["stress"]
            tables["stress"] = table[
                [name for name in map(str, table) if name not in left_out and not name.endswith(("_low", "_high"))]
            ]
        return tables

    def write(self, folder: Path) -> None:
        """Write scores and tables as CSV, figures as PNG, and the card."""
        if self.card is not None:
            write_card(self.card, folder)
        write_scores(folder / "scores.csv", [f"probability_{name}" for name in self.class_names], self.scores)
        for name, table in self.tables.items():
            table.to_csv(folder / f"{name}.csv", index=False, encoding="utf-8", errors="surrogateescape")
        save_figures(self.figures, folder)


@dataclass(frozen=True)
class _Scored:
    """One model on some rows of an image set."""

    model: TrackedModel
    images: ImageSet
    rows: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.images.labels[self.rows]

    @property
    def is_positive(self) -> npt.NDArray[np.bool_]:
        return self.images.is_positive[self.rows]

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        return self.probabilities[:, 0].astype(np.float64)

    @property
    def is_correct(self) -> npt.NDArray[np.bool_]:
        return np.asarray((self.scores > self.model.threshold) == self.is_positive)


def assess(
    model: TrackedModel,
    images: ImageSet,
    rows: npt.NDArray[np.int64],
    part: str,
    *,
    stress: bool,
    show: Callable[[str], None] = lambda step: None,
) -> Assessment:
    """Measure a model on some images at its own threshold, which is never refitted.

    Another data set is audited first: if something other than forgery separates its classes, its figures are void, and
    the first sentence says so.

    Args:
        model: the model.
        images: all images, at the model's size.
        rows: int64 (num_images,), which of them.
        part: "test", or `EXTERNAL` for another data set; prefix of the metrics.
        stress: whether the images are also scored under every condition of the stress suite.
        show: called with the name of each step before it runs.

    Raises:
        DataError: the images lack a class.
    """
    if len(set(images.labels[rows].tolist())) < 2:
        raise DataError(f"{images.source.root}: the {len(rows)} images to evaluate are not of both classes; add some")
    result = Assessment(class_names=model.class_names)
    caveat = _add_audit(result, images, rows, show) if part == EXTERNAL else ""
    show(f"{len(rows)} images")
    scored = _Scored(model, images, rows, predict(model.network, images.pixels, rows))
    result.is_correct = scored.is_correct
    _add_detection(result, scored, part, caveat)
    _add_calibration(result, scored, part)
    _add_groups(result, scored, part)
    if stress:
        _add_stress(result, scored, show)
    show("where it looks")
    _add_gallery(result, scored)
    explanation = explain_decisions(model, images, rows, scored.scores)
    result.metrics |= explanation.metrics
    result.figures |= explanation.figures
    result.sentences.append(explanation.sentence)
    return result


def _add_audit(result: Assessment, images: ImageSet, rows: npt.NDArray[np.int64], show: Callable[[str], None]) -> str:
    """Audit another data set; return the caveat that belongs to its figures, "" if nothing was found."""
    # Only the images that are scored: what the model has seen before must not decide about them.
    card = inspect_images(images.only(rows), None, AuditSettings(), 0, show).card
    result.card = card
    result.tags |= {"external_audit_worst": card.worst or "", "external_audit_verdict": headline(card)}
    if card.worst == "fail":
        return f" This figure is void: {card.verdict}"
    return f" Take this figure with care: {card.verdict}" if card.alarms or card.traces else ""


def _add_detection(result: Assessment, scored: _Scored, part: str, caveat: str) -> None:
    names, truth, scores = scored.model.class_names, scored.is_positive, scored.scores
    panel = detection_scores(truth, scores, names, scored.model.threshold)
    metrics = panel.metrics()
    ranked = []
    for name, statistic in (("roc_auc", roc_auc), ("average_precision", average_precision_score)):
        ranked.append(f"{name.replace('_', ' ')} {metrics[name]:.4f}")
        interval = bootstrap_interval(statistic, truth, scores) if len(truth) <= _MAX_BOOTSTRAPPED else None
        if interval is not None:
            metrics |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
            ranked[-1] += f" (95 % interval {interval.low:.4f}-{interval.high:.4f})"
    result.metrics |= {f"{part}_{name}": value for name, value in metrics.items()}
    # With the caveat in one text, so that the figure is not quoted without it.
    result.sentences.append(f"Accuracy {panel.accuracy}.{caveat}")
    result.sentences.append(
        f"Of {names[0]} images it finds {panel.recall_positive}, of {names[1]} images {panel.recall_negative}."
    )
    result.sentences.append(f"Ranking: {', '.join(ranked)}.")
    decisions = np.where(scores > scored.model.threshold, 0, 1)
    title = f"{part}: {int(scored.is_correct.sum())} of {len(truth)} right"
    result.figures["confusion"] = confusion_figure(scored.labels, decisions, names, title)
    result.figures["roc"] = roc_figure(truth, scores, names[0])
    files = [scored.images.files[row] for row in scored.rows]
    result.scores = [
        ScoredImage(file.name, file.sha256, names[file.label], part, own)
        for file, own in zip(files, scored.probabilities, strict=True)
    ]


def _add_calibration(result: Assessment, scored: _Scored, part: str) -> None:
    found = calibration(scored.is_positive, scored.scores)
    result.metrics |= {f"{part}_{name}": value for name, value in found.metrics().items()}
    result.sentences.append(f"Calibration: {found}.")
    positive = scored.model.class_names[0]
    result.figures["reliability"] = reliability_figure(found, scored.scores, positive)
    result.tables["reliability"] = pd.DataFrame(
        {"mean_score": point.mean_score, "null_low": point.null_low, "null_high": point.null_high}
        | point.positive.metrics("positive")
        for point in found.bins
    )


def _add_groups(result: Assessment, scored: _Scored, part: str) -> None:
    found = slice_accuracies(scored.is_correct, _groups(scored))
    result.metrics |= {f"{part}_{name}": value for name, value in found.metrics().items()}
    result.tables["groups"] = pd.DataFrame(
        {"group": name, "right": rate.num_correct, "of": rate.num_total}
        | {"accuracy": rate.value, "low": rate.low, "high": rate.high}
        for name, rate in found.accuracies.items()
        if rate is not None
    )
    if found.worst is not None:
        result.sentences.append(
            f"Worst of {found.num_judged} groups: {found.worst}, {found.worst_accuracy}; the interval allows for the "
            f"choice among them."
        )


def _groups(scored: _Scored) -> Mapping[str, npt.NDArray[np.bool_]]:
    """Groups of each class by colour: gray or not, and below or above the median saturation and brightness."""
    table = pixel_properties([scored.images.pixels[row] for row in scored.rows])
    is_gray = table["is_gray"].to_numpy(dtype=bool)
    brightness = table[["mean_red", "mean_green", "mean_blue"]].mean(axis=1).to_numpy()
    saturation = table["saturation"].to_numpy()
    traits = {
        "gray": is_gray,
        "colour": ~is_gray,
        "dull": saturation <= np.median(saturation),
        "vivid": saturation > np.median(saturation),
        "dark": brightness <= np.median(brightness),
        "bright": brightness > np.median(brightness),
    }
    groups: dict[str, npt.NDArray[np.bool_]] = {}
    # Within a class: all gray documented images are real (docs/truth.md), so a group across both classes would compare
    # the classes and not the colours.
    for index, name in enumerate(scored.model.class_names):
        groups |= {f"{trait} {name}": has & (scored.labels == index) for trait, has in traits.items()}
    return groups


def _add_stress(result: Assessment, scored: _Scored, show: Callable[[str], None]) -> None:
    model, labels = scored.model, scored.labels
    scores = stress_scores(
        model.network, scored.images, scored.rows, show=lambda condition: show(f"stress: {condition.name}")
    )
    report = stress_report(model.class_names, labels, scores, model.threshold)
    figures = ["accuracy", *(f"recall_{name}" for name in model.class_names), "flip_rate", "roc_auc"]
    for condition, row in report.table.iterrows():
        result.metrics |= {f"stress_{condition}_{metric_key(name)}": float(row[name]) for name in figures}
    result.metrics |= {f"stress_mean_{metric_key(name)}": value for name, value in report.means.items()}
    # The conditions of a search, so that the figure can stand next to those of its trials.
    for_search = {condition.name: scores[condition.name] for condition in SEARCH_CONDITIONS}
    result.metrics |= objective_values(labels, for_search, model.threshold)
    result.tables["stress"] = report.table.reset_index()
    result.figures["stress"] = robustness_curves(report.table, model.class_names)
    result.sentences.append(f"Under stress: {report.sentence}")
    result.tags |= {
        "stress_sentence": report.sentence,
        "stress_worst_condition": report.worst_condition,
        "stress_collapse": str(is_collapse(report)).lower(),
        "stress_suite_version": str(SUITE_VERSION),
    }


def _add_gallery(result: Assessment, scored: _Scored) -> None:
    # Without a selection the pixels stay memory-mapped, and only the shown pictures of a large folder are read.
    is_whole = len(scored.rows) == len(scored.images.files)
    pixels = scored.images.pixels if is_whole else scored.images.pixels[scored.rows]
    names = [printable(Path(scored.images.files[row].name).name) for row in scored.rows]
    result.figures["gallery"] = decision_gallery(
        pixels, names, scored.labels, scored.scores, scored.model.class_names, scored.model.threshold
    )


def print_evaluation(sentences: Sequence[str], tables: Mapping[str, pd.DataFrame]) -> None:
    """Print the tables of an evaluation by title, and its sentences."""
    for title, frame in tables.items():
        table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
        for column in frame.columns:
            table.add_column(str(column), justify="left" if frame[column].dtype == object else "right")
        for row in frame.itertuples(index=False):
            table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row))
        wide_console.print(table)
    for sentence in sentences:
        console.print(f"- {sentence}")
