"""Each picture probe sees what was planted for it, and nothing else."""

import numpy as np

from tests.evaluation.audit.clean_pictures import clean_set, probe_aucs

FORENSIC = ["spectrum", "residuals", "blocks", "levels"]


def test_nothing_is_found_if_nothing_is_planted() -> None:
    images, labels = clean_set(0)
    aucs = probe_aucs(images, labels)
    assert list(aucs) == ["majority", "thumbnail", "border", "corners", "histogram", *FORENSIC]
    assert all(abs(auc - 0.5) < 0.15 for auc in aucs.values())


def test_a_watermark_in_a_corner_is_seen_by_the_corners() -> None:
    images, labels = clean_set(1)
    images[labels == 0, -6:, -6:] = 255
    aucs = probe_aucs(images, labels)
    assert aucs["corners"] > 0.95
    assert aucs["border"] > 0.95


def test_a_change_in_the_middle_is_not_seen_by_border_and_corners() -> None:
    images, labels = clean_set(2)
    middle = images[labels == 0, 24:40, 24:40].astype(int) + 60
    images[labels == 0, 24:40, 24:40] = np.clip(middle, 0, 255)
    aucs = probe_aucs(images, labels)
    assert aucs["thumbnail"] > 0.95
    assert aucs["corners"] < 0.65
    assert aucs["border"] < 0.65


def test_a_tint_is_seen_by_the_histogram_and_not_by_shuffled_labels() -> None:
    images, labels = clean_set(3)
    images[labels == 1, ..., 2] = images[labels == 1, ..., 2] // 2
    assert probe_aucs(images, labels)["histogram"] > 0.95
    shuffled = np.random.default_rng(3).permutation(labels)
    assert probe_aucs(images, shuffled)["histogram"] < 0.65


def test_fine_stripes_are_seen_by_the_spectrum_alone() -> None:
    images, labels = clean_set(4)
    # A period of four pixels: a quarter of a cycle per pixel, which averages out in a cell of four by four.
    stripes = np.tile([8, 0, -8, 0], 16)[None, :, None]
    images[labels == 0] = np.clip(images[labels == 0] + stripes, 0, 255).astype(np.uint8)
    aucs = probe_aucs(images, labels)
    assert aucs["thumbnail"] < 0.65
    assert aucs["spectrum"] > 0.9
