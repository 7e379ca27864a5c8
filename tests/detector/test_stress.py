"""Scores of a model under stress, and the share of its accuracy that a shortcut explains."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from fakeface_lab.assess.tracked_model import load_tracked_model
from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import Split, make_split
from fakeface_lab.detector import stress as shortcuts
from fakeface_lab.detector.fit import predict
from fakeface_lab.detector.stress import best_shortcut, compare_with_shortcut, is_collapse, stress_scores
from fakeface_lab.evaluation.audit.probes import probe_on_split
from fakeface_lab.evaluation.stress.changes import apply
from fakeface_lab.evaluation.stress.suite import CONDITIONS, stress_report
from fakeface_lab.tracking.lookup import find_model, open_for_models
from tests.tracked_model_store import SIZE_PX, TrackedProject


def test_scores_under_stress_do_not_depend_on_what_else_is_scored(
    tracked: TrackedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_tracked_model(find_model(open_for_models(None, tracked.project), "tiny"))
    images = load_images(find_source(str(tracked.images), None, tracked.project, SIZE_PX), SIZE_PX)
    rows = np.arange(5, 75, 2)
    conditions = [condition for condition in CONDITIONS if condition.name in ("noise_10", "crop_70")]
    whole = stress_scores(model.network, images, rows, conditions)
    monkeypatch.setattr("fakeface_lab.detector.stress._CHUNK_NUM_IMAGES", 8)
    some = np.random.default_rng(0).permutation(len(rows))[:20]
    for name, scores in stress_scores(model.network, images, rows[some], conditions).items():
        np.testing.assert_allclose(scores, whole[name][some], atol=1e-6)


def test_pictures_are_changed_at_their_own_size(tracked: TrackedProject, tmp_path: Path) -> None:
    model = load_tracked_model(find_model(open_for_models(None, tracked.project), "tiny"))
    large = tmp_path / "large"
    for label in ("fake", "real"):
        (large / label).mkdir(parents=True)
        for number in range(5):
            with Image.open(tracked.images / label / f"{label}_{number}.png") as image:
                image.resize((3 * SIZE_PX, 2 * SIZE_PX), Image.Resampling.BICUBIC).save(large / label / f"{number}.png")
    images = load_images(find_source(str(large), None, tracked.project, SIZE_PX), SIZE_PX)
    (blur,) = (condition for condition in CONDITIONS if condition.name == "blur_2")
    expected = []
    for file in images.files:
        with Image.open(file.path) as image:
            pixels = gaussian_filter(np.asarray(image, dtype=np.float32), (2, 2, 0), mode="nearest")
        picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
        expected.append(np.asarray(picture.resize((SIZE_PX, SIZE_PX), Image.Resampling.NEAREST)))
    scores = stress_scores(model.network, images, np.arange(10), [blur])["blur_2"]
    own = predict(model.network, np.stack(expected), np.arange(10))[:, 0]
    np.testing.assert_allclose(scores, own, atol=1e-6)
    resized_first = np.stack([apply(blur, pixels) for pixels in images.pixels])
    assert np.abs(predict(model.network, resized_first, np.arange(10))[:, 0] - own).max() > 1e-4


@pytest.mark.parametrize(
    ("num_found", "expected"),
    [(100, False), (95, False), (91, False), (80, True), (30, True)],
)
def test_collapse_is_a_large_fall_beyond_chance(num_found: int, expected: bool) -> None:
    labels = np.repeat([0, 1], 100)
    clean = np.where(labels == 0, 0.9, 0.1)
    cropped = clean.copy()
    cropped[num_found:100] = 0.2
    assert is_collapse(stress_report(("fake", "real"), labels, {"clean": clean, "crop_70": cropped})) is expected


def test_fall_of_few_images_is_not_a_collapse() -> None:
    labels = np.repeat([0, 1], 4)
    clean = np.where(labels == 0, 0.9, 0.1)
    clean[3] = 0.4
    cropped = clean.copy()
    cropped[2] = 0.4  # 2 of 4 instead of 3 of 4: a large fall, but within chance
    assert not is_collapse(stress_report(("fake", "real"), labels, {"clean": clean, "crop_70": cropped}))


@pytest.fixture
def images(project: Path, make_images: Callable[..., Path]) -> ImageSet:
    return load_images(find_source(str(make_images(40)), None, project, 24), 24)


def kept_files(images: ImageSet) -> list[Path]:
    return sorted(images.cache_path.parent.glob("shortcut-*"))


def test_probe_is_that_of_the_split(images: ImageSet) -> None:
    split = make_split(images, "sealed", 0)
    for part, rows in (("validation", split.validation), ("test", split.test)):
        expected = probe_on_split(
            images.pixels[split.train], images.labels[split.train], images.pixels[rows], images.labels[rows]
        )
        probe = best_shortcut(images, split, part)  # type: ignore[arg-type]
        assert probe.name == expected.name
        np.testing.assert_allclose(probe.scores, expected.scores, rtol=1e-6)


def test_second_call_reads_what_the_first_kept(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_split(images, "sealed", 0)
    first = best_shortcut(images, split)
    assert len(kept_files(images)) == 1

    def must_not_train(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(shortcuts, "probe_on_split", must_not_train)
    second = best_shortcut(images, split)
    np.testing.assert_array_equal(second.scores, first.scores)
    assert (second.name, second.kind, second.sees) == (first.name, first.kind, first.sees)
    assert (second.accuracy, second.auc) == (first.accuracy, first.auc)
    with pytest.raises(AssertionError, match="trained again"):  # other rows are another question
        best_shortcut(images, split, "test")
    with pytest.raises(AssertionError, match="trained again"):
        best_shortcut(images, make_split(images, "sealed", 1))


def test_damaged_file_is_made_again(images: ImageSet) -> None:
    split = make_split(images, "documented", 0)
    first = best_shortcut(images, split)
    (path,) = kept_files(images)
    for damage in ('{"half', "[]", json.dumps(json.loads(path.read_text()) | {"scores": [0.5]})):
        path.write_text(damage)
        np.testing.assert_array_equal(best_shortcut(images, split).scores, first.scores)
        assert kept_files(images) == [path]
        assert len(json.loads(path.read_text())["scores"]) == len(split.test)


def test_cache_that_cannot_be_written_costs_no_run(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fakeface_lab.detector.stress.tempfile.mkstemp", refuse)
    assert len(best_shortcut(images, make_split(images, "documented", 0)).scores) == 16
    assert kept_files(images) == []


def test_final_split_is_explained_on_its_test_images(images: ImageSet) -> None:
    sealed = make_split(images, "sealed", 0)
    both = np.concatenate([sealed.train, sealed.validation])
    final = Split("sealed", 0, both, np.empty(0, dtype=np.int64), sealed.test)
    assert len(best_shortcut(images, final).scores) == len(sealed.test)


def test_share_and_sentence(images: ImageSet) -> None:
    # Class 0 is brighter in its upper half, so a thumbnail tells the classes apart.
    split = make_split(images, "documented", 0)
    metrics, sentence = compare_with_shortcut(images, split, right_about(split, 1.0))
    majority = np.bincount(images.labels[split.test]).max() / len(split.test)
    assert metrics["majority_accuracy"] == majority
    assert metrics["shortcut_accuracy_num_total"] == len(split.test)
    expected = (metrics["shortcut_accuracy"] - majority) / (1.0 - majority)
    assert metrics["explained_share"] == pytest.approx(expected)
    assert metrics["explained_share_low"] <= metrics["explained_share"] <= metrics["explained_share_high"]
    assert sentence.startswith("A simple model that sees only 16x16 thumbnails has ")
    assert f"against 1.000, chance {majority:.3f})" in sentence


def test_files_give_a_label_away_too(project: Path, tmp_path: Path) -> None:
    """Noise that only the JPEG quality tells apart."""
    rng = np.random.default_rng(0)
    for name, quality in (("fake", 95), ("real", 94)):
        (tmp_path / "saved" / name).mkdir(parents=True)
        for number in range(100):
            pixels = rng.integers(100, 140, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "saved" / name / f"{number}.jpg", quality=quality)
    images = load_images(find_source(str(tmp_path / "saved"), None, project, 24), 24)
    split = make_split(images, "sealed", 0)
    probe = best_shortcut(images, split)
    assert (probe.name, probe.accuracy.value) == ("file", 1.0)
    metrics, sentence = compare_with_shortcut(images, split, np.ones(len(split.validation), dtype=bool))
    assert metrics["explained_share"] == 1.0
    assert sentence.startswith("A simple model that sees only the file's shape, format and metadata has 1.00 of the")


def right_about(split: Split, accuracy: float) -> NDArray[np.bool_]:
    """Decisions about the test images of which about so many are right, every class alike."""
    order = np.random.default_rng(0).permutation(len(split.test))
    return np.asarray(order < round(accuracy * len(split.test)))


def test_consequence_depends_on_the_share(images: ImageSet) -> None:
    split = make_split(images, "documented", 0)
    shortcut = best_shortcut(images, split).accuracy.value
    assert shortcut > 0.9
    assert compare_with_shortcut(images, split, right_about(split, shortcut))[1].endswith(
        "does not show that faces were looked at."
    )


def test_model_no_better_than_guessing_has_no_share(images: ImageSet) -> None:
    split = make_split(images, "documented", 0)
    metrics, sentence = compare_with_shortcut(images, split, right_about(split, 0.3))
    assert "explained_share" not in metrics
    assert "is not better than always naming the larger class" in sentence


@pytest.mark.real_data
@pytest.mark.usefixtures("project")
def test_real_images_are_explained_once_and_quickly(real_images: Path, project: Path) -> None:
    images = load_images(find_source(str(real_images), None, project, 300), 300)
    split = make_split(images, "documented", 1)
    metrics, sentence = compare_with_shortcut(images, split, right_about(split, 0.9961))
    assert metrics["explained_share"] > 0.95
    assert "16x16 thumbnails" in sentence
    started = time.perf_counter()
    compare_with_shortcut(images, split, right_about(split, 0.9961))
    assert time.perf_counter() - started < 0.5
