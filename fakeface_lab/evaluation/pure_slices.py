"""Pure slices: values of a property that, of two classes, only one has.

Owns how a property is cut into slices and when one counts as pure. A model needs to know nothing of faces to
be right on such a slice, and accuracy alone hides it: a gray tenth of one class moves no probe far.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import fisher_exact

from fakeface_lab.evaluation.card import Finding
from fakeface_lab.evaluation.comparison import holm
from fakeface_lab.evaluation.intervals import wilson

__all__ = ["pure_slice_findings", "slice_names"]

_MAX_VALUES = 20  # a number with more values than that is cut into tenths of the images


def pure_slice_findings(
    properties: pd.DataFrame,
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    significance: float,
    min_fraction: float,
    min_purity: float,
    fail_fraction: float,
) -> list[Finding]:
    """Find the properties with pure slices; one finding a property.

    Args:
        properties: N rows, one column a property.
        labels: int64 (N,), class index.
        class_names: name of each class index.
        significance: largest p-value of Fisher's exact test, Holm-corrected over all slices looked at.
        min_fraction: share of all images that a slice must hold to be looked at.
        min_purity: lower end of the Wilson interval of the larger class's share, from which a slice is pure.
        fail_fraction: share of all images in one property's pure slices from which the finding is a "fail".
    """
    totals = np.bincount(labels, minlength=2)
    slices = [
        (str(column), value, inside)
        for column in properties
        for value, inside in _counts(properties[column], labels)
        if inside.sum() >= min_fraction * len(labels)
    ]
    # Rounding may leave a certain outcome a hair above 1.
    tests = [min(1.0, float(fisher_exact(np.stack([inside, totals - inside])).pvalue)) for _, _, inside in slices]
    pure: dict[str, list[dict[str, Any]]] = {}
    for (column, value, inside), p_value in zip(slices, holm(tests), strict=True):
        purity = wilson(int(inside.max()), int(inside.sum()))
        if purity.low >= min_purity and p_value <= significance:
            class_name = class_names[int(inside.argmax())]
            row = {"value": value, "class": class_name, "holm_p": p_value, **purity.metrics("purity")}
            pure.setdefault(column, []).append(row)
    return [_finding(column, rows, len(labels), fail_fraction) for column, rows in pure.items()]


def slice_names(column: pd.Series) -> pd.Series:
    """The slice each image is in, as text: its value, or its tenth ("from a to b") of a measured number.

    Missing values are a slice of their own, "missing".
    """
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if not is_number:
        return column.astype("object").where(column.notna(), "missing").map(str)
    if column.nunique() <= _MAX_VALUES:
        return column.map(lambda value: "missing" if pd.isna(value) else f"{value:g}")
    tenths = pd.qcut(column, 10, duplicates="drop")
    names = [f"from {max(tenth.left, column.min()):.4g} to {tenth.right:.4g}" for tenth in tenths.cat.categories]
    return tenths.cat.rename_categories(names).astype("object").where(column.notna(), "missing")


def _counts(column: pd.Series, labels: NDArray[np.int64]) -> list[tuple[str, NDArray[np.int64]]]:
    names = slice_names(column).to_numpy()
    return [(str(name), np.bincount(labels[names == name], minlength=2)) for name in sorted(set(names))]


def _finding(column: str, rows: list[dict[str, Any]], num_images: int, fail_fraction: float) -> Finding:
    share = sum(row["purity_num_total"] for row in rows) / num_images
    found = "; ".join(
        f"{row['purity_num_correct']:.0f} of {row['purity_num_total']:.0f} images with {column} "
        f"{row['value']} are {row['class']}"
        for row in rows
    )
    return Finding(
        "fail" if share >= fail_fraction else "warn",
        "slice",
        f"{found}: for {share:.1%} of all images this alone gives the label away.",
        {"property": column, "slices": rows},
        share,
    )
