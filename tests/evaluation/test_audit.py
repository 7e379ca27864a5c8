"""What is planted in clean images is found, and clean images raise no alarm, however often they are drawn."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.stats import fisher_exact, mannwhitneyu
from sklearn.metrics import roc_auc_score

from fakeface_lab.data.hashes import closest_pairs, detail_correlations, perceptual_hashes, pixel_digests
from fakeface_lab.data.properties import CONTENT_COLUMNS, file_properties, pixel_properties
from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.audit import AuditInputs, AuditSettings, Card, audit
from fakeface_lab.evaluation.card import Finding
from fakeface_lab.evaluation.intervals import wilson
from fakeface_lab.evaluation.probes import ProbeResult, run_probes, stratified_folds
from fakeface_lab.evaluation.pure_slices import slice_names

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
    pairs = closest_pairs(perceptual_hashes(images))
    content = [column for column in CONTENT_COLUMNS if column in properties]
    return AuditInputs(
        names=[f"{i}.jpg" for i in range(len(labels))],
        labels=labels,
        class_names=("fake", "real"),
        properties=properties,
        pairs=pairs.assign(correlation=detail_correlations(images, pairs)),
        probes=run_probes(images, properties.drop(columns=content), labels, folds) if with_probes else [],
        file_digests=file_digests or [f"file {i}" for i in range(len(labels))],
        pixel_digests=digests,
        splits=splits,
        content_columns=content,
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


def alike_pairs(correlation: float, step: int, bits: int = 8) -> pd.DataFrame:
    """Twenty pairs of images `step` positions apart; an odd step pairs a fake with a real one."""
    first = np.arange(0, 40, 2)
    return pd.DataFrame(
        {"first": first, "second": first + step, "phash_bits": bits, "is_mirrored": False, "correlation": correlation}
    )


@pytest.mark.parametrize(
    ("correlation", "bits", "is_same"), [(0.89, 0, False), (0.9, 10, True), (0.9, 11, False), (1.0, 4, True)]
)
def test_look_alikes_are_one_picture_only_where_their_pixels_confirm_it(
    correlation: float, bits: int, is_same: bool
) -> None:
    images, labels = portraits(8, num_images=60)
    inputs = inputs_of(images, labels, splits=["train", "test"] * 30, with_probes=False)
    card = audit(replace(inputs, pairs=alike_pairs(correlation, 1, bits)))
    assert bool(found(card, "two labels", kind="near")) == is_same
    assert bool(found(card, "straddle", kind="near")) == is_same
    assert bool(found(audit(replace(inputs, pairs=alike_pairs(correlation, 2, bits))), "duplicate")) == is_same


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


def probe_of(
    scores: NDArray[np.float64], labels: Labels, name: str = "thumbnail", kind: str = "shortcut"
) -> ProbeResult:
    """A probe with these scores, as `run_probes` would report it."""
    is_positive = labels == 0
    accuracy = wilson(int(((scores > 0.5) == is_positive).sum()), len(scores))
    return ProbeResult(name, kind, "something", accuracy, roc_auc_score(is_positive, scores), scores)  # type: ignore[arg-type]


def without_probes(num_images: int) -> AuditInputs:
    images, labels = portraits(11, num_images=num_images)
    return inputs_of(images, labels, with_probes=False)


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


def with_property(values: list[object], labels: Labels, others: int = 0) -> AuditInputs:
    """Inputs with one telling property, and others that each have two values in both classes alike."""
    blind = {f"blind_{number}": np.arange(len(labels)) // 2 % 2 == 0 for number in range(others)}
    table = pd.DataFrame({"format": values, **blind})
    return AuditInputs(
        names=[f"{row}.jpg" for row in range(len(labels))],
        labels=labels,
        class_names=("fake", "real"),
        properties=table,
        pairs=alike_pairs(0.0, 1).head(0),
        probes=[],
        file_digests=[f"file {row}" for row in range(len(labels))],
        pixel_digests=[f"pixels {row}" for row in range(len(labels))],
    )


def test_p_values_of_slices_count_and_are_corrected() -> None:
    labels = (np.arange(400) >= 20).astype(np.int64)  # 20 fakes among 380 real images
    values: list[object] = ["PNG" if 100 <= row < 200 else "JPEG" for row in range(400)]  # 100 of the real ones
    p_value = float(fisher_exact(np.array([[0, 100], [20, 280]])).pvalue)
    assert 1e-3 < p_value < 0.05  # pure, and yet no surprise in so uneven a set
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


@pytest.mark.parametrize("kind", ["shortcut", "forensic"])
def test_surest_images_of_a_probe_that_are_of_one_class_are_found(kind: str) -> None:
    """A fifth of all images bears a mark of its class; the rest is noise, so the AUC stays below the alarm."""
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


def test_equal_scores_are_never_cut_apart() -> None:
    labels = np.repeat([0, 1], 200).astype(np.int64)  # in order of the class, as files are listed
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


def test_no_label_is_called_wrong_where_the_classes_cannot_be_told_apart() -> None:
    rng, labels = np.random.default_rng(2), (np.arange(200) % 2).astype(np.int64)
    scores = np.clip(np.where(labels == 0, 0.6, 0.4) + rng.normal(0, 0.15, 200), 0, 1)
    probe = probe_of(scores, labels)
    assert 0.7 < probe.auc < 0.9
    inputs = replace(with_property(["JPEG"] * 200, labels), probes=[probe])
    assert not found(audit(inputs), "labels")
    assert found(audit(inputs, AuditSettings(fail_auc=0.75)), "labels")


def test_bytes_are_content_and_no_slice(tmp_path: Path) -> None:
    """Lossless files of detailed pictures are larger: that is on the pictures, not in how they were saved."""
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


def test_lengths_that_differ_are_named() -> None:
    inputs = inputs_of(*portraits(10, num_images=20), with_probes=False)
    with pytest.raises(DataError, match="20 labels but 19 names; pass one per image"):
        audit(replace(inputs, names=inputs.names[:19]))
    with pytest.raises(DataError, match="20 labels but 3 splits; pass one per image"):
        audit(replace(inputs, splits=["train"] * 3))
