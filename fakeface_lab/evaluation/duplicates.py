"""Duplicates: pictures that are in the data set twice, in two splits, or under two labels.

Owns which pairs are one picture and what that means for a result. Hashes and distances: `data.hashes`.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fakeface_lab.evaluation.card import Finding, Severity

__all__ = ["CHANCE_MARGIN_BITS", "duplicate_findings", "near_duplicate_bits"]

# In drawn faces chance pairs get about ten times rarer with each two bits: where there is none this much farther than
# the limit, hardly one is expected within it.
CHANCE_MARGIN_BITS = 2

_MAX_NAMED_PAIRS = 20  # in a finding's evidence; its counts are always whole
_Kind = Literal["file", "pixels", "near"]
_WORDS: Mapping[_Kind, str] = {
    "file": "are the same file",
    "pixels": "have the same pixels",
    "near": "look the same",
}


def near_duplicate_bits(pairs: pd.DataFrame, labels: NDArray[np.int64], *, certain_bits: int, max_bits: int) -> int:
    """Learn from pairs across the classes up to which distance two pictures are one.

    A real and a fake picture are never copies of each other, so such pairs look alike by chance, and so do about as
    many within the classes. The very close ones are left out: they are one picture under two labels. A single pair
    by chance across the splits would already be an alarm, so there must be none, and none a little farther either.

    Args:
        pairs: from `data.hashes.closest_pairs`, up to `max_bits + CHANCE_MARGIN_BITS` or farther.
        labels: int64 (N,), class index.
        certain_bits: distance up to which look-alikes across the classes are no chance.
        max_bits: largest answer, unless `certain_bits` is larger.

    Returns:
        Distance in bits, of 64, `certain_bits` to `max_bits`; pHash and dHash must both be within it.
    """
    distance = _distance(pairs)
    is_cross_class = labels[pairs["first"].to_numpy()] != labels[pairs["second"].to_numpy()]
    by_chance = distance[is_cross_class & (distance > certain_bits)]
    if by_chance.size:
        max_bits = min(max_bits, int(by_chance.min()) - CHANCE_MARGIN_BITS - 1)
    return max(certain_bits, max_bits)


def duplicate_findings(
    pairs: pd.DataFrame,
    labels: NDArray[np.int64],
    names: Sequence[str],
    *,
    file_digests: Sequence[str],
    pixel_digests: Sequence[str],
    splits: Sequence[str] | None,
    max_bits: int,
) -> list[Finding]:
    """Find pictures under two labels, in two splits, or merely twice; one finding for each and kind.

    Args:
        pairs: from `data.hashes.closest_pairs`, up to `max_bits` or farther.
        labels: int64 (N,), class index.
        names: what the evidence calls each image.
        file_digests: one digest per file's bytes.
        pixel_digests: one digest per decoded picture.
        splits: name of the split each image is in, or None without splits.
        max_bits: from `near_duplicate_bits`.
    """
    first, second, kinds = _same_pictures(pairs, file_digests, pixel_digests, max_bits)
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
    pairs: pd.DataFrame, file_digests: Sequence[str], pixel_digests: Sequence[str], max_bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.str_]]:
    """First, second and kind of all pairs that are one picture, each under the strongest kind that holds."""
    near = pairs[_distance(pairs) <= max_bits]
    kinds: dict[tuple[int, int], _Kind] = {
        (int(i), int(j)): "near" for i, j in zip(near["first"], near["second"], strict=True)
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


def _distance(pairs: pd.DataFrame) -> NDArray[np.int64]:
    """Both hashes must agree: pHash alone takes two faces in the same pose for one picture."""
    return np.asarray(pairs[["phash_bits", "dhash_bits"]].max(axis=1), dtype=np.int64)
