"""Faults planted in clean images are found, probes are judged at their thresholds, clean images raise no alarm."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.audit.audit import AuditSettings, audit
from tests.evaluation.audit.audit_inputs import (
    alarms,
    found,
    inputs_of,
    portraits,
    probe_of,
    with_property,
    without_probes,
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


def test_one_alarming_probe_among_few_images_may_be_chance() -> None:
    images, labels = portraits(9, num_images=20)
    inputs = inputs_of(images, labels)
    scores = (np.arange(20) // 2 + np.where(labels == 0, 3.5, 0.0)) / 20  # AUC 0.79 on twenty images
    lucky = [replace(probe, auc=0.79, scores=scores) for probe in inputs.probes if probe.kind == "shortcut"]
    assert not alarms(audit(replace(inputs, probes=lucky)))
    assert alarms(audit(replace(inputs, probes=lucky), AuditSettings(significance=0.5)))


def test_different_lengths_are_refused() -> None:
    inputs = inputs_of(*portraits(10, num_images=20), with_probes=False)
    with pytest.raises(DataError, match="20 labels but 19 names; pass one per image"):
        audit(replace(inputs, names=inputs.names[:19]))
    with pytest.raises(DataError, match="20 labels but 3 splits; pass one per image"):
        audit(replace(inputs, splits=["train"] * 3))


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
