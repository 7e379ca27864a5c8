"""Pictures of the epochs of one training."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["curve_figures"]

# Colour-blind safe, the same in every picture: training and validation.
TRAIN_COLOUR, VALIDATION_COLOUR = "#0072B2", "#D55E00"


def curve_figures(history: Mapping[str, Sequence[float]], kept_epoch: int) -> dict[str, Figure]:
    """Return one clean picture for the loss and one for the accuracy, with the kept epoch marked."""
    return {name: _curve(history, name, kept_epoch) for name in ("loss", "accuracy") if name in history}


def _curve(history: Mapping[str, Sequence[float]], name: str, kept_epoch: int) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    epochs = range(1, len(history[name]) + 1)
    axes.plot(epochs, history[name], "o-", color=TRAIN_COLOUR, label="training")
    if f"val_{name}" in history:
        axes.plot(epochs, history[f"val_{name}"], "o-", color=VALIDATION_COLOUR, label="validation")
    axes.axvline(kept_epoch, color="gray", linestyle=":", label=f"kept weights: epoch {kept_epoch}")
    axes.set(xlabel="epoch", ylabel=name)
    if name == "loss":
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, alpha=0.3)
    axes.legend()
    return figure
