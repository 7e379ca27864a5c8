"""The demo set: reproducible bytes, complete or absent, classes separable only by the traces in the face."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion
from scipy.stats import pearsonr
from sklearn.metrics import roc_auc_score

from fakeface_lab.data.demo import MIN_NUM_PER_CLASS, draw_face, face_oval, generate_demo
from fakeface_lab.data.properties import file_properties, pixel_properties
from fakeface_lab.detector.fit import evaluation_batches, training_batches
from fakeface_lab.detector.model import build_model, fixed_hyperparameters
from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.audit.audit import AuditSettings
from fakeface_lab.evaluation.audit.probes import run_probes, stratified_folds
from fakeface_lab.settings import Hyperparameters

ALARM_AUC = AuditSettings().warn_auc  # the demo set must not raise an alarm in the audit
GENERATE = "import sys, pathlib, fakeface_lab.data.demo as d; d.generate_demo(pathlib.Path(sys.argv[1]), {})"


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.jpg")}


def load(root: Path) -> tuple[NDArray[np.uint8], list[Path], NDArray[np.bool_]]:
    """Pixels, files and which are fake, of a whole set."""
    paths = sorted(root.glob("*/*.jpg"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    return pixels, paths, np.array([path.parent.name == "fake" for path in paths])


def probe_aucs(root: Path) -> dict[str, float]:
    """Area under the curve of each shortcut probe that the audit runs, on held-out faces."""
    pixels, paths, is_fake = load(root)
    properties = pd.concat([file_properties(paths), pixel_properties(pixels)], axis=1)
    labels = np.where(is_fake, 0, 1)
    folds = stratified_folds(labels, np.arange(len(labels)))
    return {r.name: r.auc for r in run_probes(pixels, properties, labels, folds) if r.kind == "shortcut"}


def grid_strength(picture: NDArray[np.uint8]) -> float:
    """Share of the finest row and column frequencies in the middle of the face: a plain forensic detector."""
    size = len(picture)
    gray = picture.mean(axis=2)[3 * size // 8 : 5 * size // 8, 3 * size // 8 : 5 * size // 8]
    power = np.abs(np.fft.fft2(gray - gray.mean())) ** 2
    half = len(gray) // 2
    return float((power[half, 0] + power[0, half]) / power.sum())


@pytest.fixture(scope="module")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_demo(tmp_path_factory.mktemp("demo") / "faces")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size_px=st.integers(32, 130), fake=st.booleans())
def test_a_seed_always_gives_the_same_face_of_the_asked_size(seed: int, size_px: int, fake: bool) -> None:
    face = draw_face(seed, size_px, fake)
    assert face.shape == (size_px, size_px, 3)
    assert face.dtype == np.uint8
    np.testing.assert_array_equal(face, draw_face(seed, size_px, fake))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size_px=st.integers(32, 130))
def test_a_fake_differs_inside_the_face_oval_and_nowhere_else(seed: int, size_px: int) -> None:
    differs = (draw_face(seed, size_px, True) != draw_face(seed, size_px, False)).any(axis=2)
    oval = face_oval(seed, size_px)
    assert not differs[~oval].any()
    assert differs[binary_erosion(oval, iterations=2)].mean() > 0.5  # the hair over the forehead stays
    assert 0.1 < oval.mean() < 0.6  # a face, neither a speck nor the whole picture
    edge = size_px // 10
    for corner in (oval[:edge, :edge], oval[:edge, -edge:], oval[-edge:, :edge], oval[-edge:, -edge:]):
        assert not corner.any()


def test_faces_look_like_faces() -> None:
    """The mean of many faces has dark eyes above brighter cheeks and is symmetric."""
    mean = np.mean([draw_face(seed, 64, False).mean(axis=2) for seed in range(200)], axis=0)
    eyes, cheeks = mean[27:31], mean[37:41]
    for columns in (slice(22, 28), slice(36, 42)):
        assert eyes[:, columns].mean() < cheeks[:, columns].mean() - 3
    assert pearsonr(mean[20:50, 16:32].ravel(), mean[20:50, 32:48][:, ::-1].ravel()).statistic > 0.9


def test_eyes_match_in_a_real_face_and_not_in_a_fake() -> None:
    """The irises' colours, cut out left and right of upright faces, differ more in the fakes."""

    def mismatch(seed: int, fake: bool) -> float:
        picture = draw_face(seed, 256, fake).astype(np.float64)
        columns = np.flatnonzero(face_oval(seed, 256).any(axis=0))
        middle = (columns[0] + columns[-1]) // 2
        halves = picture[90:150, columns[0] : middle], picture[90:150, middle : columns[-1]]
        color = [half[..., 2] - half[..., 0] for half in halves]  # blue against brown
        return float(abs(np.percentile(color[0], 99) - np.percentile(color[1], 99)))

    real, fake = (np.mean([mismatch(seed, is_fake) for seed in range(30)]) for is_fake in (False, True))
    assert fake > 1.5 * real


def test_the_set_has_both_classes_numbered_from_one(demo_root: Path) -> None:
    for name in ("fake", "real"):
        names = {path.name for path in (demo_root / name).iterdir()}
        assert names == {f"{name}_{number}.jpg" for number in range(1, 301)}
    first_real = Image.open(demo_root / "real" / "real_1.jpg")
    first_fake = Image.open(demo_root / "fake" / "fake_1.jpg")
    assert first_real.size == first_fake.size == (64, 64)
    assert first_real.quantization == first_fake.quantization  # type: ignore[attr-defined]
    assert len(set(contents(demo_root).values())) == 600


def test_the_same_settings_give_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    one = contents(generate_demo(tmp_path / "one", 5, 32, seed=3))
    assert one == contents(generate_demo(tmp_path / "two", 5, 32, seed=3))
    other = contents(generate_demo(tmp_path / "three", 5, 32, seed=4))
    assert not set(one.values()) & set(other.values())


def test_a_second_call_draws_nothing(tmp_path: Path) -> None:
    root = generate_demo(tmp_path / "faces", 5, 32)
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    assert generate_demo(root, 5, 32) == root
    assert before == {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


def test_a_killed_call_leaves_no_half_set_and_the_next_one_completes_it(tmp_path: Path) -> None:
    root, partial = tmp_path / "faces", tmp_path / ".faces.partial"
    with subprocess.Popen([sys.executable, "-c", GENERATE.format("400, 64"), str(root)]) as process:
        deadline = time.monotonic() + 60
        while len(list(partial.glob("fake/*.jpg"))) < 20:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert partial.exists()  # it was killed while drawing
    assert not root.exists()
    generate_demo(root, 6, 32)
    assert contents(root) == contents(generate_demo(tmp_path / "undisturbed", 6, 32))
    assert not partial.exists()


def test_processes_at_once_share_one_set(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GENERATE.format("40, 32"), str(tmp_path / "faces")]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(contents(tmp_path / "faces")) == 80
    assert not (tmp_path / ".faces.partial").exists()


def test_threads_at_once_share_one_set(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        roots = list(pool.map(lambda _: generate_demo(tmp_path / "faces", 5, 32), range(4)))
    assert len(contents(roots[0])) == 10


def test_no_shortcut_separates_the_classes(demo_root: Path) -> None:
    aucs = probe_aucs(demo_root)
    assert set(aucs) == {"thumbnail", "border", "corners", "histogram", "colour", "file"}
    assert max(aucs.values()) < ALARM_AUC, aucs


def test_the_probes_would_see_a_shortcut(tmp_path: Path) -> None:
    """Control of the probes: brighter fakes do not pass."""
    root = generate_demo(tmp_path / "faces", 60)
    for path in root.glob("fake/*.jpg"):
        Image.open(path).point(lambda level: level + 40).save(path, quality=95, subsampling=0)
    aucs = probe_aucs(root)
    assert min(aucs["thumbnail"], aucs["border"], aucs["histogram"], aucs["colour"]) > ALARM_AUC, aucs


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_no_shortcut_in_any_of_twenty_sets(tmp_path: Path, seed: int) -> None:
    aucs = probe_aucs(generate_demo(tmp_path / "faces", seed=seed))
    assert max(aucs.values()) < ALARM_AUC, aucs


@pytest.mark.slow
def test_the_documented_network_learns_the_traces_gradually(demo_root: Path) -> None:
    """Bounds read off ten epochs of training with the documented hyperparameters; 0.5 is chance."""
    pixels, _, is_fake = load(demo_root)
    labels = np.where(is_fake, 0, 1)
    order = np.random.default_rng(0).permutation(len(labels))
    train_rows, validation_rows = np.split(order, [int(0.8 * len(order))])
    accuracies = []
    for seed in (0, 1, 2):
        history = build_model(fixed_hyperparameters(Hyperparameters(), 64, seed)).fit(
            training_batches(pixels, labels, train_rows, batch_size=32, seed=seed, epochs=10),
            steps_per_epoch=-(-len(train_rows) // 32),
            validation_data=evaluation_batches(pixels, labels, validation_rows),
            epochs=10,
            verbose=0,
        )
        accuracies.append(history.history["val_accuracy"])
    assert max(accuracy[0] for accuracy in accuracies) < 0.9
    assert 0.8 < np.mean([accuracy[-1] for accuracy in accuracies]) < 0.99


def test_a_forensic_detector_finds_the_traces_through_the_jpeg(demo_root: Path) -> None:
    pixels, _, is_fake = load(demo_root)
    assert roc_auc_score(is_fake, [grid_strength(picture) for picture in pixels]) > 0.9


@pytest.mark.parametrize("size_px", [31, 0, -4])
def test_the_error_about_a_small_size_says_what_is_allowed(tmp_path: Path, size_px: int) -> None:
    message = rf"^demo: size_px is {size_px}; expected 32 or more, ask for a larger size$"
    with pytest.raises(DataError, match=message):
        draw_face(0, size_px, fake=False)
    with pytest.raises(DataError, match=message):
        generate_demo(tmp_path / "faces", 5, size_px)
    assert not list(tmp_path.iterdir())


def test_the_error_about_too_few_faces_says_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^demo: num_per_class is 4; expected 5 or more, ask for more faces$"):
        generate_demo(tmp_path / "faces", MIN_NUM_PER_CLASS - 1)


def test_a_folder_with_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(DataError, match=r"exists and is not the demo set with .*; delete it or choose another"):
        generate_demo(tmp_path, 5, 32)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_set_of_other_settings_is_refused(tmp_path: Path) -> None:
    root = generate_demo(tmp_path / "faces", 5, 32)
    with pytest.raises(DataError, match=r"is not the demo set with .*'num_per_class': 6"):
        generate_demo(root, 6, 32)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/faces cannot be written \(.*\); choose a folder that can be$"):
        generate_demo(tmp_path / "file" / "faces", 5, 32)
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208
