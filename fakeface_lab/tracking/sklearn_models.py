"""Scikit-learn models in MLflow, in a format that runs no code when it is read, where there is one."""

import shutil
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from sklearn.base import BaseEstimator

from fakeface_lab.tracking.models import model_of_run
from fakeface_lab.tracking.owner import package_versions
from fakeface_lab.tracking.store import Store

__all__ = ["load_sklearn_model", "package_sklearn_model"]


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
