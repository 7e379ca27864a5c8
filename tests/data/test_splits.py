"""Splits as documented or sealed, the ledger that restores one, and look-alikes against ImageHash and brute force."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from scipy.ndimage import gaussian_filter

from fakeface_lab.data import splits
from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import ImageFile, Source, find_source
from fakeface_lab.data.splits import (
    HASH_KINDS,
    closest_pairs,
    detail_correlations,
    make_split,
    near_duplicate_groups,
    perceptual_hashes,
    pixel_digests,
    read_split,
    write_split,
)
from fakeface_lab.errors import DataError

MakeImages = Callable[..., Path]


def _image_set(labels: list[int], pixels: np.ndarray | None = None) -> ImageSet:
    """An image set in memory; without pixels each row gets a picture of its own."""
    root = Path("/images")
    files = tuple(
        ImageFile(root / f"{label}_{row}.png", f"{label}_{row}.png", label, f"{row:064x}")
        for row, label in enumerate(labels)
    )
    if pixels is None:
        pixels = _distinct_pictures(len(labels), seed=0)
    source = Source("set", root, ("fake", "real"), (root / "fake", root / "real"))
    return ImageSet(source, files, pixels, np.array(labels, dtype=np.int64), (), {}, root / "pixels.npy")


def _distinct_pictures(num_images: int, seed: int) -> np.ndarray:
    """Smooth random pictures with different perceptual hashes; uint8 (num_images, 32, 32, 3)."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(num_images, 32, 32, 3)), (0, 3, 3, 0))
    return np.clip(128 + 400 * noise, 0, 255).astype(np.uint8)


def test_documented_split_is_that_of_the_document(make_images: MakeImages, project: Path) -> None:
    root = make_images(num_per_class=17)
    images = load_images(find_source(str(root), None, project, 24), 24)
    for seed in (0, 1, 42):
        # The document's lines: list the fakes, then the reals, shuffle, cut at 80 %.
        pool = [("fake", name) for name in sorted(os.listdir(root / "fake"))]  # noqa: PTH208
        pool += [("real", name) for name in sorted(os.listdir(root / "real"))]  # noqa: PTH208
        random.Random(seed).shuffle(pool)
        cut = int(len(pool) * 0.8)
        split = make_split(images, "documented", seed)
        names = [file.name for file in images.files]
        assert [names[row] for row in split.train] == [f"{label}/{name}" for label, name in pool[:cut]]
        assert [names[row] for row in split.test] == [f"{label}/{name}" for label, name in pool[cut:]]
        np.testing.assert_array_equal(split.validation, split.test)
        assert split.test_is_validation


@settings(max_examples=60, deadline=None)
@given(num_fakes=st.integers(20, 200), num_reals=st.integers(20, 200), seed=st.integers(0, 2**31 - 1))
def test_documented_split_covers_all_once(num_fakes: int, num_reals: int, seed: int) -> None:
    images = _image_set([0] * num_fakes + [1] * num_reals, np.zeros((num_fakes + num_reals, 1, 1, 3), np.uint8))
    order = list(range(num_fakes + num_reals))
    random.Random(seed).shuffle(order)
    held_out = images.labels[order[int(0.8 * len(order)) :]]
    if len(set(held_out.tolist())) < 2:  # rare, if one class is small
        with pytest.raises(DataError, match=r"too few images for a documented split .* lacks a class"):
            make_split(images, "documented", seed)
        return
    split = make_split(images, "documented", seed)
    everyone = np.concatenate([split.train, split.test])
    assert sorted(everyone.tolist()) == list(range(num_fakes + num_reals))
    assert len(split.train) == (num_fakes + num_reals) * 4 // 5


@settings(max_examples=15, deadline=None)
@given(
    num_fakes=st.integers(40, 90),
    num_reals=st.integers(40, 90),
    seed=st.integers(0, 2**31 - 1),
    num_copies=st.integers(0, 25),
    mirrored=st.booleans(),
)
def test_sealed_split_is_disjoint_and_keeps_planted_copies_on_one_side(
    num_fakes: int, num_reals: int, seed: int, num_copies: int, mirrored: bool
) -> None:
    labels = [0] * num_fakes + [1] * num_reals
    pixels = _distinct_pictures(len(labels), seed)
    rng = np.random.default_rng(seed)
    pairs = [rng.choice(num_fakes, 2, replace=False) for _ in range(num_copies)]
    for original, copy in pairs:
        brighter = np.clip(pixels[original].astype(int) + 3, 0, 255).astype(np.uint8)
        pixels[copy] = brighter[:, ::-1] if mirrored else brighter
    images = _image_set(labels, pixels)
    split = make_split(images, "sealed", seed)
    parts = (split.train, split.validation, split.test)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    side = {int(row): index for index, part in enumerate(parts) for row in part}
    groups = near_duplicate_groups(perceptual_hashes(images.pixels), 4)
    for group in np.unique(groups):
        assert len({side[int(row)] for row in np.flatnonzero(groups == group)}) == 1
    # Planted pairs that a later copy did not overwrite are such groups.
    for index, (original, copy) in enumerate(pairs):
        later = {int(row) for pair in pairs[index + 1 :] for row in pair[1:]}
        if not later & {int(original), int(copy)}:
            assert side[int(original)] == side[int(copy)]
    assert not split.test_is_validation


@pytest.mark.parametrize("seed", range(5))
def test_sealed_split_is_stratified_64_16_20(seed: int) -> None:
    images = _image_set([0] * 250 + [1] * 150)
    split = make_split(images, "sealed", seed)
    for part, fraction in ((split.train, 0.64), (split.validation, 0.16), (split.test, 0.20)):
        for label, num_images in ((0, 250), (1, 150)):
            assert abs(int((images.labels[part] == label).sum()) - fraction * num_images) <= 3


def test_sealed_split_depends_on_the_seed_alone() -> None:
    images = _image_set([0] * 40 + [1] * 40)
    first, again, other = (make_split(images, "sealed", seed) for seed in (3, 3, 4))
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, part), getattr(again, part))
    assert set(first.test.tolist()) != set(other.test.tolist())


def test_too_few_images_are_refused_with_counts() -> None:
    with pytest.raises(DataError, match=r"too few images for a documented split \(3 fake, 1 real\): \w+ lacks a class"):
        make_split(_image_set([0, 0, 0, 1]), "documented", 0)
    with pytest.raises(DataError, match="a sealed split needs more images; a class is down to 4"):
        make_split(_image_set([0] * 30 + [1] * 4), "sealed", 0)


def test_one_picture_many_times_cannot_be_sealed() -> None:
    pixels = np.repeat(_distinct_pictures(1, 0), 60, axis=0)
    with pytest.raises(DataError, match="keeps near-duplicates together, and there are only 1 different pictures"):
        make_split(_image_set([0] * 30 + [1] * 30, pixels), "sealed", 0)


@pytest.fixture
def images(make_images: MakeImages, project: Path) -> ImageSet:
    """Twelve images per class, some with names that are hard to put into a table."""
    root = make_images(num_per_class=12)
    for number, name in enumerate(
        ['a,"b".png', "line\nbreak\r.png", "ü名前.png", os.fsdecode(b"caf\xe9\xff.png"), "#.png"]
    ):
        os.rename(root / "fake" / f"fake_{number}.png", root / "fake" / name)  # noqa: PTH104
    return load_images(find_source(str(root), None, project, 24), 24)


@pytest.mark.parametrize("name", ["documented", "sealed"])
def test_ledger_gives_the_split_back(images: ImageSet, tmp_path: Path, name: str) -> None:
    split = make_split(images, name, 7)
    write_split(split, images, tmp_path / "split.csv")
    again = read_split(tmp_path / "split.csv", images)
    assert (again.name, again.seed) == (name, 7)
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(again, part), getattr(split, part))
        assert getattr(again, part).dtype == np.int64
    write_split(again, images, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "split.csv").read_bytes()


def test_ledger_is_a_table_that_pandas_reads(images: ImageSet, tmp_path: Path) -> None:
    import pandas as pd

    write_split(make_split(images, "sealed", 0), images, tmp_path / "split.csv")
    table = pd.read_csv(tmp_path / "split.csv", encoding_errors="replace")
    assert list(table.columns[:4]) == ["file", "sha256", "label", "split"]
    assert len(table) == 24
    assert table["label"].value_counts().to_dict() == {"fake": 12, "real": 12}
    assert set(table["split"]) == {"train", "validation", "test"}


def test_ledger_of_other_images_is_refused(images: ImageSet, tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    write_split(make_split(images, "documented", 0), images, path)
    text = path.read_bytes()
    path.write_bytes(text.replace(images.files[-1].sha256.encode(), b"0" * 64))
    with pytest.raises(DataError, match=f"{images.files[-1].name} is not among the images of .*, or its content has"):
        read_split(path, images)
    path.write_bytes(text.replace(b",test\r\n", b",exam\r\n"))
    with pytest.raises(DataError, match="is in split 'exam'; expected train, validation, test"):
        read_split(path, images)


@pytest.mark.parametrize(
    "content", [None, "", "file,sha256\n", "a,b,c,d,# split=sealed seed=x\n", "a,# split=s seed=1\n1,2\n"]
)
def test_file_that_is_not_a_ledger_is_refused(images: ImageSet, tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "split.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"split.csv: not a split file .*; give the split.csv of a run"):
        read_split(path, images)


@pytest.mark.real_data
def test_real_images_are_split_as_measured(real_images: Path, project: Path) -> None:
    images = load_images(find_source(str(real_images), None, project, 300), 300)
    documented = make_split(images, "documented", 1)
    assert (len(documented.train), len(documented.test)) == (1031, 258)
    sealed = make_split(images, "sealed", 0)
    assert len(sealed.train) + len(sealed.validation) + len(sealed.test) == 1289
    assert abs(len(sealed.test) - 258) <= 2
    assert abs(len(sealed.validation) - 206) <= 2


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
        patch.setattr(splits, "_COMPARISONS_PER_BLOCK", comparisons)
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


@pytest.mark.real_data
@pytest.mark.usefixtures("project")
def test_no_two_real_images_are_taken_for_the_same(real_images: Path, project: Path) -> None:
    """Aligned faces: many pairs have similar hashes, none has similar details."""
    images = load_images(find_source(str(real_images), None, project, 300), 300)
    pairs = closest_pairs(perceptual_hashes(images.pixels), 10)
    assert len(pairs) > 100
    assert detail_correlations(images.pixels, pairs).max() < 0.8
