"""All figures, by what they show. Functions of the modules return a Figure, and `save_figures` draws and writes it."""

import threading
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

# Nothing here uses pyplot, which keeps every figure in memory until it is closed and looks for a display.
__all__ = ["CLASS_COLOURS", "SIGNED_COLOURS", "save_figures"]

_DPI = 100
_DRAWING = threading.Lock()  # Matplotlib is not thread-safe, and several threads upload

# Orange and blue of Okabe & Ito (2008): distinguishable with all common colour vision deficiencies and in gray print.
CLASS_COLOURS = ("#d55e00", "#0072b2")
"""Of the positive and of the negative class."""

SIGNED_COLOURS = "PuOr_r"
"""Colour map of signed values: orange for class 0, like its curve, purple for class 1."""


def save_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write each figure to NAME.png in the folder."""
    with _DRAWING:
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=_DPI)
