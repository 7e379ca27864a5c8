"""The curves of a training: loss and accuracy by epoch."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["curve_figures", "documented_figure"]


def documented_figure(history: Mapping[str, Sequence[float]]) -> Figure:
    """Return the documented figure: accuracy on the left axis, loss on the right, with its colours and title.

    Args:
        history: per epoch `loss`, `accuracy` and, with validation data, `val_loss` and `val_accuracy`.
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


# Colour-blind safe, and the same in every figure.
TRAIN_COLOUR, VALIDATION_COLOUR = "#0072B2", "#D55E00"


def curve_figures(history: Mapping[str, Sequence[float]], kept_epoch: int) -> dict[str, Figure]:
    """Return `curve_loss` and `curve_accuracy`, as far as measured, with the kept epoch marked."""
    return {f"curve_{name}": _curve(history, name, kept_epoch) for name in ("loss", "accuracy") if name in history}


def _curve(history: Mapping[str, Sequence[float]], name: str, kept_epoch: int) -> Figure:
    # Not by pyplot, which keeps every figure in memory until it is closed. Fixed margins: a layout that finds its own
    # draws twice, for each trial of a search.
    figure = Figure(figsize=(7, 4.5))
    figure.subplots_adjust(left=0.11, right=0.98, top=0.97, bottom=0.11)
    axes = figure.add_subplot()
    epochs = range(1, len(history[name]) + 1)
    axes.plot(epochs, history[name], "o-", color=TRAIN_COLOUR, label="training")
    if f"val_{name}" in history:
        axes.plot(epochs, history[f"val_{name}"], "o-", color=VALIDATION_COLOUR, label="validation")
    axes.axvline(kept_epoch, color="gray", linestyle=":", label=f"kept weights: epoch {kept_epoch}")
    axes.set(xlabel="epoch", ylabel=name)
    # From 0, or the last wobbles of a converged loss would fill the figure.
    if name == "loss":
        axes.set_ylim(bottom=0)
    # Few ticks: most of the time of a drawing is theirs.
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.grid(True, alpha=0.3)
    axes.legend()
    return figure
