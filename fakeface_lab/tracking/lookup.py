"""Finding again what the store has: a model by any of its names, the audit of a data set, a stress evaluation.

Reads only; what a found model is applied to is for `worth.tracked_model`.
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import get_model_info
from mlflow.tracking import MlflowClient

from fakeface_lab.errors import ModelError, SearchError, TrackingError
from fakeface_lab.tracking.store import Store, all_experiments, open_store, quote, resolve_tracking_uri, search_runs

__all__ = [
    "FoundAudit",
    "FoundModel",
    "Run",
    "children_of",
    "find_audit",
    "find_evaluations",
    "find_model",
    "find_named",
    "find_run",
    "latest_runs",
    "open_for_models",
    "open_for_reading",
]


def open_for_reading(setting: str | None, project: Path) -> Store:
    """Return the store as it is; its `experiment_id` names the newest experiment, reading looks into all of them.

    Raises:
        TrackingError: there is none, or it does not answer.
    """
    uri = resolve_tracking_uri(setting, project)
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not Path(uri.removeprefix(prefix)).is_file():
        raise TrackingError(
            f"tracking store {uri}: nothing was recorded there yet; run `python -m fakeface_lab.baseline` first, "
            f"or see --tracking-uri"
        )
    try:
        client = MlflowClient(uri)
        newest = client.search_experiments(order_by=["last_update_time DESC"])[0]
    except (MlflowException, IndexError) as err:
        first_line = (str(err).splitlines() or ["no experiment"])[0]
        raise TrackingError(f"tracking store {uri}: {first_line}; see --tracking-uri") from err
    return Store(uri, client, newest.experiment_id, newest.name, project)


def latest_runs(store: Store, role: str, limit: int) -> list[Run]:
    """Return the newest runs of a role in all experiments, newest first; superseded ones are left out."""
    found = store.client.search_runs(
        all_experiments(store.client),
        f"tags.role = '{role}'",
        order_by=["attributes.start_time DESC"],
        max_results=limit,
    )
    return [run for run in found if "superseded_by" not in run.data.tags]


def find_named(store: Store, word: str) -> Run:
    """Return the run that `word` means: a run id, the name of a search, or the name of one run alone.

    Raises:
        SearchError: nothing of that name, or several runs.
    """
    if re.fullmatch(r"[0-9a-f]{32}", word):
        return find_run(store, word)
    everywhere = all_experiments(store.client)
    searches = search_runs(
        store.client, everywhere, f"tags.search = {quote(word)} and tags.role = 'search'", newest_first=True
    )
    current = [run for run in searches if "superseded_by" not in run.data.tags]
    found = current or search_runs(store.client, everywhere, f"attributes.run_name = {quote(word)}", newest_first=True)
    if not found:
        raise SearchError(
            f"{word}: no search or run of that name in {store.uri}; `python -m fakeface_lab.compare` lists the latest"
        )
    if len(found) > 1:
        ids = ", ".join(run.info.run_id for run in found[:5])
        raise SearchError(f"{word}: {len(found)} runs have that name; give the id of one of them, newest first: {ids}")
    return found[0]


def find_run(store: Store, run_id: str) -> Run:
    """Return the run with this id.

    Raises:
        SearchError: there is none.
    """
    try:
        return store.client.get_run(run_id)
    except MlflowException as err:
        raise SearchError(f"{run_id}: no such run in {store.uri}; see --tracking-uri") from err


def children_of(store: Store, parent: Run, role: str) -> list[Run]:
    """Return all child runs of a role, in the order of their creation."""
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.role = '{role}'"
    return search_runs(store.client, [parent.info.experiment_id], query)


_NUM_LOOKED_AT = 1000  # newest runs among which a name is looked for


@dataclass(frozen=True)
class FoundModel:
    """A model that a run has logged.

    Attributes:
        uri: MLflow's address, `models:/...`.
        run: the run that trained it.
        store: the store, with the run's own experiment.
        metadata: what the model says about itself (class names, image size, threshold, data digest).
    """

    uri: str
    run: Run
    store: Store
    metadata: Mapping[str, Any]

    def network(self) -> Any:
        """Return the Keras model as it was saved.

        Raises:
            ModelError: its files are gone or damaged, or were written by another Keras.
        """
        try:
            return mlflow.keras.load_model(self.uri)
        except (MlflowException, OSError, ValueError) as err:
            raise ModelError(
                f"{self.uri} (run {self.run.info.run_name}): cannot be loaded ({str(err).splitlines()[0]}); are the "
                f"artifacts of the store within reach from here?"
            ) from err

    def artifact(self, name: str, folder: str) -> Path:
        """Copy one file that the run has logged to `folder` and return its path.

        Raises:
            ModelError: there is none.
        """
        try:
            return Path(self.store.client.download_artifacts(self.run.info.run_id, name, folder))
        except (MlflowException, OSError) as err:
            raise ModelError(f"run {self.run.info.run_name}: has no {name}; was it stopped before its end?") from err

    def data_uri(self) -> str:
        """Return where the run says that its images are: an address, or "" where it does not say."""
        used = self.run.inputs.dataset_inputs
        return str(json.loads(used[0].dataset.source).get("uri", "")) if used else ""


@dataclass(frozen=True)
class FoundAudit:
    """The newest audit of a data set.

    Attributes:
        run_id: MLflow's id of the audit's run.
        worst: severity of its worst finding: "fail", "warn", "info", or "" without any.
        verdict: the audit in plain words.
    """

    run_id: str
    worst: str
    verdict: str

    def tags(self) -> dict[str, str]:
        """Tags that link a later run on the same data to this audit."""
        return {"audit_run_id": self.run_id, "audit_worst": self.worst, "audit_verdict": self.verdict}


def open_for_models(setting: str | None, project: Path) -> Store:
    """Return the store that exists, ready to load models from; arguments and errors as in `open_store`."""
    return open_store(setting, project, open_for_reading(setting, project).experiment_name)


def find_audit(store: Store, data_digest: str) -> FoundAudit | None:
    """Return the newest finished audit of exactly these images (name, label and content of each), or None.

    All experiments are searched: the same images may lie in a folder of another name.
    """
    found = store.client.search_runs(
        all_experiments(store.client),
        f"tags.role = 'audit' and tags.data_digest = '{data_digest}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not found:
        return None
    tags = found[0].data.tags
    return FoundAudit(found[0].info.run_id, tags.get("audit_worst", ""), tags.get("audit_verdict", ""))


def find_evaluations(store: Store, run_id: str) -> list[Run]:
    """Return the finished evaluations of the model of a run, newest first."""
    return list(
        store.client.search_runs(
            [store.experiment_id],
            f"tags.role = 'evaluation' and tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
        )
    )


def find_model(store: Store, word: str) -> FoundModel:
    """Return the model that `word` means.

    Args:
        store: any experiment of the store; the others are searched too.
        word: a run's id, a run's name (the newest run of that name that has a model), `models:/...`, a registered
            model's name with an alias (`name@alias`), or an alias alone.

    Raises:
        ModelError: nothing of that name, an alias that several models have, or a run without a model.
    """
    if word.startswith("models:/"):
        return _from_address(store, word)
    if re.fullmatch(r"[0-9a-f]{32}", word):
        return _from_run(store, _get_run(store, word))
    if re.fullmatch(r"[^/@]+@[^/@]+", word):
        return _from_address(store, f"models:/{word}")
    experiments = all_experiments(store.client)
    runs = store.client.search_runs(
        experiments,
        f"attributes.run_name = {quote(word)}",
        order_by=["attributes.start_time DESC"],
        max_results=_NUM_LOOKED_AT,
    )
    with_model = next((run for run in runs if _address_of(store, run) is not None), None)
    if with_model is not None or runs:
        return _from_run(store, with_model or runs[0])
    aliased = [model.name for model in store.client.search_registered_models() if word in model.aliases]
    if len(aliased) > 1:
        raise ModelError(
            f"{word}: {len(aliased)} registered models have this alias; say {aliased[0]}@{word} or another"
        )
    if aliased:
        return _from_address(store, f"models:/{aliased[0]}@{word}")
    raise ModelError(f"{word}: no run, model or alias of that name in {store.uri}{_nearest(store, experiments, word)}")


def _from_address(store: Store, address: str) -> FoundModel:
    try:
        info = get_model_info(address)
    except (MlflowException, OSError) as err:
        raise ModelError(
            f"{address}: no such model in {store.uri} ({str(err).splitlines()[0]}); give a run id, a run name, "
            f"models:/NAME/VERSION or NAME@ALIAS"
        ) from err
    return _found(store, address, _get_run(store, info.run_id), info.metadata)


def _from_run(store: Store, run: Run) -> FoundModel:
    address = _address_of(store, run)
    if address is None:
        role = run.data.tags.get("role", "run")
        instead = "name one of its trials, or NAME@candidate" if role == "search" else "name a run that has one"
        raise ModelError(f"{run.info.run_name} ({run.info.run_id}): this {role} has logged no model; {instead}")
    return _found(store, address, run, get_model_info(address).metadata)


def _found(store: Store, address: str, run: Run, metadata: Mapping[str, Any] | None) -> FoundModel:
    needed = ("class_names", "image_size_px", "threshold", "data_digest")
    missing = [key for key in needed if key not in (metadata or {})]
    if missing or metadata is None:
        raise ModelError(
            f"{address}: its metadata lack {', '.join(missing)}, so its preprocessing is unknown; only models that "
            f"this package has logged can be applied"
        )
    experiment = store.client.get_experiment(run.info.experiment_id)
    own = replace(store, experiment_id=experiment.experiment_id, experiment_name=experiment.name)
    return FoundModel(address, run, own, metadata)


def _get_run(store: Store, run_id: str) -> Run:
    try:
        return store.client.get_run(run_id)
    except MlflowException as err:
        raise ModelError(f"{run_id}: no such run in {store.uri}; see --tracking-uri") from err


def _address_of(store: Store, run: Run) -> str | None:
    found = store.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return next((f"models:/{model.model_id}" for model in found if model.status == LoggedModelStatus.READY), None)


def _nearest(store: Store, experiments: list[str], word: str) -> str:
    runs = store.client.search_runs(
        experiments, order_by=["attributes.start_time DESC"], max_results=_NUM_LOOKED_AT
    )  # fmt: skip
    names = list(dict.fromkeys(str(run.info.run_name) for run in runs))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.4)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; the newest run is {names[0]}" if names else "; nothing was trained there yet, see --tracking-uri"
