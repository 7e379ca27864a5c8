"""What is planted in clean images is found, and clean images raise no alarm, however often they are drawn."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from statsmodels.stats.multitest import multipletests

from fakeface_lab.data.hashes import closest_pairs, perceptual_hashes, pixel_digests
from fakeface_lab.data.properties import file_properties, pixel_properties
from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.audit import AuditInputs, AuditSettings, Card, audit
from fakeface_lab.evaluation.card import Finding
from fakeface_lab.evaluation.probes import run_probes, stratified_folds
from fakeface_lab.evaluation.pure_slices import holm, slice_names

Pictures = NDArray[np.uint8]
Labels = NDArray[np.int64]
SIZE_PX = 96


def portrait(rng: np.random.Generator, scale: float = 1.0) -> Pictures:
    """A face of one skin colour or another before a blurred background, about in the middle."""
    ground = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((SIZE_PX, SIZE_PX))
    rows, columns = np.indices((SIZE_PX, SIZE_PX)) / SIZE_PX - 0.5 + rng.normal(0, 0.03, (2, 1, 1))
    width, height = 0.26 * scale * rng.normal(1, 0.05), 0.34 * scale * rng.normal(1, 0.05)
    is_face = (columns / width) ** 2 + (rows / height) ** 2 < 1
    light = Image.fromarray(rng.uniform(0.3, 1.2, (3, 3))).resize((SIZE_PX, SIZE_PX))
    skin = np.array([215, 170, 140]) * np.asarray(light)[..., None]
    pixels = np.where(is_face[..., None], skin, np.asarray(ground)) + rng.normal(0, 4, (SIZE_PX, SIZE_PX, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def portraits(seed: int, num_images: int = 200, fake_scale: float = 1.0) -> tuple[Pictures, Labels]:
    rng = np.random.default_rng(seed)
    labels = (np.arange(num_images) % 2).astype(np.int64)
    return np.stack([portrait(rng, fake_scale if label == 0 else 1.0) for label in labels]), labels


def inputs_of(
    images: Pictures,
    labels: Labels,
    files: list[Path] | None = None,
    splits: list[str] | None = None,
    file_digests: list[str] | None = None,
    with_probes: bool = True,
) -> AuditInputs:
    digests = pixel_digests(images)
    properties = pixel_properties(images)
    if files is not None:
        properties = pd.concat([file_properties(files), properties], axis=1)
    folds = stratified_folds(labels, np.unique(digests, return_inverse=True)[1])
    return AuditInputs(
        names=[f"{i}.jpg" for i in range(len(labels))],
        labels=labels,
        class_names=("fake", "real"),
        properties=properties,
        pairs=closest_pairs(perceptual_hashes(images)),
        probes=run_probes(images, properties, labels, folds) if with_probes else [],
        file_digests=file_digests or [f"file {i}" for i in range(len(labels))],
        pixel_digests=digests,
        splits=splits,
    )


def found(card: Card, check: str, **evidence: object) -> list[Finding]:
    return [
        finding
        for finding in card.findings
        if finding.check == check and all(finding.evidence.get(k) == v for k, v in evidence.items())
    ]


def alarms(card: Card) -> list[str]:
    return [finding.sentence for finding in card.findings if finding.severity != "info"]


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


def test_one_class_framed_larger_is_said_in_plain_words() -> None:
    images, labels = portraits(3, fake_scale=1.5)
    card = audit(inputs_of(images, labels))
    finding = found(card, "probe", probe="thumbnail")[0]
    accuracy = finding.evidence["accuracy"]
    assert finding.sentence == (
        f"A simple model that sees only 16x16 thumbnails is right on {accuracy:.3f} of these images. "
        "Accuracy here says how the pictures are framed, not whether they are forged."
    )
    assert finding.severity == card.worst == "fail"
    assert card.verdict == f"{card.findings[0].sentence} {len(alarms(card)) - 1} more findings below."


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
        "has learnt by heart."
    )
    without_splits = audit(replace(inputs, splits=None))
    severities = {finding.evidence["kind"]: finding.severity for finding in found(without_splits, "duplicate")}
    assert severities == {"file": "warn", "pixels": "warn", "near": "info"}


def test_five_pictures_under_both_labels_are_found() -> None:
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


def alike_pairs(bits: int, step: int) -> pd.DataFrame:
    """Twenty pairs of images `step` positions apart; an odd step pairs a fake with a real one."""
    first = np.arange(0, 40, 2)
    return pd.DataFrame(
        {"first": first, "second": first + step, "phash_bits": bits, "dhash_bits": 2, "is_mirrored": False}
    )


@pytest.mark.parametrize(("bits", "limit"), [(10, 6), (9, 6), (8, 5), (7, 4), (5, 2), (3, 2), (2, 6)])
def test_the_near_duplicate_distance_keeps_away_from_pairs_by_chance(bits: int, limit: int) -> None:
    images, labels = portraits(8, num_images=60)
    inputs = inputs_of(images, labels, with_probes=False)
    across_classes = audit(replace(inputs, pairs=alike_pairs(bits, step=1)))
    assert across_classes.near_duplicate_bits == limit
    assert bool(alarms(across_classes)) == (bits == 2)  # so close is no chance but one picture under two labels
    within_one = audit(replace(inputs, pairs=alike_pairs(bits, step=2)))
    assert within_one.near_duplicate_bits == 6


def test_one_pair_by_chance_across_the_splits_is_no_alarm() -> None:
    images, labels = portraits(8, num_images=60)
    inputs = inputs_of(images, labels, splits=["train"] * 40 + ["test"] * 20, with_probes=False)
    within = alike_pairs(6, step=2).assign(second=lambda pairs: pairs["first"] + 20).tail(1)
    across = alike_pairs(8, step=1).head(1)
    assert found(audit(replace(inputs, pairs=within)), "straddle", kind="near")
    assert not alarms(audit(replace(inputs, pairs=pd.concat([within, across]))))


def test_one_alarming_probe_among_few_images_may_be_chance() -> None:
    images, labels = portraits(9, num_images=20)
    inputs = inputs_of(images, labels)
    scores = (np.arange(20) // 2 + np.where(labels == 0, 3.5, 0.0)) / 20  # AUC 0.79 on twenty images
    lucky = [replace(probe, auc=0.79, scores=scores) for probe in inputs.probes if probe.kind == "shortcut"]
    assert not alarms(audit(replace(inputs, probes=lucky)))
    assert alarms(audit(replace(inputs, probes=lucky), AuditSettings(significance=0.5)))


def test_the_card_says_the_same_in_both_languages() -> None:
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


def test_slices_of_numbers_text_and_holes() -> None:
    assert slice_names(pd.Series([75.0, np.nan, 80.0])).tolist() == ["75", "missing", "80"]
    assert slice_names(pd.Series(["JPEG", None])).tolist() == ["JPEG", "missing"]
    assert slice_names(pd.Series([True, False])).tolist() == ["True", "False"]
    tenths = slice_names(pd.Series([*np.arange(100.0), np.nan]))
    assert tenths.value_counts().tolist() == [10] * 10 + [1]
    assert tenths.iloc[0] == "from 0 to 9.9"
    assert tenths.iloc[-1] == "missing"


def test_holm_agrees_with_statsmodels() -> None:
    p_values = np.random.default_rng(0).random(25) ** 3
    assert holm(list(p_values)) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([]) == []


def test_lengths_that_differ_are_named() -> None:
    inputs = inputs_of(*portraits(10, num_images=20), with_probes=False)
    with pytest.raises(DataError, match="20 labels but 19 names; pass one per image"):
        audit(replace(inputs, names=inputs.names[:19]))
    with pytest.raises(DataError, match="20 labels but 3 splits; pass one per image"):
        audit(replace(inputs, splits=["train"] * 3))
