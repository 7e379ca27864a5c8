"""Faults planted in clean images are found, and clean images raise no alarm in any draw."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.audit import AuditSettings, audit
from fakeface_lab.evaluation.card import Finding
from tests.evaluation.audit_inputs import (
    Pictures,
    alarms,
    found,
    inputs_of,
    portraits,
)


@pytest.mark.parametrize("seed", range(5))
def test_clean_portraits_raise_no_alarm(seed: int) -> None:
    images, labels = portraits(seed, num_images=120)
    card = audit(inputs_of(images, labels, splits=["train", "train", "test"] * 40))
    assert card.findings == []
    assert card.worst is None
    assert card.verdict.startswith("Nothing was found that gives the label away: the best of 5 shortcut probes")


@pytest.mark.slow
@pytest.mark.parametrize("num_images", [30, 60, 200])
def test_clean_portraits_raise_no_alarm_in_many_draws(num_images: int) -> None:
    cards = [audit(inputs_of(*portraits(seed, num_images))) for seed in range(100, 160)]
    assert [alarm for card in cards for alarm in alarms(card)] == []


def test_a_tint_on_one_class_makes_results_void() -> None:
    images, labels = portraits(1)
    images[labels == 1, ..., 2] = (images[labels == 1, ..., 2] * 0.8).astype(np.uint8)
    card = audit(inputs_of(images, labels))
    assert found(card, "probe", probe="thumbnail")[0].severity == "fail"
    assert found(card, "probe", probe="colour")
    assert card.worst == "fail"


def test_one_class_saved_at_a_lower_quality_is_named(tmp_path: Path) -> None:
    images, labels = portraits(2)
    files = [tmp_path / f"{i}.jpg" for i in range(len(labels))]
    for pixels, label, path in zip(images, labels, files, strict=True):
        Image.fromarray(pixels).save(path, quality=70 if label == 0 else 90)
    decoded = np.stack([np.asarray(Image.open(path)) for path in files])
    card = audit(inputs_of(decoded, labels, files))
    quality = found(card, "slice", property="jpeg_quality")[0]
    assert quality.severity == "fail"
    assert "100 of 100 images with jpeg_quality 70 are fake" in quality.sentence
    assert "100 of 100 images with jpeg_quality 90 are real" in quality.sentence
    assert "for 100.0% of all images this alone gives the label away" in quality.sentence
    assert found(card, "probe", probe="file")[0].severity == "fail"
    assert card.files["jpeg_quality"] == {"fake": {"counts": {"70": 100}}, "real": {"counts": {"90": 100}}}


def test_one_class_framed_larger_is_reported_in_words() -> None:
    images, labels = portraits(3, fake_scale=1.5)
    card = audit(inputs_of(images, labels))
    finding = found(card, "probe", probe="thumbnail")[0]
    accuracy = finding.evidence["accuracy"]
    assert finding.sentence == (
        f"A simple model that sees only 16x16 thumbnails is right on {accuracy:.3f} of these images. "
        "Accuracy here says how the pictures are framed, not whether they are forged."
    )
    assert finding.severity == card.worst == "fail"
    assert card.verdict.startswith(f"{card.findings[0].sentence} {len(alarms(card)) - 1} more findings below.")


def test_a_watermark_in_a_corner_is_found_there() -> None:
    images, labels = portraits(4)
    images[labels == 0, -9:-3, -18:-3] = 235
    card = audit(inputs_of(images, labels))
    assert found(card, "probe", probe="corners")[0].severity == "fail"
    assert not found(card, "probe", probe="file")


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


def test_card_says_what_confirmed_means() -> None:
    inputs = inputs_of(*portraits(10, num_images=20), with_probes=False)
    page = audit(inputs, AuditSettings(min_correlation=0.85)).to_markdown()
    assert "pHash at most 10 of 64 bits apart, and details that correlate by 0.85 or more. Details are the gray" in page


def test_one_alarming_probe_among_few_images_may_be_chance() -> None:
    images, labels = portraits(9, num_images=20)
    inputs = inputs_of(images, labels)
    scores = (np.arange(20) // 2 + np.where(labels == 0, 3.5, 0.0)) / 20  # AUC 0.79 on twenty images
    lucky = [replace(probe, auc=0.79, scores=scores) for probe in inputs.probes if probe.kind == "shortcut"]
    assert not alarms(audit(replace(inputs, probes=lucky)))
    assert alarms(audit(replace(inputs, probes=lucky), AuditSettings(significance=0.5)))


def test_a_trace_of_processing_is_in_the_verdict() -> None:
    images, labels = portraits(12, num_images=120)
    for row in np.flatnonzero(labels == 0):
        images[row] = np.asarray(Image.fromarray(images[row]).filter(ImageFilter.GaussianBlur(1.0)))
    card = audit(inputs_of(images, labels))
    (finding,) = found(card, "trace")
    assert finding.severity == "info"
    best = max((probe for probe in card.probes if probe.kind == "forensic"), key=lambda probe: probe.auc)
    assert finding.evidence["probe"] == best.name
    says = f"A trace of processing separates the classes ({best.name} probe right on {best.accuracy.value:.3f}"
    assert card.verdict.startswith(says)
    assert "): forgery, or the way the two sources were saved; this data cannot say which." in card.verdict
    assert "Nothing else was found that gives the label away: the best of 5 shortcut probes" in card.verdict
    assert card.worst == "info"
    alarmed = replace(card, findings=[Finding("warn", "slice", "Alarm.", {}, 0.1), finding])
    assert alarmed.verdict == f"Alarm. {finding.sentence}"


def test_markdown_and_json_say_the_same() -> None:
    images, labels = portraits(4)
    images[labels == 0, -9:-3, -18:-3] = 235
    card = audit(inputs_of(images, labels))
    page, content = card.to_markdown(), json.loads(card.to_json())
    assert content["verdict"] == card.verdict
    assert card.verdict in page
    assert content["worst"] == "fail"
    assert content["counts"] == {"fake": 100, "real": 100}
    assert [entry["sentence"] for entry in content["findings"]] == [f.sentence for f in card.findings]
    assert all(finding.sentence in page for finding in card.findings)
    assert all(f"| {probe.name} | {probe.kind} |" in page for probe in card.probes)
    assert content["settings"]["fail_auc"] == 0.9
    assert [entry["severity"] for entry in content["findings"]] == sorted(
        (entry["severity"] for entry in content["findings"]), key=["fail", "warn", "info"].index
    )


def test_a_card_without_probes_says_so() -> None:
    inputs = inputs_of(*portraits(10, num_images=20), with_probes=False)
    assert audit(inputs).verdict.endswith("but no probe was run.")
    assert "| probe | kind |" in audit(inputs).to_markdown()


def test_different_lengths_are_refused() -> None:
    inputs = inputs_of(*portraits(10, num_images=20), with_probes=False)
    with pytest.raises(DataError, match="20 labels but 19 names; pass one per image"):
        audit(replace(inputs, names=inputs.names[:19]))
    with pytest.raises(DataError, match="20 labels but 3 splits; pass one per image"):
        audit(replace(inputs, splits=["train"] * 3))
