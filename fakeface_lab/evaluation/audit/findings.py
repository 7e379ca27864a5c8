"""Findings about single images of a data set: duplicates, likely wrong labels, and slices of a single class.

A slice is all images with one value of a property, such as the gray ones. If only one class has that value, a model
needs to know nothing about faces to be right on the slice, and few images are enough: a gray tenth of one class hardly
changes the AUC of any probe. Findings about whole probes are in `audit`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import fisher_exact
from sklearn.metrics import roc_auc_score

from fakeface_lab.evaluation.audit.card import Finding, Severity
from fakeface_lab.evaluation.audit.probes import ProbeResult
from fakeface_lab.evaluation.intervals import positives, wilson
from fakeface_lab.evaluation.significance import holm

__all__ = [
    "Suspects",
    "duplicate_findings",
    "is_confirmed",
    "label_finding",
    "likely_wrong_labels",
    "pure_slice_findings",
    "slice_names",
]

_MAX_NAMED_PAIRS = 20  # in a finding's evidence; its counts always cover all
_MAX_NAMED_FILES = 100
_MAX_VALUES = 20  # a number with more distinct values is cut into tenths of the images

_Kind = Literal["file", "pixels", "near"]
_WORDS: Mapping[_Kind, str] = {
    "file": "are the same file",
    "pixels": "have the same pixels",
    "near": "look the same",
}


def is_confirmed(pairs: pd.DataFrame, *, max_bits: int, min_correlation: float) -> NDArray[np.bool_]:
    """Which look-alikes are the same picture: close by pHash, with correlated details.

    Hashes alone do not tell, because faces aligned in the same way are close to each other by chance: of the 1,289
    documented images 287 pairs are within 10 bits, and none is the same picture (docs/truth.md).

    Args:
        pairs: from `data.splits.closest_pairs`, with `correlation` from `data.splits.detail_correlations`.
        max_bits: largest pHash distance, of 64 bits.
        min_correlation: smallest correlation of the details, 0 to 1.

    Returns:
        bool (len(pairs),).
    """
    return np.asarray((pairs["phash_bits"] <= max_bits) & (pairs["correlation"] >= min_correlation), dtype=bool)


def duplicate_findings(
    pairs: pd.DataFrame,
    labels: NDArray[np.int64],
    names: Sequence[str],
    *,
    file_digests: Sequence[str],
    pixel_digests: Sequence[str],
    splits: Sequence[str] | None,
) -> list[Finding]:
    """Find pictures with two labels, in two splits, or merely present twice; one finding per problem and kind of match.

    Args:
        pairs: the confirmed ones, columns `first` and `second`.
        labels: int64 (N,), class index.
        names: of the images, for the evidence.
        file_digests: one digest per file's bytes.
        pixel_digests: one digest per decoded picture.
        splits: name of the split each image is in, or None without splits.
    """
    first, second, kinds = _same_pictures(pairs, file_digests, pixel_digests)
    sides = np.asarray(splits if splits is not None else [""] * len(labels))
    is_cross_class = labels[first] != labels[second]
    is_straddling = sides[first] != sides[second]
    findings = []
    for kind, words in _WORDS.items():
        of_kind = kinds == kind
        is_exact = kind != "near"
        for severity, check, chosen, so in _cases(is_exact, of_kind, is_cross_class, is_straddling):
            num_pairs = int(chosen.sum())
            if num_pairs == 0:
                continue
            num_images = len(np.union1d(first[chosen], second[chosen]))
            named = zip(first[chosen][:_MAX_NAMED_PAIRS], second[chosen][:_MAX_NAMED_PAIRS], strict=True)
            evidence = {
                "kind": kind,
                "num_pairs": num_pairs,
                "num_images": num_images,
                "pairs": [[names[i], names[j]] for i, j in named],
            }
            counted = "1 pair of images" if num_pairs == 1 else f"{num_pairs} pairs of images"
            sentence = f"{counted} {words} {so}."
            findings.append(Finding(severity, check, sentence, evidence, num_images / len(labels)))
    return findings


_Case = tuple[Severity, str, NDArray[np.bool_], str]


def _cases(
    is_exact: bool,
    of_kind: NDArray[np.bool_],
    is_cross_class: NDArray[np.bool_],
    is_straddling: NDArray[np.bool_],
) -> list[_Case]:
    """The problems a pair can be: one with two labels in two splits is both."""
    wrong = "is" if is_exact else "may be"
    return [
        (
            # Two different pictures may look the same, so that their labels may both be right.
            "fail" if is_exact else "warn",
            "two labels",
            of_kind & is_cross_class,
            f"but have different labels: at least one label of each pair {wrong} wrong",
        ),
        (
            "fail",
            # Look-alikes too: what is confirmed on the pixels was learned in training, however the file was saved.
            "straddle",
            of_kind & is_straddling,
            "but are in different splits: the model is tested on pictures it was trained on",
        ),
        (
            "warn" if is_exact else "info",
            "duplicate",
            of_kind & ~is_cross_class & ~is_straddling,
            "and have the same label: these pictures count more than once",
        ),
    ]


def _same_pictures(
    pairs: pd.DataFrame, file_digests: Sequence[str], pixel_digests: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.str_]]:
    """First, second and kind of all pairs of the same picture, each with its strongest kind of match."""
    kinds: dict[tuple[int, int], _Kind] = {
        (int(i), int(j)): "near" for i, j in zip(pairs["first"], pairs["second"], strict=True)
    }
    # The strongest kind last, because each update overwrites weaker ones.
    kinds.update(dict.fromkeys(_equal_pairs(pixel_digests), "pixels"))
    kinds.update(dict.fromkeys(_equal_pairs(file_digests), "file"))
    ordered = sorted(kinds)
    positions = np.asarray(ordered, dtype=np.int64).reshape(len(ordered), 2)
    return positions[:, 0], positions[:, 1], np.asarray([kinds[pair] for pair in ordered], dtype=np.str_)


def _equal_pairs(digests: Sequence[str]) -> list[tuple[int, int]]:
    members: dict[str, list[int]] = {}
    for position, digest in enumerate(digests):
        members.setdefault(digest, []).append(position)
    return [(i, j) for group in members.values() for k, i in enumerate(group) for j in group[k + 1 :]]


@dataclass(frozen=True)
class Suspects:
    """Images with a suspect label.

    Attributes:
        rows: int64 (n,), most suspicious first.
        probabilities: float64 (n,), of their label, in [0, 1].
    """

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def likely_wrong_labels(
    probes: Sequence[ProbeResult], labels: NDArray[np.int64], *, min_probe_auc: float, min_auc: float
) -> Suspects:
    """Rank the images whose labels out-of-fold scores contradict (confident learning, Northcutt et al. 2021).

    An image is suspect if its probability of the other class is at least the average of the images with that label.
    Probabilities are means over the probes that separate the classes.

    Args:
        probes: from `probes.run_probes`.
        labels: int64 (N,), 0 for the positive class.
        min_probe_auc: smallest AUC of a probe that counts, 0 to 1.
        min_auc: smallest AUC of the mean probability; if it is lower, there are no suspects.
    """
    voting = [probe.scores for probe in probes if probe.kind != "majority" and probe.auc >= min_probe_auc]
    is_positive = positives(labels)
    no_suspects = Suspects(np.empty(0, dtype=np.int64), np.empty(0))
    if not voting:
        return no_suspects
    positive = np.mean(voting, axis=0)
    own, other = np.where(is_positive, [positive, 1 - positive], [1 - positive, positive])
    # If the probes rank this poorly, most contradictions are their own errors.
    if roc_auc_score(is_positive, positive) < min_auc:
        return no_suspects
    usual = np.array([own[is_positive].mean(), own[~is_positive].mean()])
    # An average may lie below one half, where an image's own label is still the likelier one.
    # Of 30 planted wrong labels of drawn faces this finds 20, of 64 of photographs 42, and no other image
    # (docs/truth.md).
    is_suspect = (other >= usual[1 - labels]) & (other > own)
    rows = np.flatnonzero(is_suspect)
    rows = rows[np.argsort(own[rows], kind="stable")]
    return Suspects(rows, own[rows])


def label_finding(suspects: Suspects, names: Sequence[str], num_images: int) -> list[Finding]:
    """The finding about suspect labels, or an empty list without any."""
    num_suspects = len(suspects.rows)
    if num_suspects == 0:
        return []
    images = "1 image looks" if num_suspects == 1 else f"{num_suspects} images look"
    sentence = (
        f"{images} like the other class to all probes together: see in suspects.png whether the labels are wrong."
    )
    evidence = {
        "reason": "suspect labels",
        "num_images": num_suspects,
        "files": [names[row] for row in suspects.rows[:_MAX_NAMED_FILES]],
        "probabilities": suspects.probabilities[:_MAX_NAMED_FILES].tolist(),
    }
    return [Finding("info", "labels", sentence, evidence, num_suspects / num_images)]


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
    """Find the properties with pure slices; one finding per property.

    Args:
        properties: N rows, one column per property.
        labels: int64 (N,), class index.
        class_names: name of each class index.
        significance: largest p-value of Fisher's exact test, Holm-corrected over all tested slices.
        min_fraction: smallest share of all images in a tested slice.
        min_purity: smallest lower end of the Wilson interval of the larger class's share in a pure slice.
        fail_fraction: smallest share of all images in one property's pure slices at which the finding is a "fail".
    """
    totals = np.bincount(labels, minlength=2)
    slices = [
        (str(column), value, inside)
        for column in properties
        for value, inside in _counts(properties[column], labels)
        if inside.sum() >= min_fraction * len(labels)
    ]
    # Rounding may leave the p-value of a certain outcome slightly above 1.
    # Exact, because a pure slice has next to no images of one class, where a chi-square test does not hold.
    tests = [min(1.0, float(fisher_exact(np.stack([inside, totals - inside])).pvalue)) for _, _, inside in slices]
    pure: dict[str, list[dict[str, Any]]] = {}
    for (column, value, inside), p_value in zip(slices, holm(tests), strict=True):
        purity = wilson(int(inside.max()), int(inside.sum()))
        # Purity alone would report any slice of a class that dominates the set, the p-value alone any large slice with
        # a slight surplus.
        if purity.low >= min_purity and p_value <= significance:
            class_name = class_names[int(inside.argmax())]
            row = {"value": value, "class": class_name, "holm_p": p_value, **purity.metrics("purity")}
            pure.setdefault(column, []).append(row)
    return [_finding(column, rows, len(labels), fail_fraction) for column, rows in pure.items()]


def slice_names(column: pd.Series) -> pd.Series:
    """The slice of each image as text: its value, or the tenth ("from a to b") of a measured number.

    Missing values form a separate slice, "missing".
    """
    # To pandas a bool is numeric, but it has two values and no tenths.
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if not is_number:
        return column.astype("object").where(column.notna(), "missing").map(str)
    if column.nunique() <= _MAX_VALUES:
        return column.map(lambda value: "missing" if pd.isna(value) else f"{value:g}")
    # If many values are equal, as the saturation of gray pictures, several edges coincide.
    tenths = pd.qcut(column, 10, duplicates="drop")
    # pandas moves the first edge below the smallest value: a saturation of 0 becomes -0.001.
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
