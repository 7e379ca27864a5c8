"""The explained share: computed on the run's own split, kept beside the pixels, told in a sentence."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import Split, make_split
from fakeface_lab.detector import stress as shortcuts
from fakeface_lab.detector.stress import best_shortcut, compare_with_shortcut
from fakeface_lab.evaluation.probes import probe_on_split


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
