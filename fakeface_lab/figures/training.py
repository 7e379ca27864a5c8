"""Pictures of one training: curves, the documented figure, confusion matrix, ROC."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

__all__ = ["confusion_figure", "documented_figure", "roc_figure"]


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
