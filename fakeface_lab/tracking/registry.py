"""MLflow's model registry: versions under a name, and aliases that point to them."""

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.exceptions import MlflowException

from fakeface_lab.tracking.runs import StoredRun
from fakeface_lab.tracking.serving import log_served_form
from fakeface_lab.tracking.store import Store

__all__ = [
    "RegisteredVersion",
    "alias_version",
    "create_registered_model",
    "describe_version",
    "get_version",
    "register_version",
    "set_alias",
]


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model.

    Attributes:
        version: its number.
        run_id: the run whose model it is.
        tags: of the version.
    """

    version: int
    run_id: str
    tags: dict[str, str]


def create_registered_model(store: Store, name: str) -> None:
    """Create a registered model, unless it exists."""
    try:
        store.client.create_registered_model(name)
    except MlflowException as err:
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def register_version(run: StoredRun, name: str) -> int | None:
    """Return the version of a registered model that holds the served form of a run's model, created if needed.

    None if the run's model is no longer in the store.
    """
    store, run_id = run.store, run.run_id
    known = store.client.search_model_versions(f"run_id = '{run_id}'")
    version = next((found.version for found in known if found.name == name), None)
    if version is None:
        address = log_served_form(run)
        if address is None:
            return None
        # A server does not resolve a model's address unless it is given the model's id as well.
        model_id = address.removeprefix("models:/")
        version = store.client.create_model_version(name, address, run_id, model_id=model_id).version
    return int(version)


def describe_version(store: Store, name: str, version: int, tags: Mapping[str, str], description: str) -> None:
    """Set tags and description of a version."""
    for key, value in tags.items():
        store.client.set_model_version_tag(name, str(version), key, value)
    store.client.update_model_version(name, str(version), description)


def get_version(store: Store, name: str, version: int) -> RegisteredVersion:
    """Return a version of a registered model; it exists."""
    found = store.client.get_model_version(name, str(version))
    return RegisteredVersion(version, found.run_id, dict(found.tags))


def alias_version(store: Store, name: str, alias: str) -> int | None:
    """Return the version that an alias of a registered model points to, or None."""
    version = store.client.get_registered_model(name).aliases.get(alias)
    return None if version is None else int(version)


def set_alias(store: Store, name: str, alias: str, version: int) -> None:
    """Point an alias of a registered model to a version."""
    store.client.set_registered_model_alias(name, alias, str(version))
