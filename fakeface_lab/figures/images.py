"""Figures that show images: galleries of decisions, and saliency maps laid over images or averaged.

The maps come from `evaluation.explanation`.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from fakeface_lab.evaluation.intervals import THRESHOLD, positives
from fakeface_lab.figures import CLASS_COLOURS, SIGNED_COLOURS

__all__ = ["decision_gallery", "image_gallery", "mean_maps", "saliency_overlays"]


def image_gallery(
    images: ArrayLike,
    captions: Sequence[str],
    title: str = "",
    num_columns: int = 6,
    edges: Sequence[str] = (),
) -> Figure:
    """Images in rows with a caption under each.

    Args:
        images: (N, H, W, 3), uint8 or float in [0, 1]; at least one.
        captions: one per image; lines are not wrapped.
        title: above all rows.
        num_columns: images in a row.
        edges: a frame colour per image, or none.
    """
    pixels = np.asarray(images)
    num_columns = min(num_columns, len(pixels))
    num_rows = -(-len(pixels) // num_columns)
    figure = Figure(figsize=(1.7 * num_columns, 2.1 * num_rows + (0.4 if title else 0.0)), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    # Not strict: the last row may have panels to spare.
    for index, (panel, image, caption) in enumerate(zip(panels, pixels, captions, strict=False)):
        panel.imshow(image)
        panel.set_xlabel(caption, fontsize=7)
        panel.set(xticks=[], yticks=[])
        for spine in panel.spines.values():
            spine.set(color=edges[index] if edges else "none", linewidth=2)
    for panel in panels[len(pixels) :]:
        panel.remove()
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def decision_gallery(
    images: ArrayLike,
    names: Sequence[str],
    labels: ArrayLike,
    scores: ArrayLike,
    class_names: Sequence[str],
    threshold: float = THRESHOLD,
    num_images: int = 12,
) -> Figure:
    """The most confident errors, then the nearest calls: right decisions close to the threshold.

    Args:
        images: (N, H, W, 3), uint8 or float in [0, 1].
        names: what to call each image, e.g. its file name.
        labels: int (N,), 0 is the positive class.
        scores: float (N,), probability of the positive class.
        class_names: positive class first.
        threshold: decided positive above it.
        num_images: largest number of images shown, errors first; the frame has the colour of the true class.
    """
    classes, probabilities = np.asarray(labels), np.asarray(scores, dtype=float)
    chosen, num_errors = _errors_then_near_calls(classes, probabilities, threshold, num_images)
    captions = [
        f"{names[index]}\nis {class_names[classes[index]]}, "
        f"{'called so' if place >= num_errors else 'called ' + class_names[1 - classes[index]]}"
        f"\nP({class_names[0]}) = {probabilities[index]:.3f}"
        for place, index in enumerate(chosen)
    ]
    title = f"{num_errors} most confident errors, then the {len(chosen) - num_errors} nearest calls"
    edges = [CLASS_COLOURS[classes[index]] for index in chosen]
    return image_gallery(np.asarray(images)[chosen], captions, title, edges=edges)


def _errors_then_near_calls(
    classes: NDArray[np.int64], scores: NDArray[np.float64], threshold: float, num_images: int
) -> tuple[NDArray[np.intp], int]:
    """Indices to show, and how many of them are errors: at most half."""
    is_error = (scores > threshold) != positives(classes)
    distance = np.abs(scores - threshold)
    errors = np.flatnonzero(is_error)[np.argsort(-distance[is_error], kind="stable")][: num_images // 2]
    near = np.flatnonzero(~is_error)[np.argsort(distance[~is_error], kind="stable")][: num_images - len(errors)]
    return np.concatenate([errors, near]), len(errors)


def saliency_overlays(
    images: ArrayLike,
    maps: ArrayLike,
    captions: Sequence[str],
    class_names: Sequence[str],
    num_columns: int = 4,
) -> Figure:
    """Each image, and below it the same image in gray under its signed map; each map is scaled by its own maximum.

    Args:
        images: (N, H, W, 3), uint8 or float in [0, 1].
        maps: float (N, h, w), above 0 for class 0, on any grid; stretched over the image.
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
    # In gray, so that all colour belongs to the map.
    panel.imshow(np.asarray(image).mean(axis=-1), cmap="gray")
    # The frame of the picture below: `imshow` puts the centres of pixels on whole numbers.
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    panel.imshow(
        # The square root keeps weak evidence visible, which would otherwise fade into the gray.
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
        means: float (2, h, w), from `evaluation.explanation.mean_evidence`.
        class_names: positive class first.
        border_shares: share of energy in the border for each class, in [0, 1].
        area_share: share of the area in the border, in [0, 1].
        border_fraction: width of the border as a fraction of the side.
    """
    values = np.asarray(means, dtype=float)
    density = values * values[0].size  # 1 if evidence is spread evenly, whatever the grid
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
