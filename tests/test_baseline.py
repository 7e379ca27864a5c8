"""The baseline as a program: what it leaves in the store, and that a kill at any moment costs nothing."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import numpy.typing as npt
import pytest
from mlflow.entities import Run
from PIL import Image

from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import read_split
from fakeface_lab.tracking.store import Store, open_store
from tests.made_once import empty_store

EPOCHS = 3
ARTIFACTS = {
    *("confusion_test.png", "curve_accuracy.png", "curve_loss.png", "documented_figure.png", "roc_test.png"),
    *("environment.json", "layers.txt", "scores.csv", "settings.json", "split.csv"),
}


def draw_images(root: Path) -> Path:
    """Fifty small pictures: fakes are brighter above, too little for a perfect score."""
    rng = np.random.default_rng(0)
    for name in ("fake", "real"):
        (root / name).mkdir(parents=True)
        for number in range(25):
            pixels = rng.integers(0, 230, (24, 24, 3), dtype=np.uint8)
            if name == "fake":
                pixels[:12] += 12
            Image.fromarray(pixels).save(root / name / f"{name}_{number}.png")
    return root


class Place:
    """A project folder with its images, in which the program runs as a process of its own."""

    def __init__(self, root: Path) -> None:
        self.project, self.cache, self.images = root / "project", root / "cache", root / "faces"
        (self.project / "experiments").mkdir(parents=True)
        shutil.copy(empty_store(), self.project)
        draw_images(self.images)

    def start(self, *words: str) -> "subprocess.Popen[str]":
        settings = {name: value for name, value in os.environ.items() if not name.startswith(("FAKEFACE_", "MLFLOW_"))}
        settings |= {
            "FAKEFACE_CACHE": str(self.cache),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "PYTHONUNBUFFERED": "1",
        }
        program = [sys.executable, "-m", "fakeface_lab.baseline", "--data", str(self.images), "--image-size", "24"]
        return subprocess.Popen(
            [*program, "--epochs", str(EPOCHS), "--threads", "1", *words],
            cwd=self.project, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(self, *words: str) -> str:
        """Run the program to its end and return what it printed."""
        process = self.start(*words)
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        return output

    def kill_when(self, reached: Callable[[], bool], *words: str) -> None:
        """Run the program and kill it as soon as it got that far."""
        process = self.start(*words)
        while not reached():
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.kill()
        process.communicate()

    def store(self) -> Store:
        return open_store(f"sqlite:///{self.project}/mlflow.db", self.project, "faces")

    def runs(self) -> list[Run]:
        store = self.store()
        return list(store.client.search_runs([store.experiment_id]))

    def has_file(self, pattern: str) -> bool:
        return any((self.project / "mlruns").glob(pattern))


def figures(run: Run) -> dict[str, float]:
    """All metrics of a run but those of clock and memory."""
    measured = ("epoch_secs", "train_secs", "peak_rss_bytes")
    return {key: value for key, value in run.data.metrics.items() if key not in measured}


def curve(place: Place, run: Run, metric: str) -> list[tuple[int, float]]:
    points = place.store().client.get_metric_history(run.info.run_id, metric)
    return [(point.step, point.value) for point in points]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, str]:
    """One uninterrupted run, asked to continue where there is nothing to continue, and what it printed."""
    place = Place(tmp_path_factory.mktemp("finished"))
    return place, place.finish("--resume")


@pytest.fixture
def run(finished: tuple[Place, str]) -> Run:
    (only,) = finished[0].runs()
    return only


@pytest.fixture
def images(finished: tuple[Place, str], monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    place = finished[0]
    monkeypatch.setenv("FAKEFACE_CACHE", str(place.cache))
    return load_images(find_source(str(place.images), None, place.project, 24), 24)


def artifact(place: Place, run: Run, name: str) -> Path:
    return Path(place.store().client.download_artifacts(run.info.run_id, name))


def test_the_program_says_what_it_did_and_where_to_look(finished: tuple[Place, str], run: Run) -> None:
    place, output = finished
    assert "faces: 50 images (25 fake, 25 real), 24 px" in output
    assert "conv2d" in output
    assert f"epoch  {EPOCHS}/{EPOCHS}  loss {run.data.metrics['loss']:.4f}" in output
    assert f"accuracy  {run.data.metrics['test_accuracy']:.4f}"[:15] in output
    assert f"--backend-store-uri sqlite:///{place.project}/mlflow.db" in output
    assert run.info.run_id in output
    assert "(documented split, seed 0) have been opened once in this store. They also judge each epoch" in " ".join(
        output.split()
    )


def test_the_run_is_finished_and_has_everything(finished: tuple[Place, str], run: Run, images: ImageSet) -> None:
    place = finished[0]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "baseline s0 documented")
    assert (run.data.tags["test_opened_for"], run.data.tags["test_openings"]) == ('["each epoch"]', "1")
    assert {run.data.tags[key] for key in ("role", "split", "seed")} == {"baseline", "documented", "0"}
    assert run.data.tags["data_digest"] == images.digest
    found = {item.path for item in place.store().client.list_artifacts(run.info.run_id)}
    assert found >= ARTIFACTS
    assert {name: run.data.params[name] for name in ("filters_1", "learning_rate", "epochs", "num_threads")} == {
        "filters_1": "32", "learning_rate": "0.0001", "epochs": "3", "num_threads": "1",
    }  # fmt: skip
    assert run.data.metrics["hp.learning_rate"] == 1e-4
    assert [used.dataset.digest for used in run.inputs.dataset_inputs] == [images.digest[:32]]
    assert json.loads(artifact(place, run, "environment.json").read_text())["num_threads"] == 1
    assert "activation_3" in artifact(place, run, "layers.txt").read_text()


def test_curves_have_one_point_an_epoch_from_one(finished: tuple[Place, str], run: Run) -> None:
    for metric in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_secs"):
        points = curve(finished[0], run, metric)
        assert [step for step, _ in points] == [1, 2, 3], metric


def test_the_last_epoch_is_kept_as_documented(run: Run) -> None:
    metrics = run.data.metrics
    assert metrics["kept_epoch"] == EPOCHS
    assert metrics["test_accuracy"] == pytest.approx(metrics["val_accuracy"], abs=1e-6)
    assert metrics["documented_accuracy"] == pytest.approx(metrics["test_accuracy"])


def test_the_logged_model_scores_what_the_run_says(finished: tuple[Place, str], run: Run, images: ImageSet) -> None:
    place = finished[0]
    split = read_split(artifact(place, run, "split.csv"), images)
    batch = np.stack([np.asarray(Image.open(images.files[row].path)) for row in split.test]).astype(np.float64) / 255
    labels = images.labels[split.test]
    (output,) = run.outputs.model_outputs
    assert output.step == EPOCHS
    uri = f"models:/{output.model_id}"
    for predict in (mlflow.keras.load_model(uri).predict, mlflow.pyfunc.load_model(uri).predict):
        probabilities = np.asarray(predict(batch.astype(np.float32)))
        accuracy = float((probabilities.argmax(axis=1) == labels).mean())
        assert accuracy == run.data.metrics["test_accuracy"]
    with artifact(place, run, "scores.csv").open(newline="") as file:
        scores = list(csv.DictReader(file))
    assert [row["file"] for row in scores] == [images.files[row].name for row in split.test]
    np.testing.assert_allclose([float(row["probability_fake"]) for row in scores], probabilities[:, 0], atol=1e-6)
    logged = place.store().client.get_logged_model(output.model_id)
    at = {metric.key: (metric.step, metric.value) for metric in logged.metrics}
    assert at["test_accuracy"] == (EPOCHS, run.data.metrics["test_accuracy"])
    assert at["val_loss"] == (EPOCHS, run.data.metrics["val_loss"])


def test_nothing_is_left_but_the_run(finished: tuple[Place, str]) -> None:
    place = finished[0]
    assert not place.has_file(".work/*")
    assert {path.name for path in place.project.iterdir()} <= {"experiments", "mlruns", "mlflow.db", "mlflow.db.lock"}


def logged_weights(place: Place, run: Run) -> list[npt.NDArray[np.float32]]:
    place.store()  # where a model's address is looked up
    (output,) = run.outputs.model_outputs
    return list(mlflow.keras.load_model(f"models:/{output.model_id}").get_weights())


def assert_same_result(place: Place, expected_place: Place) -> None:
    (run,), (expected,) = place.runs(), expected_place.runs()
    assert run.info.status == "FINISHED"
    assert figures(run) == figures(expected)
    for metric in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert curve(place, run, metric) == curve(expected_place, expected, metric)
    store = place.store()
    models = store.client.search_logged_models([store.experiment_id])
    assert [model.status.value for model in models] == ["READY"]
    assert [output.model_id for output in run.outputs.model_outputs] == [models[0].model_id]
    assert (
        artifact(place, run, "scores.csv").read_bytes() == artifact(expected_place, expected, "scores.csv").read_bytes()
    )
    for one, other in zip(logged_weights(place, run), logged_weights(expected_place, expected), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not place.has_file(".work/*")


@pytest.mark.slow
def test_killed_in_training_and_while_recording_the_result_is_the_same(
    finished: tuple[Place, str], tmp_path: Path
) -> None:
    place = Place(tmp_path)
    place.kill_when(lambda: place.has_file(".work/*/epoch.ckpt"))
    assert [run.info.status for run in place.runs()] == ["RUNNING"], "nobody could say a word"
    place.kill_when(lambda: place.has_file(".work/*/outcome.json"), "--resume")
    output = place.finish("--resume")
    assert "epoch  1/3" not in output, "finished epochs are not trained again"
    assert_same_result(place, finished[0])
    assert place.runs()[0].data.tags["num_restarts"] == "2"
    assert "this run is finished" in place.finish("--resume")
    assert len(place.runs()) == 1


@pytest.mark.slow
def test_stopped_by_sigterm_the_run_is_killed(tmp_path: Path) -> None:
    place = Place(tmp_path)
    process = place.start()
    while not place.has_file(".work/*/epoch.ckpt"):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    (stopped,) = place.runs()
    assert (stopped.info.status, stopped.data.tags["status_reason"]) == ("KILLED", "stopped by SIGTERM")


@pytest.mark.slow
def test_ten_kills_at_random_moments(finished: tuple[Place, str], tmp_path: Path) -> None:
    rng = random.Random(0)
    num_kills, num_places = 0, 0
    while num_kills < 10:
        place = Place(tmp_path / str(num_places))
        num_places += 1
        while num_kills < 10:
            process = place.start("--resume")
            try:
                process.wait(rng.uniform(0.5, 8))
                break  # it came to its end between two kills: another one is begun
            except subprocess.TimeoutExpired:
                process.kill()
                num_kills += 1
                process.communicate()
        place.finish("--resume")
        assert_same_result(place, finished[0])
