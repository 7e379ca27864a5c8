"""Models in MLflow: packed into a folder, logged with signature, example and metrics, loaded again."""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import Schema, TensorSpec

from fakeface_lab.backend import keras
from fakeface_lab.tracking.provenance import package_versions
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store

__all__ = [
    "INPUT_PREFIX",
    "MODEL_NAME",
    "as_model_input",
    "fetch_model",
    "log_model",
    "model_of_run",
    "package_model",
    "remove_half_logged",
]

MODEL_NAME = "model"

# Several inputs without names of their own are called by their number.
INPUT_PREFIX = "input_"

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

    A model that an earlier, killed attempt left half-logged is removed first; one that is whole is kept as it is.
    """
    client = run.store.client
    whole = remove_half_logged(run)
    if whole is not None:
        _link(run, whole, step)
        return whole
    created = run.writer.call(
        lambda: client.create_logged_model(
            run.store.experiment_id,
            name=MODEL_NAME,
            source_run_id=run.run_id,
            params={key: str(value) for key, value in params.items()},
            model_type=model_type,
        )
    )
    description = Model.load(str(folder))
    description.run_id = run.run_id
    description.model_id = description.model_uuid = created.model_id
    description.artifact_path = created.artifact_location
    description.save(str(folder / "MLmodel"))
    entities = [
        Metric(key, value, timestamp_ms, step, created.model_id, dataset[0], dataset[1][:32])
        for key, value in metrics.items()
    ]
    run.writer.call(lambda: client.log_model_artifacts(created.model_id, str(folder)))
    run.writer.call(lambda: client.log_batch(run.run_id, metrics=entities))
    run.writer.call(lambda: client.finalize_logged_model(created.model_id, LoggedModelStatus.READY))
    _link(run, created.model_id, step)
    return str(created.model_id)


def _link(run: TrackedRun, model_id: str, step: int) -> None:
    """Make the model an output of the run, once: MLflow would list it twice."""
    client = run.store.client
    outputs = run.writer.call(lambda: client.get_run(run.run_id)).outputs
    if not any(output.model_id == model_id for output in outputs.model_outputs):
        run.writer.call(lambda: client.log_outputs(run.run_id, [LoggedModelOutput(model_id, step)]))


def remove_half_logged(run: TrackedRun) -> str | None:
    """Delete models of this run whose logging was cut off; return the id of a whole one, or None."""
    client = run.store.client
    found = run.writer.call(
        lambda: client.search_logged_models([run.store.experiment_id], f"source_run_id = '{run.run_id}'")
    )
    whole = None
    for model in found:
        if model.status == LoggedModelStatus.READY:
            whole = str(model.model_id)
            continue
        files = get_artifact_repository(model.artifact_location, run.store.uri)
        run.writer.call(files.delete_artifacts)
        run.writer.call(partial(client.delete_logged_model, model.model_id))
    return whole


def model_of_run(store: Store, run_id: str) -> str | None:
    """Return the address (`models:/...`) of the model that a run logged, or None."""
    found = store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'")
    ready = [model for model in found if model.status == LoggedModelStatus.READY]
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
