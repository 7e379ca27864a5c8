"""Finding runs again for reading: by name, by id, below their parent. Makes no store and no experiment.

Loads no TensorFlow.
"""

import re
from pathlib import Path

from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fakeface_lab.errors import SearchError, TrackingError
from fakeface_lab.tracking.query import all_experiments, quote, search_runs
from fakeface_lab.tracking.store import Store, resolve_tracking_uri

__all__ = ["Run", "children_of", "find_named", "find_run", "latest_runs", "open_for_reading"]


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
