"""Probes score only pictures they were not trained on, and pick none on those they are judged by."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.audit.probes import (
    ProbeResult,
    mean_faces,
    probe_on_split,
    run_probes,
    stratified_folds,
    thumbnail_weights,
)
from tests.evaluation.audit.clean_pictures import NUM_IMAGES, clean_set, probe_aucs


def test_a_table_column_is_seen_by_its_own_probe() -> None:
    images, labels = clean_set(5)
    rng = np.random.default_rng(5)
    table = pd.DataFrame(
        {
            "bytes": 9000 + 600 * labels + rng.integers(0, 500, NUM_IMAGES),
            "format": np.where(rng.random(NUM_IMAGES) < 0.5, "JPEG", "PNG"),
            "jpeg_quality": np.where(rng.random(NUM_IMAGES) < 0.5, np.nan, 75.0),
            "is_gray": rng.random(NUM_IMAGES) < 0.5,
            "saturation": rng.random(NUM_IMAGES),
        }
    )
    aucs = probe_aucs(images, labels, table)
    assert aucs["file"] > 0.95
    assert aucs["colour"] < 0.65
    assert "file" not in probe_aucs(images, labels, table[["is_gray", "saturation"]])


def test_scores_are_out_of_fold_and_figures_follow_from_them() -> None:
    images, labels = clean_set(6)
    images[labels == 0, 20:44, 20:44] //= 2
    folds = stratified_folds(labels, np.arange(NUM_IMAGES), seed=6)
    results = {result.name: result for result in run_probes(images, None, labels, folds)}
    thumbnail = results["thumbnail"]
    table = np.stack(
        [np.asarray(Image.fromarray(i).resize((16, 16), Image.Resampling.BOX)).ravel() for i in images]
    ).astype(float)
    for fold in range(5):
        train = folds != fold
        scaler = StandardScaler().fit(table[train])
        model = LogisticRegression(max_iter=2000).fit(scaler.transform(table[train]), labels[train])
        expected = model.predict_proba(scaler.transform(table[~train]))[:, 0]  # of class index 0
        np.testing.assert_allclose(thumbnail.scores[~train], expected, atol=1e-3)
    assert thumbnail.accuracy.num_correct == int(((thumbnail.scores > 0.5) == (labels == 0)).sum())
    assert thumbnail.auc == pytest.approx(roc_auc_score(labels == 0, thumbnail.scores))
    assert results["majority"].accuracy.num_total == NUM_IMAGES
    assert results["majority"].auc == 0.5


def test_the_majority_predicts_the_larger_class() -> None:
    images, _ = clean_set(7, 60)
    labels = np.array([0] * 20 + [1] * 40)
    result = run_probes(images, None, labels, stratified_folds(labels, np.arange(60)))[0]
    assert result.accuracy.num_correct == 40
    assert result.scores == pytest.approx(np.full(60, 1 / 3), abs=0.02)


def test_folds_keep_groups_whole_and_classes_even() -> None:
    labels = np.arange(100) % 2
    groups = np.arange(100) // 4
    folds = stratified_folds(labels, groups, num_folds=5, seed=1)
    assert all(len(set(folds[groups == group])) == 1 for group in range(25))
    assert all(abs(labels[folds == fold].mean() - 0.5) < 0.1 for fold in range(5))
    assert (folds == stratified_folds(labels, groups, num_folds=5, seed=1)).all()


def test_probe_on_split_picks_the_best_probe_and_scores_the_test_pictures() -> None:
    images, labels = clean_set(8)
    images[labels == 1, ..., 0] //= 2
    result = probe_on_split(images[:160], labels[:160], images[160:], labels[160:])
    assert isinstance(result, ProbeResult)
    assert result.kind == "shortcut"
    assert result.accuracy.num_total == 80
    assert result.accuracy.value > 0.95
    assert result.scores.shape == (80,)


def test_probe_on_split_does_not_choose_on_the_test_pictures() -> None:
    """The thumbnail separates the classes in training, the corners only among the test pictures."""
    images, labels = clean_set(9)
    middle = np.s_[:160]
    images[middle][labels[middle] == 0, 24:40, 24:40] = 255
    images[160:][labels[160:] == 0, :6, :6] = 255
    assert probe_on_split(images[:160], labels[:160], images[160:], labels[160:]).name == "thumbnail"


def test_mean_faces_and_weights() -> None:
    images, labels = clean_set(10)
    images[labels == 0, :16, :16, 1] = 240
    means = mean_faces(images, labels)
    for label in (0, 1):
        np.testing.assert_allclose(means[label], images[labels == label].mean(axis=0))
    weights = thumbnail_weights(images, labels)
    assert weights.shape == (16, 16, 3)
    strongest = np.unravel_index(np.argmax(weights), weights.shape)
    assert strongest[0] < 4
    assert strongest[1] < 4
    assert strongest[2] == 1


def test_flat_and_tiny_pictures_give_finite_figures() -> None:
    images = np.full((20, 3, 5, 3), 128, dtype=np.uint8)
    labels = np.arange(20) % 2
    folds = stratified_folds(labels, np.arange(20), num_folds=2)
    for result in run_probes(images, None, labels, folds):
        assert np.isfinite(result.scores).all()
        assert result.auc == 0.5


def test_errors_say_what_to_do() -> None:
    images, labels = clean_set(11, 20)
    folds = np.arange(20) % 5
    with pytest.raises(DataError, match="20 images but 19 labels; pass one per image"):
        run_probes(images, None, labels[:19], folds)
    with pytest.raises(DataError, match="20 images but 18 folds; pass one per image"):
        run_probes(images, None, labels, folds[:18])
    with pytest.raises(DataError, match=r"labels are \[1\], expected both 0 \(positive\) and 1"):
        run_probes(images, None, np.ones(20, dtype=np.int64), folds)
    with pytest.raises(DataError, match="fold 0 leaves one class to train on; spread both classes"):
        run_probes(images, None, labels, labels)
    with pytest.raises(DataError, match="11 folds cannot be made: expected 2 to the size of the smallest"):
        stratified_folds(labels, np.arange(20), num_folds=11)


@pytest.mark.real_data
def test_a_thumbnail_separates_the_documented_images(real_images: Path) -> None:
    paths = sorted((real_images / "fake").iterdir()) + sorted((real_images / "real").iterdir())
    images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    labels = np.array([0] * 700 + [1] * 589)
    folds = stratified_folds(labels, np.arange(len(labels)))
    accuracy = {result.name: result.accuracy.value for result in run_probes(images, None, labels, folds)}
    assert accuracy["thumbnail"] > 0.995
    assert accuracy["spectrum"] == pytest.approx(0.787, abs=0.02)
    assert accuracy["histogram"] == pytest.approx(0.649, abs=0.03)
