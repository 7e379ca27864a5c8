"""Duplicates, likely wrong labels and pure slices: found, counted, and judged at their thresholds."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from scipy.stats import fisher_exact

from fakeface_lab.data.properties import CONTENT_COLUMNS
from fakeface_lab.evaluation.audit.audit import AuditSettings, audit
from fakeface_lab.evaluation.audit.findings import slice_names
from tests.evaluation.audit.audit_inputs import (
    Pictures,
    alike_pairs,
    found,
    inputs_of,
    portraits,
    probe_of,
    with_property,
)


def slightly_changed(pixels: Pictures, rng: np.random.Generator) -> Pictures:
    """Brighter, noisy and saved again at a low quality."""
    encoded = BytesIO()
    changed = np.clip(pixels.astype(float) * 1.04 + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)
    Image.fromarray(changed).save(encoded, "JPEG", quality=60)
    return np.asarray(Image.open(encoded))


def test_duplicates_across_the_splits_are_counted() -> None:
    images, labels = portraits(6)
    rng = np.random.default_rng(6)
    exact, changed = np.arange(20), np.arange(20, 40)
    extra = [images[i] for i in exact] + [slightly_changed(images[i], rng) for i in changed]
    extra[0] = extra[0][:, ::-1]  # one of them mirrored: no longer exact, still the same picture
    all_images = np.concatenate([images, np.stack(extra)])
    all_labels = np.concatenate([labels, labels[:40]])
    digests = [f"file {i}" for i in range(200)] + [f"file {i if i < 10 else 200 + i}" for i in range(40)]
    digests[200] = "mirrored"
    splits = ["train"] * 200 + ["test"] * 40
    inputs = inputs_of(all_images, all_labels, splits=splits, file_digests=digests, with_probes=False)
    card = audit(inputs)
    assert found(card, "straddle", kind="file")[0].evidence["num_pairs"] == 9
    assert found(card, "straddle", kind="pixels")[0].evidence["num_pairs"] == 10
    near = found(card, "straddle", kind="near")[0]
    assert near.evidence["num_pairs"] == 21
    assert near.severity == "fail"
    assert near.evidence["pairs"][0] == ["0.jpg", "200.jpg"]
    assert near.sentence == (
        "21 pairs of images look the same but are in different splits: the model is tested on pictures it "
        "was trained on."
    )
    without_splits = audit(replace(inputs, splits=None))
    severities = {finding.evidence["kind"]: finding.severity for finding in found(without_splits, "duplicate")}
    assert severities == {"file": "warn", "pixels": "warn", "near": "info"}


def test_five_pictures_with_both_labels_are_found() -> None:
    images, labels = portraits(7)
    rng = np.random.default_rng(7)
    copies = np.stack([images[i] if i < 3 else slightly_changed(images[i], rng) for i in range(5)])
    both = np.concatenate([images, copies]), np.concatenate([labels, 1 - labels[:5]])
    card = audit(inputs_of(*both, with_probes=False))
    exact = found(card, "two labels", kind="pixels")[0]
    assert (exact.severity, exact.evidence["num_pairs"]) == ("fail", 3)
    assert "at least one label of each pair is wrong" in exact.sentence
    near = found(card, "two labels", kind="near")[0]
    assert (near.severity, near.evidence["num_pairs"]) == ("warn", 2)
    assert "may be wrong" in near.sentence


@pytest.mark.parametrize(
    ("correlation", "bits", "is_same"), [(0.89, 0, False), (0.9, 10, True), (0.9, 11, False), (1.0, 4, True)]
)
def test_look_alikes_are_one_picture_only_if_their_pixels_confirm_it(
    correlation: float, bits: int, is_same: bool
) -> None:
    images, labels = portraits(8, num_images=60)
    inputs = inputs_of(images, labels, splits=["train", "test"] * 30, with_probes=False)
    card = audit(replace(inputs, pairs=alike_pairs(correlation, 1, bits)))
    assert bool(found(card, "two labels", kind="near")) == is_same
    assert bool(found(card, "straddle", kind="near")) == is_same
    assert bool(found(audit(replace(inputs, pairs=alike_pairs(correlation, 2, bits))), "duplicate")) == is_same


def test_a_gray_tenth_of_one_class_is_a_pure_slice_though_no_probe_sees_it() -> None:
    images, labels = portraits(5, num_images=600)
    gray = np.flatnonzero(labels == 1)[:90]
    images[gray] = images[gray].mean(axis=3, keepdims=True).astype(np.uint8)
    card = audit(inputs_of(images, labels, with_probes=False))
    finding = found(card, "slice", property="is_gray")[0]
    assert finding.severity == "warn"
    assert finding.sentence.startswith("90 of 90 images with is_gray True are real: for 15.0% of all images")
    assert finding.share == pytest.approx(90 / 600)
    assert finding.evidence["slices"][0]["holm_p"] < 1e-20


def test_p_values_of_slices_count_and_are_corrected() -> None:
    labels = (np.arange(400) >= 20).astype(np.int64)  # 20 fakes among 380 real images
    values: list[object] = ["PNG" if 100 <= row < 200 else "JPEG" for row in range(400)]  # 100 of the real ones
    p_value = float(fisher_exact(np.array([[0, 100], [20, 280]])).pvalue)
    assert 1e-3 < p_value < 0.05  # pure, but not surprising in such an unbalanced set
    assert not audit(with_property(values, labels)).findings
    for num_others in (0, 3):
        num_slices = 2 + 2 * num_others
        for factor, is_found in ((0.99, False), (1.01, True)):
            settings = AuditSettings(significance=p_value * num_slices * factor)
            card = audit(with_property(values, labels, num_others), settings)
            assert [row.evidence["property"] for row in card.findings] == (["format"] if is_found else [])


def test_purity_is_judged_by_the_lower_end_of_its_interval() -> None:
    labels = (np.arange(400) % 2).astype(np.int64)
    for num_pure, is_found in ((72, False), (73, True)):  # Wilson: 0.9494 and 0.9500
        real = np.flatnonzero(labels == 1)[:num_pure]
        values: list[object] = ["PNG" if row in real else "JPEG" for row in range(400)]
        assert bool(audit(with_property(values, labels)).findings) == is_found


@pytest.mark.parametrize(("num_pure", "severity"), [(99, "warn"), (100, "fail"), (150, "fail")])
def test_pure_slices_of_half_the_images_make_results_void(num_pure: int, severity: str) -> None:
    labels = np.where(np.arange(200) < 180, 1, 0).astype(np.int64)
    values: list[object] = ["PNG" if row < num_pure else "JPEG" for row in range(200)]
    (finding,) = audit(with_property(values, labels), AuditSettings(significance=0.05)).findings
    assert finding.severity == severity


def test_bytes_are_content_and_not_sliced(tmp_path: Path) -> None:
    """Lossless files of detailed pictures are larger because of their content, not of how they were saved."""
    images, labels = portraits(13)
    flat = [np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3))) for pixels in images]
    pictures = np.where((labels == 0)[:, None, None, None], np.stack(flat), images)
    files = [tmp_path / f"{row}.png" for row in range(len(labels))]
    for pixels, path in zip(pictures, files, strict=True):
        Image.fromarray(pixels).save(path)
    card = audit(inputs_of(pictures, labels, files))
    assert "bytes" in card.files
    assert not [finding for finding in card.findings if finding.evidence.get("property") in CONTENT_COLUMNS]
    assert not found(card, "probe", probe="file")


def test_slices_of_numbers_text_and_missing_values() -> None:
    assert slice_names(pd.Series([75.0, np.nan, 80.0])).tolist() == ["75", "missing", "80"]
    assert slice_names(pd.Series(["JPEG", None])).tolist() == ["JPEG", "missing"]
    assert slice_names(pd.Series([True, False])).tolist() == ["True", "False"]
    tenths = slice_names(pd.Series([*np.arange(100.0), np.nan]))
    assert tenths.value_counts().tolist() == [10] * 10 + [1]
    assert tenths.iloc[0] == "from 0 to 9.9"
    assert tenths.iloc[-1] == "missing"


def test_likely_wrong_labels_are_named_most_suspicious_first() -> None:
    rng, labels = np.random.default_rng(1), (np.arange(200) % 2).astype(np.int64)
    truth = labels.copy()
    truth[:10] = 1 - truth[:10]
    scores = np.where(truth == 0, rng.uniform(0.8, 1.0, 200), rng.uniform(0.0, 0.2, 200))
    scores[3] = 1.0 if truth[3] == 0 else 0.0
    probes = [probe_of(scores, labels), probe_of(rng.random(200), labels, "levels", "forensic")]
    (finding,) = found(audit(replace(with_property(["JPEG"] * 200, labels), probes=probes)), "labels")
    assert finding.severity == "info"
    assert finding.evidence["files"][0] == "3.jpg"
    assert set(finding.evidence["files"]) <= {f"{row}.jpg" for row in range(10)}
    assert finding.evidence["num_images"] == len(finding.evidence["files"]) >= 5
    assert finding.evidence["probabilities"] == sorted(finding.evidence["probabilities"])
    assert "see in suspects.png whether the labels are wrong" in finding.sentence


def test_no_label_is_suspect_if_the_classes_cannot_be_separated() -> None:
    rng, labels = np.random.default_rng(2), (np.arange(200) % 2).astype(np.int64)
    scores = np.clip(np.where(labels == 0, 0.6, 0.4) + rng.normal(0, 0.15, 200), 0, 1)
    probe = probe_of(scores, labels)
    assert 0.7 < probe.auc < 0.9
    inputs = replace(with_property(["JPEG"] * 200, labels), probes=[probe])
    assert not found(audit(inputs), "labels")
    assert found(audit(inputs, AuditSettings(fail_auc=0.75)), "labels")
