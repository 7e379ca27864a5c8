"""A tracked model on its own sealed test split and on another folder, as a program."""

import csv
import re
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps
from sklearn.metrics import accuracy_score, roc_auc_score

from fakeface_lab.evaluate import main, run_evaluation
from fakeface_lab.settings import EvaluateSettings
from fakeface_lab.tracking.datasets import num_openings, seal_key
from fakeface_lab.tracking.lookup import find_evaluations, find_model, open_for_models
from tests.tracked_model_store import TrackedProject, draw

pytestmark = pytest.mark.usefixtures("tracked")


def openings(tracked: TrackedProject) -> int:
    store = open_for_models(None, tracked.project)
    return num_openings(store, seal_key(store.client.get_run(tracked.run_id).data.tags["data_digest"], "sealed", 0))


def ledger(tracked: TrackedProject, part: str) -> list[list[str]]:
    text = mlflow.artifacts.load_text(f"runs:/{tracked.run_id}/split.csv")
    return [row for row in csv.reader(text.splitlines()) if row[3] == part]


def test_own_test_split_is_opened_counted_and_scored_right(
    tracked: TrackedProject, capsys: pytest.CaptureFixture[str]
) -> None:
    before = openings(tracked)
    result = run_evaluation(EvaluateSettings(model="tiny"))
    assert openings(tracked) == before + 1
    times = "once" if before == 0 else f"{before + 1} times"
    seal = f"The test images (sealed split, seed 0) have been opened {times} in this store."
    assert seal in capsys.readouterr().out
    assert seal in mlflow.get_run(result.run_id).data.tags["mlflow.note.content"]

    # Scored again by hand: MLflow's own loader, Pillow, one picture at a time.
    network = mlflow.pyfunc.load_model(find_model(open_for_models(None, tracked.project), "tiny").uri)
    rows = ledger(tracked, "test")
    truth = np.array([row[2] == "fake" for row in rows])
    scores = []
    for name, *_ in rows:
        with Image.open(tracked.images / name) as image:
            batch = (np.asarray(image.convert("RGB"))[None] / 255).astype(np.float32)
        scores.append(float(np.asarray(network.predict(batch))[0, 0]))
    assert result.metrics["test_accuracy"] == accuracy_score(truth, np.array(scores) > 0.5)
    assert result.metrics["test_roc_auc"] == pytest.approx(roc_auc_score(truth, scores))
    assert result.metrics["test_accuracy_num_total"] == len(rows)

    store = open_for_models(None, tracked.project)
    run = store.client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == tracked.run_id
    assert run.data.tags["role"] == "evaluation"
    assert run.data.tags["split"] == "sealed"
    assert "Worst of" not in run.data.tags["mlflow.note.content"]  # all groups are smaller than 20 images
    assert run.data.metrics["test_ece"] == result.metrics["test_ece"]
    assert run.data.metrics["shortcut_accuracy"] == result.metrics["shortcut_accuracy"]
    assert "explained_share" not in run.data.metrics  # one epoch on few images is not better than chance
    assert run.data.metrics["test_accuracy_gray_real_num_total"] >= 1
    assert {artifact.path for artifact in store.client.list_artifacts(result.run_id)} >= {
        "scores.csv", "groups.csv", "reliability.csv", "confusion.png", "roc.png", "reliability.png", "gallery.png",
        "saliency_mean.png", "saliency_wrongest.png",
    }  # fmt: skip
    table = pd.read_csv(mlflow.artifacts.download_artifacts(f"runs:/{result.run_id}/scores.csv"))
    np.testing.assert_allclose(table["probability_fake"], scores, atol=1e-6)
    assert list(table["file"]) == [row[0] for row in rows]


@pytest.mark.slow
def test_second_look_is_called_one(tracked: TrackedProject, capsys: pytest.CaptureFixture[str]) -> None:
    before = openings(tracked)
    for _ in range(2):
        assert main([tracked.run_id, "--data", str(tracked.images)]) == 0  # the same images: their test split, not all
    output = capsys.readouterr().out
    assert openings(tracked) == before + 2
    assert f"have been opened {before + 2} times in this store. Anything chosen by results on them looks" in output
    store = open_for_models(None, tracked.project)
    (newest, *_) = find_evaluations(store, tracked.run_id)
    store.client.delete_run(newest.info.run_id)
    assert openings(tracked) == before + 2, "a deleted run has looked all the same"
    assert f"{len(ledger(tracked, 'test'))} test images of the model's own split." in output


def test_other_folder_is_scored_at_the_same_threshold_without_images_it_knows(
    tracked: TrackedProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = openings(tracked)
    other = draw(tmp_path / "other", seed=1, names=("1_fake", "0_real"), num_per_class=25)
    for name, *_ in ledger(tracked, "train")[:3] + ledger(tracked, "test")[:2]:
        label = "1_fake" if name.startswith("fake") else "0_real"
        shutil.copy(tracked.images / name, other / label / f"known {Path(name).name}")
    for number, (name, *_) in enumerate(ledger(tracked, "train")[3:6]):
        label = "1_fake" if name.startswith("fake") else "0_real"
        with Image.open(tracked.images / name) as image:
            saved = image.convert("RGB") if number else ImageOps.mirror(image.convert("RGB"))
            saved.save(other / label / f"saved anew {number}.jpg", quality=95)
    result = run_evaluation(EvaluateSettings(model="tiny", data=str(other)))
    output = capsys.readouterr().out
    assert result.metrics["external_accuracy_num_total"] == 50
    assert "50 images the model has never seen, at its own threshold 0.5." in output
    assert "8 more are in the model's own data, or look like a picture that is, and are left out." in output
    assert "1_fake is taken as fake, 0_real is taken as real" in output
    assert openings(tracked) == before
    assert not any(name.startswith("test_") for name in result.metrics)
    assert "explained_share" not in result.metrics
    assert "own validation split" in output
    assert f"{tracked.metrics['validation_accuracy']:.4f}" in output
    worst = min(
        value
        for name, value in result.metrics.items()
        if name.startswith("external_accuracy_")
        and f"{name}_num_total" in result.metrics
        and result.metrics[f"{name}_num_total"] >= 20
    )
    assert result.metrics["external_worst_group_accuracy"] == worst
    run = open_for_models(None, tracked.project).client.get_run(result.run_id)
    assert run.data.tags["split"] == "external"
    assert run.data.params["threshold"] == "0.5"
    assert re.search(r"Worst of \d+ groups: .*allows for the choice", run.data.tags["mlflow.note.content"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tny"], "tny: no run, model or alias of that name in sqlite:.*; did you mean tiny\\?"),
        (["0" * 32], "0{32}: no such run in sqlite:"),
        (["models:/nothing/1"], "models:/nothing/1: no such model in sqlite:"),
        (["nothing@champion"], "models:/nothing@champion: no such model"),
        ([], "the following arguments are required: MODEL"),
        (["tiny", "--stres"], "--stres: unknown argument; did you mean --stress\\?"),
        (["tiny", "--data", "nowhere"], "--data nowhere: no such folder"),
    ],
)
def test_mistakes_are_reported_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line), line


def test_run_without_a_model_says_so(tracked: TrackedProject, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_for_models(None, tracked.project)
    tags = {"mlflow.runName": "bare", "role": "search"}
    store.client.create_run(store.experiment_id, tags=tags)
    assert main(["bare"]) == 2
    assert "this search has logged no model; name one of its trials, or NAME@candidate" in capsys.readouterr().err


def test_store_without_runs_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path / 'none.db'}"
    assert main(["tiny", "--tracking-uri", uri]) == 1  # a store that cannot be opened
    assert "nothing has been recorded there yet" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()
