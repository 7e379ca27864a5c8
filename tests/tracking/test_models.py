"""Logged models: whole, described, at the right step, and scoring what the trained model scores."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import numpy.typing as npt
import pytest
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException

from fakeface_lab.backend import keras
from fakeface_lab.detector.model import build_model, fixed_hyperparameters
from fakeface_lab.settings import Hyperparameters
from fakeface_lab.tracking.models import delete_models, fetch_model, is_whole, log_model, model_of_run, package_model
from fakeface_lab.tracking.registry import (
    RegisteredVersion,
    alias_version,
    create_registered_model,
    describe_version,
    get_version,
    register_version,
    set_alias,
)
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store, open_store
from fakeface_lab.tracking.writer import PatientWriter

SIZE_PX = 16
KEPT_EPOCH, ENDED_AT_MS = 3, 1_760_000_000_000
METRICS = {"val_loss": 0.125, "val_accuracy": 0.875}
DIGEST = "0123456789abcdef" * 4
METADATA = {"class_names": ["fake", "real"], "image_size_px": SIZE_PX}


@pytest.fixture(scope="module")
def model() -> keras.Model:
    values = Hyperparameters(filters_1=4, filters_2=6, dense_units=8)
    return build_model(fixed_hyperparameters(values, SIZE_PX, seed=0))


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).random((5, SIZE_PX, SIZE_PX, 3), dtype=np.float32)


@pytest.fixture
def packed(model: keras.Model, images: npt.NDArray[np.float32], tmp_path: Path) -> Path:
    package_model(model, tmp_path / "model", images[:1], METADATA)
    return tmp_path / "model"


@pytest.fixture
def run(store: Store, writer: PatientWriter) -> TrackedRun:
    return TrackedRun.create(store, writer, "baseline", {"role": "baseline"})


Log = Callable[[], str]


@pytest.fixture
def log(run: TrackedRun, packed: Path) -> Log:
    return lambda: log_model(
        run,
        packed,
        params={"filters_1": 4},
        metrics=METRICS,
        step=KEPT_EPOCH,
        timestamp_ms=ENDED_AT_MS,
        dataset=("faces", DIGEST),
    )


def outputs(run: TrackedRun) -> list[tuple[str, int]]:
    found = run.store.client.get_run(run.run_id).outputs.model_outputs
    return [(output.model_id, output.step) for output in found]


def test_the_packed_model_is_for_inference_only(packed: Path) -> None:
    assert not mlflow.keras.load_model(str(packed)).compiled
    with zipfile.ZipFile(packed / "data" / "model.keras") as archive:
        weights = archive.read("model.weights.h5")
    assert b"vars" in weights
    assert b"optimizer" not in weights, "its two moments would triple the file"
    requirements = (packed / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements] == ["tensorflow", "keras", "mlflow", "numpy"]


def test_packing_replaces_what_a_killed_attempt_left(
    model: keras.Model, images: npt.NDArray[np.float32], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "half").write_text("written")
    package_model(model, folder, images[:1], METADATA)
    assert not (folder / "half").exists()
    assert (folder / "MLmodel").exists()


def test_packing_leaves_the_model_as_it_was(model: keras.Model, packed: Path) -> None:
    assert [layer.name for layer in model.layers][:3] == ["conv2d", "activation", "max_pooling2d"]
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert model.layers[0].output.shape == (None, SIZE_PX, SIZE_PX, 4)


def test_a_logged_model_is_whole_and_described(run: TrackedRun, log: Log) -> None:
    model_id = log()
    logged = run.store.client.get_logged_model(model_id)
    assert logged.status.value == "READY"
    assert (logged.source_run_id, logged.model_type) == (run.run_id, "image-classifier")
    assert logged.params == {"filters_1": "4"}
    found = {(m.key, m.value, m.step, m.timestamp, m.dataset_name, m.dataset_digest) for m in logged.metrics}
    assert found == {(key, value, KEPT_EPOCH, ENDED_AT_MS, "faces", DIGEST[:32]) for key, value in METRICS.items()}
    assert outputs(run) == [(model_id, KEPT_EPOCH)]
    assert model_of_run(run.store, run.run_id) == f"models:/{model_id}"

    info = mlflow.models.get_model_info(f"models:/{model_id}")
    (entry,) = info.signature.inputs.inputs
    assert (entry.shape, entry.type) == ((-1, SIZE_PX, SIZE_PX, 3), np.dtype(np.float32))
    (answer,) = info.signature.outputs.inputs
    assert (answer.shape, answer.type) == ((-1, 2), np.dtype(np.float32))
    assert info.metadata == METADATA
    assert (info.run_id, info.model_id) == (run.run_id, model_id)


def test_it_scores_what_the_trained_model_scores(log: Log, model: keras.Model, images: npt.NDArray[np.float32]) -> None:
    uri = f"models:/{log()}"
    expected = model.predict(images, verbose=0)
    loaded = mlflow.keras.load_model(uri)
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), expected)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    np.testing.assert_array_equal(mlflow.pyfunc.load_model(uri).predict(images), expected)


def test_the_example_can_be_scored_as_it_is(packed: Path, images: npt.NDArray[np.float32]) -> None:
    loaded = mlflow.pyfunc.load_model(str(packed))
    example = loaded.input_example
    np.testing.assert_allclose(np.asarray(example), images[:1], atol=5e-4)
    assert loaded.predict(example).shape == (1, 2)
    served = json.loads((packed / "serving_input_example.json").read_text())
    assert np.asarray(served["inputs"]).shape == (1, SIZE_PX, SIZE_PX, 3)
    assert {len(str(value)) <= len("0.123") for value in np.ravel(served["inputs"])} == {True}


def test_a_large_example_is_not_kept_and_zeros_take_its_place(run: TrackedRun, tmp_path: Path) -> None:
    inputs = {"wide": keras.Input((150, 150), name="wide"), "one": keras.Input((1,), name="one")}
    flat = keras.layers.Flatten()(inputs["wide"])
    whole = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()([flat, inputs["one"]])))
    example = {"wide": np.ones((1, 150, 150), np.float32), "one": np.ones((1, 1), np.float32)}
    package_model(whole, run.folder / "model", example, METADATA)
    assert not list((run.folder / "model").rglob("*input_example*"))
    log_model(run, run.folder / "model", params={}, metrics={}, step=1, timestamp_ms=1, dataset=("faces", DIGEST))
    fetched = fetch_model(run.store, run.run_id, tmp_path)
    assert fetched is not None
    assert {name: (array.shape, array.dtype, array.any()) for name, array in fetched[1].items()} == {
        "wide": ((1, 150, 150), np.float32, False),
        "one": ((1, 1), np.float32, False),
    }


def test_a_large_example_of_a_model_with_open_dimensions_is_replaced_too(run: TrackedRun, tmp_path: Path) -> None:
    layers = [keras.layers.Conv2D(2, 3), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((None, None, 3)), *layers])
    package_model(model, run.folder / "model", np.ones((1, 100, 100, 3), np.float32), METADATA)
    log_model(run, run.folder / "model", params={}, metrics={}, step=1, timestamp_ms=1, dataset=("faces", DIGEST))
    fetched = fetch_model(run.store, run.run_id, tmp_path)
    assert fetched is not None
    assert fetched[1].shape == (1, 1, 1, 3)


def test_other_shapes_and_dtypes_are_refused(packed: Path, images: npt.NDArray[np.float32]) -> None:
    loaded = mlflow.pyfunc.load_model(str(packed))
    for wrong in ((255 * images).astype(np.uint8), images[:, :8]):
        with pytest.raises(MlflowException):
            loaded.predict(wrong)


def test_logged_again_it_stays_one_model_and_one_output(run: TrackedRun, log: Log) -> None:
    model_id = log()
    assert log() == model_id
    assert outputs(run) == [(model_id, KEPT_EPOCH)]
    assert len(run.store.client.search_logged_models([run.store.experiment_id])) == 1


def test_killed_before_the_link_to_the_run_the_link_is_made_later(run: TrackedRun, log: Log) -> None:
    client = run.store.client
    whole = client.create_logged_model(run.store.experiment_id, name="model", source_run_id=run.run_id)
    client.finalize_logged_model(whole.model_id, LoggedModelStatus.READY)
    assert outputs(run) == []
    assert log() == whole.model_id
    assert outputs(run) == [(whole.model_id, KEPT_EPOCH)]


def test_a_half_logged_model_is_completed(run: TrackedRun, log: Log, packed: Path) -> None:
    client = run.store.client
    half = client.create_logged_model(run.store.experiment_id, name="model", source_run_id=run.run_id)
    client.log_model_artifacts(half.model_id, str(packed / "data"))
    assert model_of_run(run.store, run.run_id) is None, "it is not there before it is whole"
    assert log() == half.model_id
    found = client.search_logged_models([run.store.experiment_id], f"source_run_id = '{run.run_id}'")
    assert [(model.model_id, model.status) for model in found] == [(half.model_id, LoggedModelStatus.READY)]
    assert mlflow.keras.load_model(f"models:/{half.model_id}").count_params() > 0
    assert outputs(run) == [(half.model_id, KEPT_EPOCH)]


def test_of_models_that_a_lost_answer_doubled_one_is_left_with_its_files(run: TrackedRun, log: Log) -> None:
    client = run.store.client
    duplicates = [
        client.create_logged_model(run.store.experiment_id, name="model", source_run_id=run.run_id) for _ in range(2)
    ]
    client.finalize_logged_model(duplicates[1].model_id, LoggedModelStatus.READY)
    assert log() == duplicates[1].model_id
    found = client.search_logged_models([run.store.experiment_id], f"source_run_id = '{run.run_id}'")
    assert [model.model_id for model in found] == [duplicates[1].model_id]


@pytest.mark.parametrize("name", ["MLmodel", "data/model.keras"])
def test_a_damaged_package_is_noticed(packed: Path, name: str) -> None:
    assert is_whole(packed)
    path = packed / name
    content = path.read_bytes()
    middle = len(content) // 2
    torn = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    for damaged in [b""] if name == "MLmodel" else [b"", torn]:
        path.write_bytes(damaged)
        assert not is_whole(packed)
    path.write_bytes(content)
    assert is_whole(packed)


def test_a_model_is_deleted_from_a_folder_with_a_space(
    tmp_path: Path, empty_project: Path, writer: PatientWriter
) -> None:
    project = tmp_path / "my faces é"
    project.mkdir()
    shutil.copy(empty_project / "mlflow.db", project / "mlflow.db")
    store = open_store(None, project, "faces")
    run = TrackedRun.create(store, writer, "baseline", {})
    half = store.client.create_logged_model(store.experiment_id, name="model", source_run_id=run.run_id)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "weights").write_text("half")
    store.client.log_model_artifacts(half.model_id, str(tmp_path / "files"))
    assert list(project.rglob("weights"))
    delete_models(store, run.run_id)
    assert not list(project.rglob("weights"))


def test_a_run_without_a_model_has_none(run: TrackedRun) -> None:
    assert model_of_run(run.store, run.run_id) is None


def test_a_model_is_registered_once_and_found_by_its_alias(run: TrackedRun, log: Log) -> None:
    store, name = run.store, f"faces {run.run_id}"
    create_registered_model(store, name)
    assert register_version(run, name) is None, "it has no model yet"
    log()
    for _ in range(2):  # repeated after a kill
        create_registered_model(store, name)
        assert register_version(run, name) == 1
        describe_version(store, name, 1, {"test_accuracy": "0.9"}, "the first")
    assert get_version(store, name, 1) == RegisteredVersion(1, run.run_id, {"test_accuracy": "0.9"})
    assert store.client.get_model_version(name, "1").description == "the first"
    assert alias_version(store, name, "champion") is None
    set_alias(store, name, "champion", 1)
    assert alias_version(store, name, "champion") == 1
