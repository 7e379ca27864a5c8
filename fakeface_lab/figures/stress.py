"""Figures of the stress suite: recall against the level of each change, and the images worth a look.

Owns how they look. The numbers come from `evaluation.stress`; nothing is computed here but positions on a
page.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

__all__ = ["CLASS_COLOURS", "decision_gallery", "image_gallery", "robustness_curves"]

# Blue and orange of Okabe & Ito (2008): told apart with every common colour vision and in gray print.
CLASS_COLOURS = ("#d55e00", "#0072b2")

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
# More change to the right in every panel.
FALLING_FAMILIES = ("jpeg", "rescale", "crop", "blur_jpeg", "rescale_jpeg")


def robustness_curves(table: pd.DataFrame, class_names: Sequence[str]) -> Figure:
    """One panel per family of change: recall of both classes with 95 % bands, the clean recall dashed.

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
    places = np.arange(len(rows))
    for offset, name, colour in zip((-0.06, 0.06), class_names, CLASS_COLOURS, strict=True):
        recall = f"recall_{name}"
        low, value, high = (rows[column].to_numpy(float) for column in (f"{recall}_low", recall, f"{recall}_high"))
        panel.axhline(clean[recall].item(), color=colour, linestyle="--", linewidth=0.8)
        if len(rows) > 1:
            panel.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
            panel.plot(places, value, color=colour, marker="o", markersize=4, label=name)
        else:  # a band has no width at a single level
            panel.errorbar(
                places + offset,
                value,
                yerr=[value - low, high - value],
                color=colour,
                fmt="o",
                markersize=4,
                label=name,
            )
    panel.set_xticks(places, [f"{level:g}" if level else "" for level in rows["level"]])
    panel.set_xlim(-0.5, len(rows) - 0.5)


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
    threshold: float = 0.5,
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
        num_images: at most so many, errors first; the frame has the colour of the true class.
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
    """Indices to show, and how many of them are errors; half the room is kept for near calls."""
    is_error = (scores > threshold) != (classes == 0)
    distance = np.abs(scores - threshold)
    errors = np.flatnonzero(is_error)[np.argsort(-distance[is_error], kind="stable")][: num_images // 2]
    near = np.flatnonzero(~is_error)[np.argsort(distance[~is_error], kind="stable")][: num_images - len(errors)]
    return np.concatenate([errors, near]), len(errors)
