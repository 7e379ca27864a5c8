"""Pictures of one training: curves, the documented figure, confusion matrix, ROC."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from fakeface_lab.evaluation.scores import Calibration

__all__ = [
    "confusion_figure",
    "documented_figure",
    "mean_maps",
    "reliability_figure",
    "roc_figure",
    "saliency_overlays",
]


def documented_figure(history: Mapping[str, Sequence[float]]) -> Figure:
    """Return the document's figure: accuracy on the left axis, loss on the right, its colours and title.

    Args:
        history: `loss`, `accuracy` and, where there is validation data, `val_loss` and `val_accuracy`, by epoch.
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    accuracy_axes = figure.add_subplot()
    loss_axes = accuracy_axes.twinx()
    epochs = range(1, len(history["loss"]) + 1)
    for axes, name, style, label in (
        (accuracy_axes, "accuracy", "bo-", "Training Accuracy"),
        (accuracy_axes, "val_accuracy", "ro-", "Validation Accuracy"),
        (loss_axes, "loss", "go-", "Training Loss"),
        (loss_axes, "val_loss", "yo-", "Validation Loss"),
    ):
        if name in history:
            axes.plot(epochs, history[name], style, label=label)
    accuracy_axes.set(title="Training and Validation Accuracy & Loss", xlabel="Epochs", ylabel="Accuracy")
    loss_axes.set_ylabel("Loss")
    accuracy_axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    accuracy_axes.legend(loc="center right")
    loss_axes.legend(loc="lower right")
    loss_axes.grid(True)
    return figure


def confusion_figure(
    labels: npt.NDArray[np.int64], decisions: npt.NDArray[np.int64], class_names: tuple[str, str], title: str
) -> Figure:
    """Return the confusion matrix with counts; rows are the truth."""
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


_COLOUR = "#0072b2"  # of Okabe & Ito (2008)


def reliability_figure(calibration: Calibration, scores: ArrayLike, positive: str) -> Figure:
    """Share of `positive` in each bin of scores with its interval, the null band in gray, all scores below.

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
        place, share, yerr=[share - low, high - share], fmt="o", markersize=4, color=_COLOUR, label="measured"
    )
    above.set(ylabel=f"share of {positive}", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    above.set_title(f"ECE {calibration.ece:.3f}, by chance up to {calibration.null_high:.3f}", fontsize=10)
    above.legend(loc="upper left", fontsize=8)
    below.hist(np.asarray(scores, dtype=float), bins=np.linspace(0, 1, 26).tolist(), color=_COLOUR)
    below.set(xlabel=f"probability of {positive}", ylabel="images")
    return figure


SIGNED_COLOURS = "PuOr_r"  # orange: class 0, as its curve; purple: class 1


def saliency_overlays(
    images: ArrayLike,
    maps: ArrayLike,
    captions: Sequence[str],
    class_names: Sequence[str],
    num_columns: int = 4,
) -> Figure:
    """Each image above itself in gray under its signed map; every map has its own scale, symmetric about 0.

    Args:
        images: (N, H, W, 3), uint8 or float in [0, 1].
        maps: float (N, h, w), above 0 for class 0; any grid, it is stretched over the image.
        captions: one per image.
        class_names: positive class first.
        num_columns: images side by side.
    """
    pixels, values = np.asarray(images), np.asarray(maps, dtype=float)
    num_columns = min(num_columns, len(pixels))
    num_rows = -(-len(pixels) // num_columns)
    figure = Figure(figsize=(2.1 * num_columns + 0.7, 4.4 * num_rows + 0.3), layout="constrained")
    panels = figure.subplots(2 * num_rows, num_columns, squeeze=False)
    for place in range(num_rows * num_columns):
        row, column = divmod(place, num_columns)
        above, below = panels[2 * row, column], panels[2 * row + 1, column]
        if place >= len(pixels):
            above.remove()
            below.remove()
            continue
        above.imshow(pixels[place])
        above.set_title(captions[place], fontsize=8)
        _draw_overlay(below, pixels[place], values[place])
        for panel in (above, below):
            panel.set(xticks=[], yticks=[])
    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), SIGNED_COLOURS), ax=figure.axes, shrink=0.5, ticks=[-1, 0, 1]
    )
    bar.ax.set_yticklabels([f"for {class_names[1]}", "0", f"for {class_names[0]}"])
    return figure


def _draw_overlay(panel: Axes, image: ArrayLike, values: ArrayLike) -> None:
    height, width = np.shape(image)[:2]
    largest = np.abs(values).max()
    scaled = np.asarray(values) / largest if largest > 0 else np.asarray(values)
    panel.imshow(np.asarray(image).mean(axis=-1), cmap="gray")
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    panel.imshow(
        scaled, cmap=SIGNED_COLOURS, vmin=-1, vmax=1, alpha=np.abs(scaled) ** 0.5 * 0.9, extent=extent,
        interpolation="nearest",
    )  # fmt: skip


def mean_maps(
    means: ArrayLike,
    class_names: Sequence[str],
    border_shares: Sequence[float],
    area_share: float,
    border_fraction: float,
) -> Figure:
    """Mean evidence of each class on one scale, with the border dashed and its share of the energy below.

    Args:
        means: float (2, h, w), from `evaluation.saliency.mean_evidence`.
        class_names: positive class first.
        border_shares: share of energy in the border for each class, in [0, 1].
        area_share: share of the area in the border, in [0, 1].
        border_fraction: width of the border as a fraction of the side.
    """
    values = np.asarray(means, dtype=float)
    density = values * values[0].size  # 1 where evidence is spread evenly: the same scale on any grid
    figure = Figure(figsize=(7.6, 4.1), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, mean, name, share in zip(panels, density, class_names, border_shares, strict=True):
        drawn = panel.imshow(mean, cmap="magma", vmin=0, vmax=density.max(), extent=(0, 1, 1, 0))
        side = 1 - 2 * border_fraction
        panel.add_patch(
            Rectangle((border_fraction, border_fraction), side, side, fill=False, edgecolor="white", linestyle="--")
        )
        panel.set(xticks=[], yticks=[], title=f"evidence for {name}")
        panel.set_xlabel(f"{100 * share:.0f} % of it in the border,\nwhich is {100 * area_share:.0f} % of the area")
    figure.colorbar(drawn, ax=panels, shrink=0.8, label="evidence, 1 = spread evenly")
    return figure
