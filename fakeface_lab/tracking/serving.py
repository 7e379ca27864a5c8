"""The served form of a tracked model: what MLflow's scoring server loads, from packaging to the answer.

It holds code and the address of the Keras model that a run has logged, so the network's file is stored once. The code
is that of this package when the form was made: later changes to the preprocessing do not change its answers.
"""

import json
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array, Map, Object, Property

from fakeface_lab.config import find_project
from fakeface_lab.errors import DataError
from fakeface_lab.tracking.lookup import NETWORK_KEY, FoundModel, find_model, open_for_reading
from fakeface_lab.tracking.models import log_form, model_of_run
from fakeface_lab.tracking.runs import StoredRun

__all__ = ["SERVED_NAME", "Answer", "BadRequestError", "ServedModel", "log_served_form", "serve"]

SERVED_NAME = "served"

_PACKAGE = Path(__file__).parents[1]
# By its path, because it is run in the process of MLflow's server, on top of everything else in the package.
_CODE = _PACKAGE / "assess" / "served_model.py"

# What that code imports.
_REQUIREMENTS = (
    "cloudpickle", "filelock", "ImageHash", "joblib", "keras", "keras-tuner", "matplotlib", "mlflow", "numpy",
    "packaging", "pandas", "pillow", "psutil", "pydantic", "pydantic-settings", "rich", "scikit-learn", "scipy",
    "tensorflow", "threadpoolctl",
)  # fmt: skip

_GRAY_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
_EXAMPLE = pd.DataFrame({"image": [_GRAY_PIXEL], "file": ["gray.png"]})
_DECISION = Object(
    [
        Property("file", DataType.string),
        Property("decided", DataType.string),
        Property("probability", DataType.double),
        Property("probabilities", Map(DataType.double)),
    ]
)
_SIGNATURE = ModelSignature(
    Schema([ColSpec(DataType.string, "image"), ColSpec(DataType.string, "file", required=False)]),
    Schema(
        [
            ColSpec(DataType.string, "model"),
            ColSpec(DataType.string, "run_id"),
            ColSpec(DataType.double, "threshold"),
            ColSpec(Array(DataType.string), "warnings"),
            ColSpec(Array(_DECISION), "decisions"),
        ]
    ),
)

Answer = Callable[[pd.DataFrame], dict[str, Any]]
"""Takes the rows of a request and returns the answer to it; a DataError says what is wrong with the request."""


def log_served_form(run: StoredRun) -> str | None:
    """Log the served form of the model that a run has logged, once, and return its address (`models:/...`).

    None if the run's model is no longer in the store.
    """
    network_uri = model_of_run(run.store, run.run_id)
    if network_uri is None:
        return None
    trained = run.store.client.get_logged_model(network_uri.removeprefix("models:/"))
    with tempfile.TemporaryDirectory() as folder:
        model_id = log_form(
            run,
            SERVED_NAME,
            lambda: _package(network_uri, Path(folder) / "model"),
            trained.params,
            trained.metrics or [],
            trained.model_type,
        )
    return f"models:/{model_id}"


def _package(network_uri: str, folder: Path) -> Path:
    model = Model()
    mlflow.pyfunc.save_model(
        folder,
        mlflow_model=model,
        python_model=str(_CODE),
        code_paths=[str(_PACKAGE)],
        signature=_SIGNATURE,
        input_example=_EXAMPLE,
        model_config={NETWORK_KEY: network_uri},
        metadata={NETWORK_KEY: network_uri},
        # Otherwise MLflow infers them in a new process that loads the model.
        pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
    )
    # MLflow reads the file in the model, whose name is the last part, and would publish where it was on this machine.
    model.flavors["python_function"]["model_code_path"] = _CODE.name
    model.save(str(folder / "MLmodel"))
    return folder


class BadRequestError(MlflowException):
    """The server answers with status 400 and this text alone; of another error it would repeat the request, too."""

    def __init__(self, line: str) -> None:
        super().__init__(line, INVALID_PARAMETER_VALUE)
        self._line = line

    def serialize_as_json(self) -> str:
        """Return the body of the answer."""
        return json.dumps({"error_code": self.error_code, "message": self._line})


class ServedModel(PythonModel):
    """A model as MLflow's server sees it."""

    def __init__(self, load: Callable[[FoundModel], Answer]) -> None:
        self._load = load

    def load_context(self, context: PythonModelContext) -> None:
        """Load the Keras model from the store that the server was started with."""
        store = open_for_reading(mlflow.get_tracking_uri(), find_project())
        self._answer = self._load(find_model(store, context.model_config[NETWORK_KEY]))

    def predict(self, context: PythonModelContext, model_input: pd.DataFrame) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            BadRequestError: the request cannot be answered; says which row is wrong, and why.
        """
        try:
            return self._answer(model_input)
        except DataError as err:
            raise BadRequestError(str(err)) from err


def serve(load: Callable[[FoundModel], Answer]) -> None:
    """Declare the model of the file that MLflow is running; `load` is called once, when the server starts."""
    mlflow.models.set_model(ServedModel(load))
