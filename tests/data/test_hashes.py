"""Hashes against ImageHash and brute force; groups against a plain union of neighbours."""

import imagehash
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from fakeface_lab.data import splits as hashes_module
from fakeface_lab.data.splits import (
    HASH_KINDS,
    closest_pairs,
    detail_correlations,
    near_duplicate_groups,
    perceptual_hashes,
    pixel_digests,
)


def smooth_images(num_images: int, seed: int, size: int = 64) -> NDArray[np.uint8]:
    """Random pictures with structure at all scales, so that their hashes differ by about 32 bits."""
    rng = np.random.default_rng(seed)
    images = [
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((size, size))
        for _ in range(num_images)
    ]
    return np.stack([np.asarray(image) for image in images])


def bits_apart(left: int, right: int) -> int:
    return bin(left ^ right).count("1")


def brute_force_pairs(hashes: NDArray[np.uint64], max_distance: int) -> set[tuple[int, int, int, int, bool]]:
    rows = [[int(value) for value in row] for row in hashes]
    found = set()
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            upright, mirrored = bits_apart(rows[i][0], rows[j][0]), bits_apart(rows[i][2], rows[j][0])
            if min(upright, mirrored) <= max_distance:
                is_mirrored = mirrored < upright
                dhash = bits_apart(rows[i][3] if is_mirrored else rows[i][1], rows[j][1])
                found.add((i, j, min(upright, mirrored), dhash, is_mirrored))
    return found


def test_each_column_agrees_with_imagehash() -> None:
    images = smooth_images(6, seed=1)
    hashes = perceptual_hashes(images)
    assert hashes.dtype == np.uint64
    assert hashes.shape == (6, len(HASH_KINDS))
    for pixels, row in zip(images, hashes, strict=True):
        image = Image.fromarray(pixels)
        for value, (function, flip) in zip(
            row,
            [
                (imagehash.phash, False),
                (imagehash.dhash, False),
                (imagehash.phash, True),
                (imagehash.dhash, True),
            ],
            strict=True,
        ):
            expected = function(ImageOps.mirror(image) if flip else image)
            assert imagehash.hex_to_hash(f"{int(value):016x}") - expected == 0


def test_a_slightly_changed_a_mirrored_and_an_unrelated_picture() -> None:
    image = smooth_images(2, seed=2)
    brighter = np.clip(image[0].astype(int) + 6, 0, 255).astype(np.uint8)
    pictures = np.stack([image[0], image[1], brighter, image[0][:, ::-1]])
    hashes = perceptual_hashes(pictures)
    assert near_duplicate_groups(hashes).tolist() == [0, 1, 0, 0]
    pairs = closest_pairs(hashes, max_distance=4)
    mirrored = pairs[(pairs["first"] == 0) & (pairs["second"] == 3)]
    assert mirrored["is_mirrored"].tolist() == [True]
    assert mirrored["phash_bits"].tolist() == [0]
    assert mirrored["dhash_bits"].tolist() == [0]


def test_groups_join_through_a_chain_and_are_numbered_by_first_member() -> None:
    far = np.uint64(0xFFFF_FFFF_0000_0000)
    phash = np.array([far, 0b0, 0b111, 0b111111, far], dtype=np.uint64)
    apart = np.array([~value for value in phash], dtype=np.uint64)  # mirrored hashes that match none
    hashes = np.stack([phash, phash, apart, apart], axis=1)
    assert near_duplicate_groups(hashes, max_distance=3).tolist() == [0, 1, 1, 1, 0]
    assert near_duplicate_groups(hashes, max_distance=2).tolist() == [0, 1, 2, 3, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 2**64 - 1)] * 4), max_size=12),
    st.integers(0, 40),
    st.integers(1, 30),
)
def test_pairs_equal_brute_force_for_any_block_size(
    rows: list[tuple[int, int, int, int]], max_distance: int, comparisons: int
) -> None:
    hashes = np.array(rows, dtype=np.uint64).reshape(len(rows), 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes_module, "_COMPARISONS_PER_BLOCK", comparisons)
        pairs = closest_pairs(hashes, max_distance)
    found = {(int(a), int(b), int(p), int(d), bool(m)) for a, b, p, d, m in pairs.itertuples(index=False, name=None)}
    assert found == brute_force_pairs(hashes, max_distance)
    assert len(found) == len(pairs)
    assert pairs["phash_bits"].is_monotonic_increasing


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 63), min_size=1, max_size=30), st.integers(0, 3))
def test_groups_are_the_smallest_partition_that_keeps_neighbours_together(values: list[int], max_distance: int) -> None:
    phash = np.array(values, dtype=np.uint64)
    hashes = np.stack([phash, phash, ~phash, ~phash], axis=1)
    expected = list(range(len(values)))
    for _ in values:  # plain label propagation until nothing changes
        for i, left in enumerate(values):
            for j, right in enumerate(values):
                if bits_apart(left, right) <= max_distance:
                    expected[i] = expected[j] = min(expected[i], expected[j])
    groups = near_duplicate_groups(hashes, max_distance).tolist()
    assert len(set(zip(groups, expected, strict=True))) == len(set(groups)) == len(set(expected))


def test_no_images_no_groups_no_pairs() -> None:
    hashes = perceptual_hashes(np.zeros((0, 8, 8, 3), dtype=np.uint8))
    assert hashes.shape == (0, 4)
    assert near_duplicate_groups(hashes).shape == (0,)
    assert closest_pairs(hashes).empty


def test_ten_thousand_copies_are_one_group() -> None:
    hashes = np.zeros((10_000, 4), dtype=np.uint64)
    assert near_duplicate_groups(hashes).max() == 0


def test_digests_are_equal_for_equal_pixels_only() -> None:
    images = smooth_images(2, seed=5)
    changed = images[0].copy()
    changed[3, 3, 1] ^= 1
    digests = pixel_digests([images[0], images[1], images[0].copy(), changed, images[0][:, ::-1][:, ::-1]])
    assert digests[0] == digests[2] == digests[4]
    assert len(set(digests)) == 3


def one_pair(is_mirrored: bool = False) -> pd.DataFrame:
    return pd.DataFrame({"first": [0], "second": [1], "is_mirrored": [is_mirrored]})


def correlation(first: NDArray[np.uint8], second: NDArray[np.uint8], is_mirrored: bool = False) -> float:
    return float(detail_correlations([first, second], one_pair(is_mirrored))[0])


def test_details_agree_whatever_the_brightness_framing_and_side() -> None:
    (pixels,) = smooth_images(1, seed=5, size=128)
    image = Image.fromarray(pixels)
    assert correlation(pixels, pixels) == pytest.approx(1.0)
    assert correlation(pixels[:, ::-1], pixels, is_mirrored=True) == pytest.approx(1.0)
    assert correlation(pixels, (pixels * 0.6 + 40).astype(np.uint8)) > 0.99
    assert correlation(np.asarray(image.resize((64, 64))), pixels) > 0.98
    for percent in (0.03, 0.05):
        margin = 128 * percent / 2
        cropped = np.asarray(image.resize((128, 128), box=(margin, margin, 128 - margin, 128 - margin)))
        assert correlation(cropped, pixels) > 0.9
        assert correlation(pixels, cropped) > 0.9
    assert correlation(np.roll(pixels, 6, axis=1), pixels) > 0.9


def test_details_of_mere_look_alikes_do_not_agree() -> None:
    rng = np.random.default_rng(6)
    (light,) = smooth_images(1, seed=7, size=96)
    blurred = np.asarray(Image.fromarray(light).filter(ImageFilter.GaussianBlur(4)), dtype=float)
    grain = [np.asarray(Image.fromarray(rng.uniform(-60, 60, (48, 48))).resize((96, 96))) for _ in range(2)]
    first, second = (np.clip(blurred + part[..., None], 0, 255).astype(np.uint8) for part in grain)
    pairs = closest_pairs(perceptual_hashes([first, second]), 20)
    assert len(pairs) == 1  # alike by their hashes
    assert correlation(first, second) < 0.6


def test_flat_pictures_have_no_details_to_compare() -> None:
    flat = np.full((20, 20, 3), 90, dtype=np.uint8)
    assert correlation(flat, flat) == 0.0
    assert detail_correlations([flat], one_pair().head(0)).shape == (0,)
