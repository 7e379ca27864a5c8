"""Models in MLflow: packed into a folder, logged with signature, example and metrics, loaded again."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from fakeface_lab.backend import keras
from fakeface_lab.tracking.provenance import package_versions
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store

__all__ = ["MODEL_NAME", "log_model", "model_of_run", "package_model", "remove_half_logged"]

MODEL_NAME = "model"

_REQUIREMENTS = ("tensorflow", "keras", "mlflow", "numpy")


def package_model(
    model: keras.Model, folder: Path, example: npt.NDArray[np.float32], metadata: Mapping[str, Any]
) -> None:
    """Write `model` as an MLflow model folder: inference weights only, signature, one example, class names.

    Args:
        model: compiled or not; it is saved without its optimizer, at a third of the size.
        folder: made here; a half-written one from an earlier attempt is replaced.
        example: float32 (1, size, size, 3), one input batch of one picture.
        metadata: what a reader of the model must know (class names, image size, scale).
    """
    shutil.rmtree(folder, ignore_errors=True)
    # `mlflow.keras.save_model` writes the example before it makes the folder.
    folder.mkdir(parents=True)
    inference = keras.Sequential([keras.Input(model.input_shape[1:]), *model.layers], name=model.name)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (-1, *model.input_shape[1:]), "images")]),
        Schema([TensorSpec(np.dtype(np.float32), (-1, *model.output_shape[1:]))]),
    )
    versions = package_versions()
    mlflow.keras.save_model(
        inference,
        str(folder),
        signature=signature,
        # Three decimals: the example shows shape and range, and JSON holds it twice.
        input_example={"images": np.round(example, 3)},
        # Left to itself MLflow starts a process that loads TensorFlow and the model again to find these out.
        pip_requirements=[f"{name}=={versions[name]}" for name in _REQUIREMENTS],
        metadata=dict(metadata),
    )


def log_model(
    run: TrackedRun,
    folder: Path,
    *,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    step: int,
    timestamp_ms: int,
    dataset: tuple[str, str],
) -> str:
    """Log a packed model as the output of a run, with the metrics of the kept epoch, and return its model id.

    A model that an earlier, killed attempt left half-logged is removed first; one that is whole is kept as it is.
    """
    client = run.store.client
    whole = remove_half_logged(run)
    if whole is not None:
        return whole
    created = run.writer.call(
        lambda: client.create_logged_model(
            run.store.experiment_id,
            name=MODEL_NAME,
            source_run_id=run.run_id,
            params={key: str(value) for key, value in params.items()},
            model_type="image-classifier",
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
    run.writer.call(lambda: client.log_outputs(run.run_id, [LoggedModelOutput(created.model_id, step)]))
    run.writer.call(lambda: client.log_batch(run.run_id, metrics=entities))
    run.writer.call(lambda: client.finalize_logged_model(created.model_id, LoggedModelStatus.READY))
    return str(created.model_id)


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
        if model.artifact_location.startswith("file:"):
            shutil.rmtree(Path(model.artifact_location.removeprefix("file://")), ignore_errors=True)
        client.delete_logged_model(model.model_id)
    return whole


def model_of_run(store: Store, run_id: str) -> str | None:
    """Return the address (`models:/...`) of the model that a run logged, or None."""
    found = store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'")
    ready = [model for model in found if model.status == LoggedModelStatus.READY]
    return f"models:/{ready[0].model_id}" if ready else None
