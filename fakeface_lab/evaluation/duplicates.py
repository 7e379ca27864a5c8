"""Duplicates: pictures that are in the data set twice, in two splits, or under two labels.

Owns which pairs are one picture and what that means for a result. Hashes and correlations: `data.hashes`.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakeface_lab.evaluation.card import Finding, Severity

__all__ = ["duplicate_findings", "is_confirmed"]

_MAX_NAMED_PAIRS = 20  # in a finding's evidence; its counts are always whole
_Kind = Literal["file", "pixels", "near"]
_WORDS: Mapping[_Kind, str] = {
    "file": "are the same file",
    "pixels": "have the same pixels",
    "near": "look the same",
}


def is_confirmed(pairs: pd.DataFrame, *, max_bits: int, min_correlation: float) -> NDArray[np.bool_]:
    """Which look-alikes are one picture: close by pHash, and their details agree.

    Hashes alone cannot say: faces that are aligned alike come close to each other by chance.

    Args:
        pairs: from `data.hashes.closest_pairs`, with `correlation` from `data.hashes.detail_correlations`.
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
    """Find pictures under two labels, in two splits, or merely twice; one finding for each and kind.

    Args:
        pairs: the confirmed ones, columns `first` and `second`.
        labels: int64 (N,), class index.
        names: what the evidence calls each image.
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
    """What a pair can mean; one that straddles the splits under two labels means both."""
    wrong = "is" if is_exact else "may be"
    return [
        (
            "fail" if is_exact else "warn",
            "two labels",
            of_kind & is_cross_class,
            f"but have different labels: at least one label of each pair {wrong} wrong",
        ),
        (
            "fail",
            "straddle",
            of_kind & is_straddling,
            "but are in different splits: the model is tested on pictures it has learnt by heart",
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
    """First, second and kind of all pairs that are one picture, each under the strongest kind that holds."""
    kinds: dict[tuple[int, int], _Kind] = {
        (int(i), int(j)): "near" for i, j in zip(pairs["first"], pairs["second"], strict=True)
    }
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
