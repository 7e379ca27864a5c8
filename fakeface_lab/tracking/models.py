"""Models in MLflow: packaged into a folder, logged, loaded, deleted.

Scikit-learn's are in a format that runs no code when it is read, where there is one.
"""

import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types import Schema, TensorSpec
from sklearn.base import BaseEstimator

from fakeface_lab.backend import keras
from fakeface_lab.files import replace_text, sync
from fakeface_lab.tracking.lookup import MODEL_NAME, load_keras_model, logged_models
from fakeface_lab.tracking.owner import package_versions
from fakeface_lab.tracking.runs import StoredRun, TrackedRun
from fakeface_lab.tracking.store import Store

__all__ = [
    "INPUT_PREFIX",
    "as_model_input",
    "delete_models",
    "fetch_model",
    "is_whole",
    "load_logged_model",
    "load_sklearn_model",
    "log_form",
    "log_model",
    "model_of_run",
    "package_model",
    "package_sklearn_model",
]

# Inputs that have no names are numbered.
INPUT_PREFIX = "input_"

# Smaller files are synced to disk before the run records that they are complete.
_SMALL_BYTES = 1 << 20

# MLflow writes the example twice, as JSON: 0.9 s for a picture of 300x300.
_MOST_VALUES = 20_000

_REQUIREMENTS = ("tensorflow", "keras", "mlflow", "numpy")


def package_model(
    model: keras.Model,
    folder: Path,
    example: npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | None,
    metadata: Mapping[str, Any],
) -> None:
    """Write `model` as an MLflow model folder: inference weights only, signature, one example unless large, metadata.

    Args:
        model: compiled or not; it is saved without its optimizer, at a third of the size. A model that is neither
            Sequential nor Functional loses its optimizer in place.
        folder: created here; a partial one from an earlier attempt is replaced.
        example: one input row with its batch dimension, e.g. float32 (1, size, size, 3); several inputs by name. If
            None, zeros are used, provided that the model knows its input shape.
        metadata: what users of the model must know (class names, image size, scale).
    """
    shutil.rmtree(folder, ignore_errors=True)
    # `mlflow.keras.save_model` writes the example before it makes the folder.
    folder.mkdir(parents=True)
    if example is None:
        example = _zeros(model)
    # `.keras` files ignore `include_optimizer`; Adam's moments would make 553 MB of the documented network's 184 MB.
    inference = _without_optimizer(model)
    versions = package_versions()
    save = partial(
        mlflow.keras.save_model,
        inference,
        str(folder),
        signature=None if example is None else _signature(model, example),
        input_example=_rounded(example) if sum(map(np.size, keras.tree.flatten(example))) <= _MOST_VALUES else None,
        # Otherwise MLflow infers them in a new process that loads TensorFlow and the model again.
        pip_requirements=[f"{name}=={versions[name]}" for name in _REQUIREMENTS],
        metadata=dict(metadata),
    )
    try:
        save()
    except NotImplementedError:  # a class without `get_config`: save its graph and weights instead
        shutil.rmtree(folder)
        folder.mkdir()
        save(save_exported_model=True)
        inference.save_weights(folder / "data" / "model.weights.h5")
    for path in folder.rglob("*"):
        # Weights have checksums (`is_whole`); syncing those of the documented network would take half a second.
        if path.is_file() and path.stat().st_size < _SMALL_BYTES:
            sync(path)


def is_whole(folder: Path) -> bool:
    """Return whether a packaged model can be read: a power failure may truncate a large file."""
    try:
        # Only these have checksums; the `.h5` weights of an exported model have none.
        archives = list(folder.rglob("*.keras"))
        return bool(Model.load(str(folder)).flavors) and all(
            zipfile.ZipFile(path).testzip() is None for path in archives
        )
    except Exception:  # a YAML parser, MLflow and zipfile raise many kinds on damaged bytes
        return False


def _without_optimizer(model: keras.Model) -> keras.Model:
    """Return an uncompiled model with the same layers."""
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
    """Return the signature, with the shapes of the model if it has them (dimensions may be open)."""
    names = list(example) if isinstance(example, Mapping) else None
    arrays = list(example.values()) if isinstance(example, Mapping) else [example]
    inputs = getattr(model, "inputs", None) or []
    # The order of a dictionary may differ from that of the model's inputs.
    shapes = [inputs[0].shape] if len(inputs) == len(arrays) == 1 else [array.shape for array in arrays]
    outputs = keras.tree.flatten(getattr(model, "outputs", None) or _outputs(model, example))
    # A single input stays unnamed: MLflow would wrap each batch into a dictionary, which a Sequential does not accept.
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
    """Return an example as the model accepts it: numbered inputs become a tuple."""
    if isinstance(example, Mapping):
        numbered = [f"{INPUT_PREFIX}{number}" for number in range(len(example))]
        return tuple(example.values()) if list(example) == numbered else dict(example)
    return example


def _schema(dtypes: list[np.dtype[Any]], shapes: list[Any], names: list[str] | None) -> Schema:
    open_shapes = [tuple(-1 if size is None else int(size) for size in (None, *shape[1:])) for shape in shapes]
    given: Sequence[str | None] = names or [None] * len(dtypes)
    return Schema([TensorSpec(*spec) for spec in zip(dtypes, open_shapes, given, strict=True)])


def _zeros_for(signature: ModelSignature) -> Any:
    """Return one row of zeros, with 1 for each open dimension: an array, or arrays by name."""
    rows = [np.zeros([abs(size) for size in spec.shape], spec.type) for spec in signature.inputs.inputs]
    names = signature.inputs.input_names()
    return dict(zip(names, rows, strict=True)) if signature.inputs.has_input_names() else rows[0]


def _rounded(example: Any) -> Any:
    """Return the example with three decimals: it only shows shape and range, and JSON stores it twice."""
    if isinstance(example, Mapping):
        return {name: _rounded(array) for name, array in example.items()}
    is_float = isinstance(example, np.ndarray) and example.dtype.kind == "f"
    # In float64: the float32 nearest to 0.123 is 0.12300000339746475 in JSON.
    return np.round(example.astype(np.float64), 3) if is_float else example


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
    """Log a packaged model as the output of a run, with the metrics of the kept epoch, and return its model id.

    Repeatable, as `log_form` is.
    """
    # At MLflow's default step 0 the model would show the figures of its first epoch.
    points = [
        Metric(key, value, timestamp_ms, step, None, dataset[0], dataset[1][:32]) for key, value in metrics.items()
    ]
    texts = {key: str(value) for key, value in params.items()}
    model_id = log_form(run, MODEL_NAME, lambda: folder, texts, points, model_type)
    run.writer.call(lambda: _link(run.store, run.run_id, model_id, step))
    return model_id


def log_form(
    run: StoredRun,
    name: str,
    package: Callable[[], Path],
    params: Mapping[str, str],
    points: Sequence[Metric],
    model_type: str,
) -> str:
    """Log a packaged model under a name, with parameters and metrics of its own, and return its model id.

    Repeatable: a complete model is left as it is, a partially logged one is completed. `package` returns the folder,
    and is called only if it is needed.
    """
    client, store = run.store.client, run.store

    def find_or_make() -> LoggedModel:
        # The store may have created the model although its answer was lost.
        if not logged_models(store, run.run_id, name=name):
            client.create_logged_model(
                store.experiment_id, name=name, source_run_id=run.run_id, params=dict(params), model_type=model_type
            )
        kept, *duplicates = logged_models(store, run.run_id, name=name)
        for duplicate in duplicates:
            _delete(store, duplicate)
        return kept

    model = run.writer.call(find_or_make)
    if model.status != LoggedModelStatus.READY:
        folder = package()
        description = Model.load(str(folder))
        description.run_id = run.run_id
        description.model_id = description.model_uuid = model.model_id
        description.artifact_path = model.artifact_location
        # Not in place: killed in between, an empty `MLmodel` failed a fully trained trial.
        replace_text(folder / "MLmodel", description.to_yaml())
        entities = [
            Metric(point.key, point.value, point.timestamp, point.step, model.model_id, point.dataset_name,
                   point.dataset_digest)
            for point in points
        ]  # fmt: skip
        # READY comes last: the files of a READY model are read by other programs.
        run.writer.call(lambda: client.log_model_artifacts(model.model_id, str(folder)))
        run.writer.call(lambda: client.log_batch(run.run_id, metrics=entities))
        run.writer.call(lambda: client.finalize_logged_model(model.model_id, LoggedModelStatus.READY))
    return str(model.model_id)


def delete_models(store: Store, run_id: str) -> None:
    """Delete all models that a run logged, with their files."""
    for model in logged_models(store, run_id):
        _delete(store, model)


def _delete(store: Store, model: LoggedModel) -> None:
    # Files first: without its record nothing would find them again.
    get_artifact_repository(model.artifact_location, store.uri).delete_artifacts()
    store.client.delete_logged_model(model.model_id)


def _link(store: Store, run_id: str, model_id: str, step: int) -> None:
    """Make the model an output of the run, unless it is one: MLflow would list it twice."""
    outputs = store.client.get_run(run_id).outputs
    if not any(output.model_id == model_id for output in outputs.model_outputs):
        store.client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])


def model_of_run(store: Store, run_id: str) -> str | None:
    """Return the address (`models:/...`) of the model that a run logged, or None."""
    ready = [model for model in logged_models(store, run_id) if model.status == LoggedModelStatus.READY]
    return f"models:/{ready[0].model_id}" if ready else None


def fetch_model(store: Store, run_id: str, folder: Path) -> tuple[Path, Any] | None:
    """Copy the model that a run logged to `folder`; return its weights file and an example of its input, or None.

    The example is zeros if the logged one was too large to be kept, and None if nothing is known. `load_weights` puts
    the weights into a model with the same layers, without the custom objects that loading the whole model may need.
    """
    address = model_of_run(store, run_id)
    if address is None:
        return None
    local = Path(mlflow.artifacts.download_artifacts(address, dst_path=str(folder)))
    weights = next(path for pattern in ("*.weights.h5", "*.keras") for path in local.glob(f"data/{pattern}"))
    description = Model.load(str(local))
    if description.saved_input_example_info:
        return weights, description.load_input_example(str(local))
    return weights, None if description.signature is None else _zeros_for(description.signature)


def load_logged_model(store: Store, run_id: str) -> keras.Model | None:
    """Return the Keras model that a run logged, as it was saved, or None.

    Raises:
        ModelError: its files are gone or damaged, or it has layers whose code is not known here.
    """
    address = model_of_run(store, run_id)
    return None if address is None else load_keras_model(address)


def package_sklearn_model(model: BaseEstimator, folder: Path, example: Any) -> None:
    """Write a fitted model as an MLflow model folder, with signature and one example.

    Args:
        model: fitted.
        folder: created here; a partial one from an earlier attempt is replaced.
        example: one row of its input.
    """
    versions = package_versions()
    common = {
        "signature": mlflow.models.infer_signature(example, model.predict(example)),
        "input_example": example,
        # Otherwise MLflow infers them in a new process.
        "pip_requirements": [f"{name}=={versions[name]}" for name in ("scikit-learn", "mlflow", "numpy")],
    }
    try:
        shutil.rmtree(folder, ignore_errors=True)
        # Pickle, the other format, runs code when it is read.
        mlflow.sklearn.save_model(
            model, str(folder), serialization_format="skops", skops_trusted_types=_own_types(model), **common
        )
    except MlflowException:  # a class that is not scikit-learn's
        shutil.rmtree(folder, ignore_errors=True)
        mlflow.sklearn.save_model(model, str(folder), serialization_format="cloudpickle", **common)


def _own_types(model: BaseEstimator) -> list[str]:
    """Return the types in a model that skops does not trust by itself, although they are scikit-learn's: its trees."""
    import skops.io  # two seconds, which searches of Keras models need not wait

    unknown = skops.io.get_untrusted_types(data=skops.io.dumps(model))
    return [name for name in unknown if name.startswith("sklearn.")]


def load_sklearn_model(store: Store, run_id: str) -> BaseEstimator | None:
    """Return the model that a run of the user's own search logged; None if there is none."""
    address = model_of_run(store, run_id)
    return None if address is None else mlflow.sklearn.load_model(address)
