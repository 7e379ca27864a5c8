"""Each check of the audit at its thresholds: corrected p-values, purity, severities, suspect labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from scipy.stats import fisher_exact, mannwhitneyu

from fakeface_lab.data.properties import CONTENT_COLUMNS
from fakeface_lab.evaluation.audit import AuditSettings, audit
from fakeface_lab.evaluation.findings import slice_names
from tests.evaluation.audit_inputs import (
    alike_pairs,
    found,
    inputs_of,
    portraits,
    probe_of,
    with_property,
    without_probes,
)


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


def test_p_values_of_several_probes_are_corrected() -> None:
    inputs = without_probes(30)
    labels = inputs.labels
    scores = (np.arange(30) // 2 + np.where(labels == 0, 4.5, 0.0)) / 30
    informative = probe_of(scores, labels)
    blind = [probe_of(np.full(30, 0.4), labels, name) for name in ("border", "corners", "histogram", "colour")]
    p_value = mannwhitneyu(scores[labels == 0], scores[labels == 1], alternative="greater").pvalue
    assert informative.auc > 0.7
    for num_blind in range(5):
        probes = [informative, *blind[:num_blind]]
        for factor, is_found in ((0.99, False), (1.01, True)):
            settings = AuditSettings(significance=float(p_value) * (num_blind + 1) * factor)
            assert bool(found(audit(replace(inputs, probes=probes), settings), "probe")) == is_found


@pytest.mark.parametrize(("auc", "severity"), [(0.69, None), (0.71, "warn"), (0.89, "warn"), (0.91, "fail")])
def test_severity_of_a_shortcut_follows_from_its_auc(auc: float, severity: str | None) -> None:
    inputs = without_probes(200)
    order = np.arange(200) % 2 == 0
    scores = np.where(order, 0.9, 0.1)
    swapped = np.flatnonzero(order)[: round((1 - auc) * 100)], np.flatnonzero(~order)[: round((1 - auc) * 100)]
    scores[swapped[0]], scores[swapped[1]] = 0.1, 0.9
    probe = probe_of(scores, inputs.labels)
    assert probe.auc == pytest.approx(auc)
    findings = found(audit(replace(inputs, probes=[probe])), "probe")
    assert [finding.severity for finding in findings] == ([severity] if severity else [])


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


@pytest.mark.parametrize("kind", ["shortcut", "forensic"])
def test_a_class_that_fills_the_end_of_a_ranking_is_found(kind: str) -> None:
    """A fifth of all images is marked by class; the rest is noise, so the AUC stays below the alarm."""
    inputs, rng = without_probes(400), np.random.default_rng(0)
    labels, scores = inputs.labels, rng.uniform(0.3, 0.7, 400)
    scores[np.flatnonzero(labels == 1)[:80]] = rng.uniform(0, 0.2, 80)
    probe = probe_of(scores, labels, kind=kind)
    assert probe.auc < 0.75
    settings = AuditSettings(warn_auc=0.75)
    (finding,) = audit(replace(inputs, probes=[probe]), settings).findings
    assert finding.evidence["class"] == "real"
    assert 80 <= finding.evidence["purity_num_total"] <= 100
    assert finding.severity == ("warn" if kind == "shortcut" else "info")
    assert finding.check == ("probe" if kind == "shortcut" else "trace")
    assert "that a simple model of something is surest of are real" in finding.sentence or kind == "forensic"
    few = np.where(np.isin(np.arange(400), np.flatnonzero(labels == 1)[:30]), scores, 0.5)  # 30 are not enough
    assert not audit(replace(inputs, probes=[probe_of(few, labels)]), settings).findings


def test_equal_scores_are_never_split() -> None:
    labels = np.repeat([0, 1], 200).astype(np.int64)  # ordered by class, like the files
    inputs = with_property(["JPEG"] * 400, labels)
    assert not audit(replace(inputs, probes=[probe_of(np.full(400, 0.5), labels)])).findings


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
