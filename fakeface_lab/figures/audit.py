"""Figures of an audit: mean faces, the thumbnail probe's weights, the closest pairs, images with suspect labels.

The arrays come from `evaluation.audit.probes`, the pairs from `data.splits`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from fakeface_lab.figures import SIGNED_COLOURS

__all__ = ["closest_pairs_sheet", "mean_faces_figure", "printable", "suspects_sheet", "thumbnail_weights_figure"]


def mean_faces_figure(means: ArrayLike, class_names: Sequence[str]) -> Figure:
    """The mean picture of each class and the difference of their brightness.

    A sharp mean shows that the pictures of that class are framed alike.

    Args:
        means: float (2, H, W, 3), 0 to 255, from `mean_faces`.
        class_names: positive class first.
    """
    faces = np.asarray(means, dtype=float)
    difference = (faces[0] - faces[1]).mean(axis=2)
    figure = Figure(figsize=(9.5, 3.3), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, face, name in zip(panels[:2], faces, class_names, strict=True):
        panel.imshow(np.clip(face / 255, 0, 1))
        panel.set(title=f"mean of {name}")
    limit = _draw_signed(panels[2], difference)
    panels[2].set(title=f"{class_names[0]} minus {class_names[1]}")
    bar = figure.colorbar(ScalarMappable(Normalize(-limit, limit), SIGNED_COLOURS), ax=panels[2])
    bar.set_label("brightness, of 255")
    for panel in panels:
        panel.set(xticks=[], yticks=[])
    return figure


def thumbnail_weights_figure(weights: ArrayLike, class_names: Sequence[str]) -> Figure:
    """Where brightness is evidence for which class to the thumbnail probe: the sum of all channels, then each one.

    Args:
        weights: float (h, w, 3), above 0 for class 0, from `thumbnail_weights`.
        class_names: positive class first.
    """
    values = np.asarray(weights, dtype=float)
    figure = Figure(figsize=(11.5, 3.3), layout="constrained")
    panels = figure.subplots(1, 4)
    shown = [("all channels", values.sum(axis=2))]
    shown += [(name, values[..., channel]) for channel, name in enumerate(("red", "green", "blue"))]
    for panel, (name, layer) in zip(panels, shown, strict=True):
        _draw_signed(panel, layer)
        panel.set(title=name, xticks=[], yticks=[])
    bar = figure.colorbar(
        # Each panel has its own scale, so the bar says only which side is which.
        ScalarMappable(Normalize(-1, 1), SIGNED_COLOURS),
        ax=list(panels),
        shrink=0.7,
        ticks=[-1, 0, 1],
    )
    bar.ax.set_yticklabels([f"bright: {class_names[1]}", "0", f"bright: {class_names[0]}"])
    return figure


def closest_pairs_sheet(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    pairs: pd.DataFrame,
    captions: Sequence[str],
    max_pairs: int = 12,
) -> Figure:
    """Contact sheet of the closest pairs, two side by side: the same picture twice, or only look-alikes?

    Args:
        images: uint8 (N, H, W, 3), RGB; may be memory-mapped, only the shown ones are read.
        pairs: from `data.splits.closest_pairs`, with `correlation`, closest first; if `is_mirrored`, the first picture
            is shown mirrored.
        captions: one per image, e.g. its name and class.
        max_pairs: largest number of pairs shown.
    """
    shown = pairs.head(max_pairs)
    num_columns = max(1, min(3, len(shown)))
    num_rows = max(1, -(-len(shown) // num_columns))
    figure = Figure(figsize=(4.4 * num_columns, 2.5 * num_rows + 0.3), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for panel in panels[len(shown) :]:
        panel.remove()
    if shown.empty:
        figure.suptitle("No two pictures look alike.")
        return figure
    for panel, pair in zip(panels, shown.to_dict("records"), strict=False):
        first, second = int(pair["first"]), int(pair["second"])
        left = np.asarray(images[first])
        left = left[:, ::-1] if pair["is_mirrored"] else left
        gap = np.full((left.shape[0], max(1, left.shape[1] // 30), 3), 255, dtype=np.uint8)
        panel.imshow(np.concatenate([left, gap, np.asarray(images[second])], axis=1))
        mirrored = " (mirrored)" if pair["is_mirrored"] else ""
        distance = f"pHash {pair['phash_bits']} bits apart, details correlate by {pair['correlation']:.2f}"
        panel.set(xticks=[], yticks=[])
        panel.set_title(f"{captions[first]}{mirrored} | {captions[second]}\n{distance}", fontsize=8)
    return figure


def suspects_sheet(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    rows: Sequence[int],
    captions: Sequence[str],
    probabilities: Sequence[float],
    max_images: int = 24,
) -> Figure:
    """Contact sheet of the images with suspect labels, most suspicious first.

    Args:
        images: uint8 (N, H, W, 3), RGB; may be memory-mapped, only the shown ones are read.
        rows: which of them, at least one.
        captions: one per row, e.g. its name and class.
        probabilities: one per row, of its label according to all probes together.
        max_images: largest number of images shown.
    """
    shown = list(zip(rows, captions, probabilities, strict=True))[:max_images]
    num_columns = min(6, len(shown))
    num_rows = -(-len(shown) // num_columns)
    figure = Figure(figsize=(2.0 * num_columns, 2.4 * num_rows + 0.3), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for panel in panels[len(shown) :]:
        panel.remove()
    for panel, (row, caption, probability) in zip(panels, shown, strict=False):
        panel.imshow(images[row])
        panel.set(xticks=[], yticks=[])
        panel.set_title(f"{caption}\nlabel: probability {probability:.2f}", fontsize=7)
    return figure


def _draw_signed(panel: Axes, values: NDArray[np.float64]) -> float:
    """Draw on a scale symmetric about 0 and return its end."""
    limit = float(np.abs(values).max()) or 1.0
    # Not interpolated: of 16x16 weights anything between the cells would be invented.
    panel.imshow(values, cmap=SIGNED_COLOURS, vmin=-limit, vmax=limit, interpolation="nearest")
    return limit


def printable(name: str) -> str:
    """Return a name that Matplotlib can draw: dollar signs escaped, bytes that are not UTF-8 replaced."""
    return name.encode("utf-8", "replace").decode().replace("$", r"\$")
