"""Models in MLflow: packed into a folder, logged with signature, example and metrics, loaded again."""

import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import Schema, TensorSpec

from fakeface_lab.backend import keras
from fakeface_lab.files import sync
from fakeface_lab.tracking.provenance import package_versions
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store

__all__ = [
    "INPUT_PREFIX",
    "MODEL_NAME",
    "as_model_input",
    "delete_models",
    "fetch_model",
    "is_whole",
    "log_model",
    "model_of_run",
    "package_model",
]

MODEL_NAME = "model"

# Several inputs without names of their own are called by their number.
INPUT_PREFIX = "input_"

# Below it a file is on the disk before its run says that it is whole.
_SMALL_BYTES = 1 << 20

_REQUIREMENTS = ("tensorflow", "keras", "mlflow", "numpy")


def package_model(
    model: keras.Model,
    folder: Path,
    example: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None,
    metadata: Mapping[str, Any],
) -> None:
    """Write `model` as an MLflow model folder: inference weights only, signature, one example, metadata.

    Args:
        model: compiled or not; it is saved without its optimizer, at a third of the size. One that is neither
            Sequential nor Functional loses its optimizer here.
        folder: made here; a half-written one from an earlier attempt is replaced.
        example: one row of the input with its batch dimension, e.g. float32 (1, size, size, 3); several inputs by
            name; None where the input is not known, zeros are taken if the model says what it takes.
        metadata: what a reader of the model must know (class names, image size, scale).
    """
    shutil.rmtree(folder, ignore_errors=True)
    # `mlflow.keras.save_model` writes the example before it makes the folder.
    folder.mkdir(parents=True)
    if example is None:
        example = _zeros(model)
    inference = _without_optimizer(model)
    versions = package_versions()
    save = partial(
        mlflow.keras.save_model,
        inference,
        str(folder),
        signature=None if example is None else _signature(model, example),
        input_example=_rounded(example),
        # Left to itself MLflow starts a process that loads TensorFlow and the model again to find these out.
        pip_requirements=[f"{name}=={versions[name]}" for name in _REQUIREMENTS],
        metadata=dict(metadata),
    )
    try:
        save()
    except NotImplementedError:  # a class that cannot say how it was made: what it computes, and its weights
        shutil.rmtree(folder)
        folder.mkdir()
        save(save_exported_model=True)
        inference.save_weights(folder / "data" / "model.weights.h5")
    for path in folder.rglob("*"):
        # Weights have checksums (`is_whole`); of this network they would take half a second.
        if path.is_file() and path.stat().st_size < _SMALL_BYTES:
            sync(path)


def is_whole(folder: Path) -> bool:
    """Return whether a packed model can be read: after a power failure a large file may be torn."""
    try:
        archives = list(folder.rglob("*.keras"))
        return bool(Model.load(str(folder)).flavors) and all(
            zipfile.ZipFile(path).testzip() is None for path in archives
        )
    except Exception:  # whatever a YAML parser, MLflow or zipfile make of damaged bytes
        return False


def _without_optimizer(model: keras.Model) -> keras.Model:
    """Return a model of the same layers that was never compiled."""
    if isinstance(model, keras.Sequential) and model.inputs:
        given = keras.Input(model.input_shape[1:], dtype=model.inputs[0].dtype)
        return keras.Sequential([given, *model.layers], name=model.name)
    if getattr(model, "inputs", None):
        return keras.Model(model.inputs, model.outputs, name=model.name)
    model.optimizer, model.compiled = None, False
    return model


def _zeros(model: keras.Model) -> npt.NDArray[Any] | dict[str, npt.NDArray[Any]] | None:
    inputs = getattr(model, "inputs", None) or []
    arrays = {given.name: np.zeros([size or 1 for size in given.shape], given.dtype) for given in inputs}
    return next(iter(arrays.values())) if len(arrays) == 1 else arrays or None


def _signature(model: keras.Model, example: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]) -> ModelSignature:
    """Return what the model takes and gives; shapes from the model where it has them (a size may be open)."""
    names = list(example) if isinstance(example, Mapping) else None
    arrays = list(example.values()) if isinstance(example, Mapping) else [example]
    inputs = getattr(model, "inputs", None) or []
    # A dictionary's order need not be that of the model's inputs.
    shapes = [inputs[0].shape] if len(inputs) == len(arrays) == 1 else [array.shape for array in arrays]
    outputs = keras.tree.flatten(getattr(model, "outputs", None) or _outputs(model, example))
    # Without a name for a single one: MLflow would wrap each batch into a dictionary that a Sequential does not take.
    return ModelSignature(
        _schema([array.dtype for array in arrays], shapes, names),
        _schema(
            [np.dtype(str(output.dtype)) for output in outputs],
            [output.shape for output in outputs],
            [f"output_{number}" for number in range(len(outputs))] if len(outputs) > 1 else None,
        ),
    )


def _outputs(model: keras.Model, example: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]) -> Any:
    batch = as_model_input(example)
    return keras.tree.map_structure(np.asarray, model(batch, training=False))


def as_model_input(example: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]) -> Any:
    """Return an example as the model takes it: inputs that were given names by number only are a tuple."""
    if isinstance(example, Mapping):
        numbered = [f"{INPUT_PREFIX}{number}" for number in range(len(example))]
        return tuple(example.values()) if list(example) == numbered else dict(example)
    return example


def _schema(dtypes: list[np.dtype[Any]], shapes: list[Any], names: list[str] | None) -> Schema:
    open_shapes = [tuple(-1 if size is None else int(size) for size in (None, *shape[1:])) for shape in shapes]
    given: Sequence[str | None] = names or [None] * len(dtypes)
    return Schema([TensorSpec(*spec) for spec in zip(dtypes, open_shapes, given, strict=True)])


def _rounded(example: Any) -> Any:
    """Return the example with three decimals: it shows shape and range, and JSON holds it twice."""
    if isinstance(example, Mapping):
        return {name: _rounded(array) for name, array in example.items()}
    return np.round(example, 3) if isinstance(example, np.ndarray) and example.dtype.kind == "f" else example


def log_model(
    run: TrackedRun,
    folder: Path,
    *,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    step: int,
    timestamp_ms: int,
    dataset: tuple[str, str],
    model_type: str = "image-classifier",
) -> str:
    """Log a packed model as the output of a run, with the metrics of the kept epoch, and return its model id.

    Repeatable: one that is whole is kept as it is, one that an earlier attempt left half-logged is completed.
    """
    client, store = run.store.client, run.store

    def find_or_make() -> LoggedModel:
        # The store may have made the model and its answer been lost.
        if not _models_of(store, run.run_id):
            client.create_logged_model(
                store.experiment_id,
                name=MODEL_NAME,
                source_run_id=run.run_id,
                params={key: str(value) for key, value in params.items()},
                model_type=model_type,
            )
        kept, *twins = _models_of(store, run.run_id)
        for twin in twins:
            _delete(store, twin)
        return kept

    model = run.writer.call(find_or_make)
    if model.status != LoggedModelStatus.READY:
        description = Model.load(str(folder))
        description.run_id = run.run_id
        description.model_id = description.model_uuid = model.model_id
        description.artifact_path = model.artifact_location
        description.save(str(folder / "MLmodel.partial"))
        os.replace(folder / "MLmodel.partial", folder / "MLmodel")
        entities = [
            Metric(key, value, timestamp_ms, step, model.model_id, dataset[0], dataset[1][:32])
            for key, value in metrics.items()
        ]
        run.writer.call(lambda: client.log_model_artifacts(model.model_id, str(folder)))
        run.writer.call(lambda: client.log_batch(run.run_id, metrics=entities))
        run.writer.call(lambda: client.finalize_logged_model(model.model_id, LoggedModelStatus.READY))
    run.writer.call(lambda: _link(store, run.run_id, model.model_id, step))
    return str(model.model_id)


def _models_of(store: Store, run_id: str) -> list[LoggedModel]:
    """Return the models of a run, whole ones first, then the oldest."""
    found = store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'")
    return sorted(found, key=lambda model: (model.status != LoggedModelStatus.READY, model.creation_timestamp))


def delete_models(store: Store, run_id: str) -> None:
    """Delete all models that a run logged, with their files."""
    for model in _models_of(store, run_id):
        _delete(store, model)


def _delete(store: Store, model: LoggedModel) -> None:
    get_artifact_repository(model.artifact_location, store.uri).delete_artifacts()
    store.client.delete_logged_model(model.model_id)


def _link(store: Store, run_id: str, model_id: str, step: int) -> None:
    """Make the model an output of the run, once: MLflow would list it twice."""
    outputs = store.client.get_run(run_id).outputs
    if not any(output.model_id == model_id for output in outputs.model_outputs):
        store.client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])


def model_of_run(store: Store, run_id: str) -> str | None:
    """Return the address (`models:/...`) of the model that a run logged, or None."""
    ready = [model for model in _models_of(store, run_id) if model.status == LoggedModelStatus.READY]
    return f"models:/{ready[0].model_id}" if ready else None


def fetch_model(store: Store, run_id: str, folder: Path) -> tuple[Path, Any] | None:
    """Copy the model that a run logged to `folder`; return its weights file and its input example, or None.

    The weights go into a model of the same layers by `load_weights`, without the custom objects that
    loading the whole model may ask for.
    """
    address = model_of_run(store, run_id)
    if address is None:
        return None
    local = Path(mlflow.artifacts.download_artifacts(address, dst_path=str(folder)))
    weights = next(path for pattern in ("*.weights.h5", "*.keras") for path in local.glob(f"data/{pattern}"))
    description = Model.load(str(local))
    example = description.load_input_example(str(local)) if description.saved_input_example_info else None
    return weights, example
