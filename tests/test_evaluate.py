"""A tracked model on its own sealed test split, on another folder, and under stress."""

import csv
import re
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter
from sklearn.metrics import accuracy_score, roc_auc_score

from fakeface_lab.assess.tracked_model import choose_images, load_tracked_model, own_split
from fakeface_lab.data.images import load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.detector.fit import predict
from fakeface_lab.detector.stress import is_collapse, stress_scores
from fakeface_lab.evaluate import main, run_evaluation
from fakeface_lab.evaluation.stress.changes import apply
from fakeface_lab.evaluation.stress.suite import CONDITIONS, SEARCH_CONDITIONS, objective_values, stress_report
from fakeface_lab.settings import EvaluateSettings
from fakeface_lab.tracking.datasets import num_openings, seal_key
from fakeface_lab.tracking.lookup import find_evaluations, find_model, open_for_models
from tests.tracked_model_store import SIZE_PX, TrackedProject, draw, make_tracked_project


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> TrackedProject:
    return make_tracked_project(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(autouse=True)
def _in_project(tracked: TrackedProject, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked.enter(monkeypatch)


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


def test_folder_of_known_images_is_refused(
    tracked: TrackedProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("fake", "real"):
        (tmp_path / "part" / label).mkdir(parents=True)
        for number in range(5):
            shutil.copy(tracked.images / label / f"{label}_{number}.png", tmp_path / "part" / label)
    assert main(["tiny", "--data", str(tmp_path / "part")]) == 2
    assert "all 10 images are in the model's own data; leave --data out" in capsys.readouterr().err


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


def test_model_has_many_names(tracked: TrackedProject) -> None:
    store = open_for_models(None, tracked.project)
    address = find_model(store, "tiny").uri
    store.client.create_registered_model("faces")
    version = store.client.create_model_version("faces", address, tracked.run_id).version
    store.client.set_registered_model_alias("faces", "champion", version)
    for word in (tracked.run_id, "tiny", address, f"models:/faces/{version}", "faces@champion", "champion"):
        found = find_model(store, word)
        assert found.run.info.run_id == tracked.run_id, word
        assert found.metadata["class_names"] == ["fake", "real"], word
        assert found.store.experiment_name == "images", word
    store.client.create_registered_model("others")
    other = store.client.create_model_version("others", address, tracked.run_id).version
    store.client.set_registered_model_alias("others", "champion", other)
    with pytest.raises(Exception, match="2 registered models have this alias; give faces@champion or another"):
        find_model(store, "champion")


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


def test_images_that_moved_are_asked_for(tracked: TrackedProject, capsys: pytest.CaptureFixture[str]) -> None:
    away = tracked.images.rename(tracked.images.with_name("away"))
    try:
        assert main(["tiny"]) == 2
        message = "the images of run tiny cannot be found; give their folder with --data FOLDER"
        assert message in capsys.readouterr().err
        model = load_tracked_model(find_model(open_for_models(None, tracked.project), "tiny"))
        assert choose_images(model, str(away), None, tracked.project).part == "test"
        other = draw(tracked.images.with_name("other"), seed=2, names=("fake", "real"), num_per_class=3)
        sentences = choose_images(model, str(other), None, tracked.project).sentences
        assert "The model's own images are not available: only equal files could be left out." in sentences
    finally:
        away.rename(tracked.images)


def test_images_that_changed_are_refused(tracked: TrackedProject, capsys: pytest.CaptureFixture[str]) -> None:
    extra = tracked.images / "fake" / "extra.png"
    Image.new("RGB", (SIZE_PX, SIZE_PX), "red").save(extra)
    try:
        assert main(["tiny"]) == 2
        assert "the images of run tiny have changed" in capsys.readouterr().err
    finally:
        extra.unlink()


def test_store_without_runs_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path / 'none.db'}"
    assert main(["tiny", "--tracking-uri", uri]) == 1  # a store that cannot be opened
    assert "nothing has been recorded there yet" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()
