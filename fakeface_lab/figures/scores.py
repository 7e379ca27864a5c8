"""Figures of a model's scores: confusion matrix, ROC, reliability, recall under stress.

The numbers come from `evaluation`; nothing is computed here except positions on the page.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from fakeface_lab.evaluation.scores import Calibration
from fakeface_lab.figures import CLASS_COLOURS

__all__ = ["confusion_figure", "reliability_figure", "robustness_curves", "roc_figure"]

FAMILY_AXES = {
    "jpeg": "JPEG quality",
    "blur": "Gaussian blur, sigma in px",
    "rescale": "scaled down and up, factor",
    "gray": "without colour",
    "flip": "mirrored",
    "shift": "shifted down and right, % of the side",
    "crop": "centre crop, % of the side",
    "pad": "padded, % of the side",
    "noise": "noise, sigma of 255",
    "blur_jpeg": "blur of sigma 2, then JPEG quality",
    "rescale_jpeg": "half the size, then JPEG quality",
    "rotate": "rotated, degrees",
    "brightness": "brightness, %",
    "contrast": "contrast, %",
    "shift_up_left": "shifted up and left, %",
    "shift_up_right": "shifted up and right, %",
    "shift_down_left": "shifted down and left, %",
    "pad_edge": "padded with the edge, %",
    "pad_reflect": "padded with the reflection, %",
}
# These are plotted with falling levels, so that the change grows to the right in every panel.
FALLING_FAMILIES = ("jpeg", "rescale", "crop", "blur_jpeg", "rescale_jpeg")


def confusion_figure(
    labels: npt.NDArray[np.int64], decisions: npt.NDArray[np.int64], class_names: tuple[str, str], title: str
) -> Figure:
    """Return the confusion matrix with counts; rows are the true classes."""
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    ConfusionMatrixDisplay.from_predictions(
        labels, decisions, labels=[0, 1], display_labels=class_names, cmap="Blues", colorbar=False, ax=axes
    )
    axes.set(title=title, xlabel="decided", ylabel="true")
    return figure


def roc_figure(is_positive: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64], positive: str) -> Figure:
    """Return the ROC curve for detecting `positive`."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    RocCurveDisplay.from_predictions(is_positive, scores, ax=axes, plot_chance_level=True, name=f"detect {positive}")
    axes.set(
        xlabel=f"fraction of the others called {positive}",
        ylabel=f"fraction of {positive} found",
        xlim=(-0.02, 1.02),
    )
    axes.grid(True, alpha=0.3)
    return figure


def reliability_figure(calibration: Calibration, scores: ArrayLike, positive: str) -> Figure:
    """Share of `positive` in each bin of scores with its interval, the null band in gray, a histogram of scores below.

    Args:
        calibration: of these scores.
        scores: float (N,), probability of the positive class.
        positive: name of the positive class.
    """
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    place = np.array([point.mean_score for point in calibration.bins])
    share = np.array([point.positive.value for point in calibration.bins])
    low, high = ([getattr(point.positive, end) for point in calibration.bins] for end in ("low", "high"))
    null_low, null_high = ([getattr(point, end) for point in calibration.bins] for end in ("null_low", "null_high"))
    above.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1)
    above.vlines(place, null_low, null_high, color="gray", alpha=0.35, linewidth=9, label="calibrated, by chance")
    above.errorbar(
        place, share, yerr=[share - low, high - share], fmt="o", markersize=4, color=CLASS_COLOURS[1], label="measured"
    )
    above.set(ylabel=f"share of {positive}", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    above.set_title(f"ECE {calibration.ece:.3f}, by chance up to {calibration.null_high:.3f}", fontsize=10)
    above.legend(loc="upper left", fontsize=8)
    below.hist(np.asarray(scores, dtype=float), bins=np.linspace(0, 1, 26).tolist(), color=CLASS_COLOURS[1])
    below.set(xlabel=f"probability of {positive}", ylabel="images")
    return figure


def robustness_curves(table: pd.DataFrame, class_names: Sequence[str]) -> Figure:
    """One panel per family of changes: recall of both classes with 95 % bands, clean recall dashed.

    Args:
        table: `StressReport.table`, with the row "clean".
        class_names: positive class first.
    """
    families = [family for family in FAMILY_AXES if family in set(table["family"])]
    num_columns = min(4, len(families))
    num_rows = -(-len(families) // num_columns)
    figure = Figure(figsize=(3.6 * num_columns, 2.7 * num_rows + 0.7), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).ravel()
    for panel in panels[len(families) :]:
        panel.remove()
    for panel, family in zip(panels, families, strict=False):
        rows = table[table["family"] == family].sort_values("level", ascending=family not in FALLING_FAMILIES)
        _draw_family(panel, rows, table.loc[["clean"]], class_names)
        panel.set_xlabel(FAMILY_AXES[family])
        panel.set_ylim(-0.03, 1.03)
        panel.grid(axis="y", alpha=0.3)
    for panel in panels[: len(families) : num_columns]:
        panel.set_ylabel("recall")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def _draw_family(panel: Axes, rows: pd.DataFrame, clean: pd.DataFrame, class_names: Sequence[str]) -> None:
    # At equal distances: to scale, JPEG 95 and 90 would nearly coincide.
    places = np.arange(len(rows))
    for offset, name, colour in zip((-0.06, 0.06), class_names, CLASS_COLOURS, strict=True):
        recall = f"recall_{name}"
        low, value, high = (rows[column].to_numpy(float) for column in (f"{recall}_low", recall, f"{recall}_high"))
        panel.axhline(clean[recall].item(), color=colour, linestyle="--", linewidth=0.8)
        if len(rows) > 1:
            panel.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
            panel.plot(places, value, color=colour, marker="o", markersize=4, label=name)
        else:  # with a single level a band would have no width
            panel.errorbar(
                places + offset,
                value,
                yerr=[value - low, high - value],
                color=colour,
                fmt="o",
                markersize=4,
                label=name,
            )
    # A level of 0 belongs to a change without levels, such as gray.
    panel.set_xticks(places, [f"{level:g}" if level else "" for level in rows["level"]])
    panel.set_xlim(-0.5, len(rows) - 0.5)
