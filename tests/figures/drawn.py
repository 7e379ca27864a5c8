"""A training's history to draw, and what a figure shows of it."""

import io

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

HISTORY = {
    "loss": [0.65, 0.14, 0.1],
    "accuracy": [0.8, 0.95, 0.96],
    "val_loss": [0.24, 0.2, 0.17],
    "val_accuracy": [0.98, 0.94, 0.97],
    "learning_rate": [1e-4] * 3,
}


def lines(figure: Figure) -> dict[str, tuple[str, list[float], list[float]]]:
    """Label to colour, x and y of every line in every axes."""
    return {
        str(line.get_label()): (
            str(line.get_color()),
            np.asarray(line.get_xdata()).tolist(),
            np.asarray(line.get_ydata()).tolist(),
        )
        for axes in figure.axes
        for line in axes.get_lines()
    }


def is_drawn(figure: Figure) -> bool:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=40)
    pixels = np.asarray(Image.open(target).convert("L"))
    return bool(pixels.min() < 128 < pixels.max())
