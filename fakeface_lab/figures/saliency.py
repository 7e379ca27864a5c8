"""Figures of saliency maps: laid over single images, and as the mean of each class.

Owns how they look. The maps come from `evaluation.saliency`.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

__all__ = ["mean_maps", "saliency_overlays"]

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
