"""Figures on a folder carry its audit, and under stress the fall is shown."""

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fakeface_lab.assess.tracked_model import load_tracked_model, own_split
from fakeface_lab.data.images import load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.detector.stress import is_collapse, stress_scores
from fakeface_lab.evaluate import run_evaluation
from fakeface_lab.evaluation.stress.suite import CONDITIONS, SEARCH_CONDITIONS, objective_values, stress_report
from fakeface_lab.settings import EvaluateSettings
from fakeface_lab.tracking.lookup import find_evaluations, find_model, open_for_models
from tests.tracked_model_store import SIZE_PX, TrackedProject


def save_noise(root: Path, seed: int, qualities: tuple[int, int], num_per_class: int = 40) -> Path:
    """Draw two classes from one distribution and save each as JPEG with its own quality."""
    rng = np.random.default_rng(seed)
    for name, quality in zip(("fake", "real"), qualities, strict=True):
        (root / name).mkdir(parents=True)
        for number in range(num_per_class):
            pixels = np.clip(rng.normal(120, 40, (3, 3, 3)), 0, 255).astype(np.uint8)
            picture = Image.fromarray(pixels).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)
            picture.save(root / name / f"{name}_{number}.jpg", quality=quality)
    return root


def test_figure_on_a_folder_whose_classes_were_saved_differently_is_void(
    tracked: TrackedProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_evaluation(EvaluateSettings(model="tiny", data=str(save_noise(tmp_path / "other", 3, (95, 80), 80))))
    (accuracy,) = [sentence for sentence in result.sentences if sentence.startswith("Accuracy ")]
    assert " This figure is void: " in accuracy
    assert "jpeg_quality" in accuracy
    assert "This figure is void" in " ".join(capsys.readouterr().out.split())
    client = open_for_models(None, tracked.project).client
    tags = client.get_run(result.run_id).data.tags
    assert tags["external_audit_worst"] == "fail"
    assert "jpeg_quality" in tags["external_audit_verdict"]
    assert "This figure is void" in tags["mlflow.note.content"]
    assert {"card.md", "card.json"} <= {artifact.path for artifact in client.list_artifacts(result.run_id)}


@pytest.mark.slow
def test_figure_on_a_folder_without_findings_has_no_caveat(tracked: TrackedProject, tmp_path: Path) -> None:
    result = run_evaluation(EvaluateSettings(model="tiny", data=str(save_noise(tmp_path / "other", 4, (95, 95)))))
    (accuracy,) = [sentence for sentence in result.sentences if sentence.startswith("Accuracy ")]
    assert "void" not in accuracy
    assert "with care" not in accuracy
    tags = open_for_models(None, tracked.project).client.get_run(result.run_id).data.tags
    assert tags["external_audit_worst"] == ""
    assert tags["external_audit_verdict"].startswith("Nothing was found that gives the label away")


def test_folder_too_small_for_probes_is_evaluated(tracked: TrackedProject, tmp_path: Path) -> None:
    result = run_evaluation(EvaluateSettings(model="tiny", data=str(save_noise(tmp_path / "other", 5, (95, 95), 1))))
    assert result.metrics["external_accuracy_num_total"] == 2
    tags = open_for_models(None, tracked.project).client.get_run(result.run_id).data.tags
    assert "no probe was run" in tags["external_audit_verdict"]


@pytest.mark.slow
def test_stress_shows_the_fall(tracked: TrackedProject, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_evaluation(EvaluateSettings(model="tiny", stress=True))
    store = open_for_models(None, tracked.project)
    model = load_tracked_model(find_model(store, "tiny"))
    images = load_images(find_source(str(tracked.images), None, tracked.project, SIZE_PX), SIZE_PX)
    rows = own_split(model, images).test
    scores = stress_scores(model.network, images, rows, SEARCH_CONDITIONS)
    objectives = objective_values(images.labels[rows], scores)
    assert {name: result.metrics[name] for name in objectives} == objectives

    table = pd.read_csv(mlflow.artifacts.download_artifacts(f"runs:/{result.run_id}/stress.csv"), index_col="condition")
    assert list(table.index) == [condition.name for condition in CONDITIONS]
    assert table.loc["clean", "accuracy"] == result.metrics["test_accuracy"]
    assert table.loc["clean", "flip_rate"] == 0
    assert result.metrics["stress_crop_70_recall_fake"] == table.loc["crop_70", "recall_fake"]
    for_search = table.loc[[condition.name for condition in SEARCH_CONDITIONS], "balanced_accuracy"]
    assert objectives["worst_stress"] == pytest.approx(for_search.min())
    assert objectives["mean_stress"] == pytest.approx(for_search.mean())
    (newest, *_) = find_evaluations(store, tracked.run_id)
    assert newest.info.run_id == result.run_id
    sentence = newest.data.tags["stress_sentence"]
    assert f"Under stress: {sentence}" in capsys.readouterr().out
    everything = stress_scores(model.network, images, rows, CONDITIONS)
    collapses = is_collapse(stress_report(model.class_names, images.labels[rows], everything))
    assert newest.data.tags["stress_collapse"] == ("true" if collapses else "false")
