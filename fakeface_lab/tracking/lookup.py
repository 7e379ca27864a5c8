"""Reading the store: runs and models by any of their names, the runs that belong to a run, and its files.

Nothing here writes to the store. Loads no TensorFlow.
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import get_model_info
from mlflow.tracking import MlflowClient

from fakeface_lab.errors import ModelError, NotFoundError, TrackingError
from fakeface_lab.tracking.duplicates import duplicates_of, most_complete
from fakeface_lab.tracking.store import (
    Store,
    all_experiments,
    all_pages,
    open_store,
    quote,
    resolve_tracking_uri,
    search_runs,
)
from fakeface_lab.tracking.writer import as_tracking_error, is_transient_error

__all__ = [
    "MODEL_NAME",
    "NETWORK_KEY",
    "FoundModel",
    "Run",
    "children_of",
    "fetch_artifact",
    "find_evaluations",
    "find_latest",
    "find_model",
    "find_run",
    "get_run",
    "latest_runs",
    "load_keras_model",
    "logged_models",
    "open_for_models",
    "open_for_reading",
]

MODEL_NAME = "model"  # of a logged model; other names are of forms made from it
NETWORK_KEY = "network"  # in the metadata of a served form: address of the model that it applies

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_NAME_AT_ALIAS = re.compile(r"[^/@]+@[^/@]+")
_NEEDED_METADATA = ("class_names", "image_size_px", "threshold", "data_digest")
# Comparing so many names takes 0.07 s, ten times as many 0.9 s.
_MAX_SUGGESTED_FROM = 1000  # newest runs whose names are suggested for a misspelled one


def open_for_reading(setting: str | None, project: Path) -> Store:
    """Return an existing store, with its most recently updated experiment; lookups search all experiments.

    Raises:
        TrackingError: there is no store yet, or it does not answer.
    """
    uri = resolve_tracking_uri(setting, project)
    prefix = "sqlite:///"
    # MLflow would create an empty database, where the user has only mistyped a path.
    if uri.startswith(prefix) and not Path(uri.removeprefix(prefix)).is_file():
        raise TrackingError(
            f"tracking store {uri}: nothing has been recorded there yet; train a model or run a search first, or see "
            f"--tracking-uri"
        )
    try:
        client = MlflowClient(uri)
        newest = client.search_experiments(order_by=["last_update_time DESC"])[0]
    except MlflowException as err:
        raise as_tracking_error(uri, err) from err
    except IndexError as err:
        raise TrackingError(f"tracking store {uri}: has no experiment; see --tracking-uri") from err
    return Store(uri, client, newest.experiment_id, newest.name, project)


def open_for_models(setting: str | None, project: Path) -> Store:
    """Return an existing store, ready to load models from; arguments and errors as in `open_store`."""
    # `open_store` also directs MLflow's loading functions to this store, because they take no client.
    return open_store(setting, project, open_for_reading(setting, project).experiment_name)


def get_run(store: Store, run_id: str) -> Run:
    """Return the run with this id.

    Raises:
        NotFoundError: there is none.
    """
    try:
        return store.client.get_run(run_id)
    except MlflowException as err:
        # Anything else may be an outage, which the caller can wait out.
        if err.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise NotFoundError(f"{run_id}: no such run in {store.uri}; see --tracking-uri") from err


def find_run(store: Store, word: str) -> Run:
    """Return the run with this id, the search with this name, or the only run with this name.

    Raises:
        NotFoundError: no run has the name, or several have it.
    """
    if _RUN_ID.fullmatch(word):
        return get_run(store, word)
    runs = _named(store, word)
    if not runs:
        raise NotFoundError(f"{word}: no search or run of that name in {store.uri}{_suggestion(store, word)}")
    return _only([run for run in runs if run.data.tags.get("role") == "search"] or runs, word)


def find_model(store: Store, word: str) -> "FoundModel":
    """Return the model that `word` names.

    Args:
        store: any experiment of the store; the others are searched too.
        word: a run's id, the name of one run with a model, `models:/...`, a registered model's name with an alias
            (`name@alias`), or an alias alone.

    Raises:
        NotFoundError: nothing has the name, or several runs with a model, or several registered models, have it.
        ModelError: the run has logged no model, or the model was not logged by this package.
    """
    if word.startswith("models:/") or _NAME_AT_ALIAS.fullmatch(word):
        return _from_address(store, f"models:/{word.removeprefix('models:/')}")
    if _RUN_ID.fullmatch(word):
        return _from_run(store, get_run(store, word))
    runs = _named(store, word)
    if runs:
        # If none has a model, the newest run is the one to name in the error.
        return _from_run(store, _only([run for run in runs if _model_of(store, run)] or runs[:1], word))
    registered = all_pages(lambda token: store.client.search_registered_models(page_token=token))
    aliased = [model.name for model in registered if word in model.aliases]
    if len(aliased) > 1:
        raise NotFoundError(
            f"{word}: {len(aliased)} registered models have this alias; give {aliased[0]}@{word} or another"
        )
    if not aliased:
        raise NotFoundError(f"{word}: no run, model or alias of that name in {store.uri}{_suggestion(store, word)}")
    return _from_address(store, f"models:/{aliased[0]}@{word}")


def _named(store: Store, word: str) -> list[Run]:
    """Return the runs with this name, searches first, newest first; without superseded searches and duplicates."""
    everywhere = all_experiments(store.client)
    # A search keeps its name in a tag, whatever its run is renamed to.
    queries = (f"tags.search = {quote(word)} and tags.role = 'search'", f"attributes.run_name = {quote(word)}")
    found = [run for query in queries for run in search_runs(store.client, everywhere, query, newest_first=True)]
    # A restarted search has the name of the one that it supersedes.
    by_id = {run.info.run_id: run for run in found if "superseded_by" not in run.data.tags}
    runs = list(by_id.values())
    return [run for run in runs if run is most_complete(duplicates_of(run, runs))]


def _only(runs: list[Run], word: str) -> Run:
    if len(runs) > 1:
        ids = ", ".join(run.info.run_id for run in runs[:5])
        raise NotFoundError(f"{word}: {len(runs)} runs have that name; give the id of one of them, newest first: {ids}")
    return runs[0]


def _suggestion(store: Store, word: str) -> str:
    everywhere = all_experiments(store.client)
    runs = search_runs(store.client, everywhere, "", newest_first=True, limit=_MAX_SUGGESTED_FROM)
    names = list(dict.fromkeys(str(run.info.run_name) for run in runs))
    # Names are often given in part: `baseline` resembles `baseline s0 documented` by 0.53 only, and difflib's default
    # is 0.6.
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.4)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; the newest run is {names[0]}" if names else "; it has no runs yet, see --tracking-uri"


def latest_runs(store: Store, role: str, limit: int) -> list[Run]:
    """Return the newest runs of a role in all experiments, newest first, without superseded ones."""
    everywhere = all_experiments(store.client)
    found = search_runs(store.client, everywhere, f"tags.role = '{role}'", newest_first=True, limit=limit)
    return [run for run in found if "superseded_by" not in run.data.tags]


def children_of(store: Store, parent: Run, role: str) -> list[Run]:
    """Return all child runs of a role, in the order of their creation."""
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.role = '{role}'"
    return search_runs(store.client, [parent.info.experiment_id], query)


def find_evaluations(store: Store, run_id: str) -> list[Run]:
    """Return the finished evaluations of a run's model, newest first."""
    query = f"tags.role = 'evaluation' and tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'FINISHED'"
    return search_runs(store.client, [store.experiment_id], query, newest_first=True)


def fetch_artifact(store: Store, run: Run, name: str, folder: str | Path) -> Path:
    """Copy one file that a run has logged to `folder` and return its path.

    Raises:
        NotFoundError: the run has no such file, or it cannot be read.
    """
    try:
        return Path(store.client.download_artifacts(run.info.run_id, name, str(folder)))
    except (MlflowException, OSError) as err:
        if is_transient_error(err):  # the caller retries it like any other request
            raise
        raise NotFoundError(f"run {run.info.run_name}: has no {name}; was it stopped before its end?") from err


def load_keras_model(address: str) -> Any:
    """Return the model with this address (`models:/...`) as it was saved.

    Raises:
        ModelError: its files are missing or damaged, it has layers whose code is not known here, or it holds code.
    """
    try:
        return mlflow.keras.load_model(address)
    # Keras raises a TypeError for a class that it does not know, and a ValueError for a file that is cut short.
    except (MlflowException, OSError, TypeError, ValueError) as err:
        if "safe_mode" in str(err):  # by which Keras offers to run what it has just refused
            raise ModelError(
                f"{address}: refused, it holds Python code (a Lambda layer) that would run on this machine; make a "
                f"layer of it that is registered with Keras, and train again"
            ) from err
        raise ModelError(
            f"{address}: cannot be loaded ({str(err).splitlines()[0]}); can this machine reach its "
            f"artifacts, and are the layers of its own registered with Keras?"
        ) from err


@dataclass(frozen=True)
class FoundModel:
    """A model that a run has logged.

    Attributes:
        uri: MLflow's address, `models:/...`.
        network_uri: address of its Keras form: the same, unless `uri` is that of a served form.
        run: the run that trained it.
        store: the store, with the run's own experiment.
        metadata: what the model records about itself (class names, image size, threshold, data digest).
    """

    uri: str
    network_uri: str
    run: Run
    store: Store
    metadata: Mapping[str, Any]

    def network(self) -> Any:
        """Return the Keras model as it was saved; errors as in `load_keras_model`."""
        return load_keras_model(self.network_uri)

    def artifact(self, name: str, folder: str) -> Path:
        """Copy one file that the run has logged to `folder` and return its path; see `fetch_artifact`."""
        return fetch_artifact(self.store, self.run, name, folder)

    def data_uri(self) -> str:
        """Return the recorded address of the images that the run used; "" if it recorded none."""
        used = self.run.inputs.dataset_inputs
        return str(json.loads(used[0].dataset.source).get("uri", "")) if used else ""


def _from_address(store: Store, address: str) -> FoundModel:
    try:
        info = get_model_info(address)
    except (MlflowException, OSError) as err:
        raise NotFoundError(
            f"{address}: no such model in {store.uri} ({str(err).splitlines()[0]}); give a run id, a run name, "
            f"models:/NAME/VERSION or NAME@ALIAS"
        ) from err
    metadata = info.metadata or {}
    if NETWORK_KEY in metadata:
        return replace(_from_address(store, metadata[NETWORK_KEY]), uri=address)
    missing = [key for key in _NEEDED_METADATA if key not in metadata]
    if missing:
        raise ModelError(
            f"{address}: its metadata lack {', '.join(missing)}, so its preprocessing is unknown; only models logged "
            f"by this package can be applied"
        )
    if "keras" not in info.flavors:
        kinds = ", ".join(info.flavors)
        raise ModelError(f"{address}: holds {kinds}, no Keras model; only models logged by this package can be applied")
    run = get_run(store, info.run_id)
    experiment = store.client.get_experiment(run.info.experiment_id)
    # An evaluation is logged beside the model, whatever experiment the store was opened with.
    own = replace(store, experiment_id=experiment.experiment_id, experiment_name=experiment.name)
    return FoundModel(address, address, run, own, metadata)


def _from_run(store: Store, run: Run) -> FoundModel:
    address = _model_of(store, run)
    if address is None:
        role = run.data.tags.get("role", "run")
        instead = "name one of its trials, or NAME@candidate" if role == "search" else "name a run that has one"
        raise ModelError(f"{run.info.run_name} ({run.info.run_id}): this {role} has logged no model; {instead}")
    return _from_address(store, address)


def _model_of(store: Store, run: Run) -> str | None:
    models = logged_models(store, run.info.run_id, run.info.experiment_id)
    return f"models:/{models[0].model_id}" if models and models[0].status == LoggedModelStatus.READY else None


def logged_models(
    store: Store, run_id: str, experiment_id: str | None = None, name: str = MODEL_NAME
) -> list[LoggedModel]:
    """Return what a run has logged as `name`, complete and old ones first; default experiment: the store's."""
    query = f"source_run_id = '{run_id}' AND name = '{name}'"
    found = store.client.search_logged_models([experiment_id or store.experiment_id], query)
    # `log_model` keeps the first and deletes the others, so a complete model must come first.
    return sorted(found, key=lambda model: (model.status != LoggedModelStatus.READY, model.creation_timestamp))


def find_latest(store: Store, fingerprint: str) -> Run | None:
    """Return the newest run with this fingerprint, finished or to be resumed; None if there is none."""
    query = f"tags.fingerprint = '{fingerprint}'"
    found = [
        run
        for run in search_runs(store.client, [store.experiment_id], query, newest_first=True)
        # A training that diverged would diverge again.
        if "diverged" not in run.data.tags.get("status_reason", "")
    ]
    return most_complete(duplicates_of(found[0], found)) if found else None
