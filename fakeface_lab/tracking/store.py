"""MLflow's store: opening it with an experiment, its limits on texts and queries, searching it, its page's links."""

import os
import re
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import mlflow
from filelock import FileLock
from mlflow.entities import Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fakeface_lab.errors import TrackingError, without_credentials
from fakeface_lab.garbage import collector_paused
from fakeface_lab.tracking.writer import as_tracking_error

__all__ = [
    "MAX_TAG_CHARS",
    "Store",
    "all_experiments",
    "all_pages",
    "as_entities",
    "join_text",
    "open_store",
    "param_name",
    "quote",
    "resolve_tracking_uri",
    "search_runs",
    "split_text",
]

# Some stores take 5,000 characters, MLflow's own 8,000, and it truncates longer values silently.
MAX_TAG_CHARS = 5000


def as_entities(tags: Mapping[str, str]) -> list[RunTag]:
    """Return tags as MLflow's entities, each value cut to the length that every store takes."""
    return [RunTag(key, value[:MAX_TAG_CHARS]) for key, value in tags.items()]


def split_text(key: str, text: str) -> dict[str, str]:
    """Return a text as one tag, or as several (`key`, `key.1`, `key.2`, ...) if it is too long for one."""
    parts = [text[first : first + MAX_TAG_CHARS] for first in range(0, len(text), MAX_TAG_CHARS)] or [""]
    return {key if number == 0 else f"{key}.{number}": part for number, part in enumerate(parts)}


def join_text(tags: Mapping[str, str], key: str) -> str:
    """Return the text that `split_text` split.

    Raises:
        KeyError: there is no such tag.
    """
    text, number = tags[key], 1
    while f"{key}.{number}" in tags:
        text += tags[f"{key}.{number}"]
        number += 1
    return text


def param_name(name: str) -> str:
    """Return the name of a hyperparameter as MLflow takes it for a parameter: characters that it refuses become `_`."""
    return re.sub(r"[^\w\-. :/]", "_", name)


# SQLite finds and sorts all matches again for each page; an answer of a server has 15 kB for each run.
_PAGE_SIZE, _LOCAL_PAGE_SIZE = 500, 10_000


def quote(text: str) -> str:
    """Return `text` as a literal of MLflow's filter language.

    MLflow does not support escaped quotes, so a literal can contain only one kind of quotes.

    Raises:
        TrackingError: the text contains both kinds.
    """
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text:
        return f'"{text}"'
    raise TrackingError(f"name {text}: holds both ' and \", which MLflow cannot search for; use one kind of quotes")


def search_runs(
    client: MlflowClient,
    experiment_ids: Sequence[str],
    query: str,
    *,
    newest_first: bool = False,
    limit: int | None = None,
    with_deleted: bool = False,
) -> list[Run]:
    """Return the runs that match a filter, ordered by start time.

    Args:
        client: of the store.
        experiment_ids: where to search.
        query: in MLflow's filter language; "" matches all runs.
        newest_first: the newest first, else the oldest.
        limit: maximum number of runs; None for all.
        with_deleted: also return deleted runs.
    """
    runs: list[Run] = []
    page_size = _LOCAL_PAGE_SIZE if client.tracking_uri.startswith("sqlite:") else _PAGE_SIZE
    token: str | None = None
    while limit is None or len(runs) < limit:
        with collector_paused():  # MLflow makes hundreds of objects per run
            page = client.search_runs(
                list(experiment_ids),
                query,
                ViewType.ALL if with_deleted else ViewType.ACTIVE_ONLY,
                max_results=page_size if limit is None else min(limit - len(runs), page_size),
                order_by=[f"attributes.start_time {'DESC' if newest_first else 'ASC'}"],
                page_token=token,
            )
        runs += page
        token = page.token
        if not token:
            break
    return runs


def all_experiments(client: MlflowClient, *, with_deleted: bool = False) -> list[str]:
    """Return the ids of all experiments of the store."""
    view = ViewType.ALL if with_deleted else ViewType.ACTIVE_ONLY
    found = all_pages(lambda token: client.search_experiments(view, page_token=token))
    return [experiment.experiment_id for experiment in found]


def all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    """Return what all pages of an MLflow search hold; `search` takes the token of a page."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = search(token)
        found += page
        token = page.token
        if not token:
            return found


UI_PORT = 5000

_EXPERIMENT_TAGS = {
    "mlflow.note.content": (
        "Compare runs on the same data and split only (tag `split`): tick two runs and press Compare. Trials of a "
        "search are grouped under it while the table is sorted by Created."
    ),
    # Without it MLflow's page guesses, and may open its empty views for language models.
    "mlflow.experimentKind": "custom_model_development",
}


@dataclass(frozen=True)
class Store:
    """An opened MLflow store and one experiment in it.

    Attributes:
        uri: absolute tracking URI.
        client: MLflow's client for it.
        experiment_id: of the experiment that new runs go to.
        experiment_name: its name.
        project: the project folder; local files of runs live below it.
    """

    uri: str
    client: MlflowClient
    experiment_id: str
    experiment_name: str
    project: Path

    @property
    def is_local(self) -> bool:
        """Whether the store is a file on this machine and not a server."""
        return self.uri.startswith("sqlite:")

    @property
    def work_folder(self) -> Path:
        """Folder for checkpoints and locks of unfinished runs."""
        return self.project / "mlruns" / ".work"

    def runs(self, query: str, *, newest_first: bool = False) -> list[Run]:
        """Return all runs of this experiment that match a filter, ordered by start time."""
        return search_runs(self.client, [self.experiment_id], query, newest_first=newest_first)

    def ui_command(self) -> str | None:
        """Return the command that serves MLflow's page for this store; None if a server already does."""
        if not self.is_local:
            return None
        # MLflow starts four workers by default; one reader needs no more than one.
        return f"mlflow ui --workers 1 --port {UI_PORT} --backend-store-uri {self.uri}"

    def runs_link(self) -> str:
        """Return the address of this experiment's table of runs, which MLflow's start page hides."""
        return f"{self._page()}#/experiments/{self.experiment_id}/runs?workflowType=machine_learning"

    def run_link(self, run_id: str) -> str:
        """Return the address of one run."""
        return f"{self._page()}#/experiments/{self.experiment_id}/runs/{run_id}?workflowType=machine_learning"

    def places(self, run_name: str, run_id: str, views: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
        """Return where a run is and how to view it: lines of a label ("" on continuation lines) and a text.

        `views` are the addresses of the run's saved views by name.
        """
        return [
            ("tracking", without_credentials(self.uri)),
            ("", f"experiment {self.experiment_name}, run {run_name} ({run_id})"),
            *self.how_to_open({**(views or {}), "all runs": self.runs_link(), "this run": self.run_link(run_id)}),
        ]

    def how_to_open(self, links: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return how to open addresses of MLflow's page, given by name, as lines like those of `places`."""
        command = self.ui_command() if links else None
        lines = [*([] if command is None else [command]), *(f"{name:<13}{link}" for name, link in links.items())]
        return [("" if number else "look", line) for number, line in enumerate(lines)]

    def _page(self) -> str:
        if self.is_local:
            return f"http://127.0.0.1:{UI_PORT}/"
        # Without the placeholder too, or the browser would try to log in as `***`.
        return without_credentials(self.uri).replace("***@", "").rstrip("/") + "/"


def resolve_tracking_uri(setting: str | None, project: Path) -> str:
    """Return the store to use: the setting, else `MLFLOW_TRACKING_URI`, else `mlflow.db` in the project folder.

    A relative sqlite path is made absolute, so that the same run is found from every folder.
    """
    uri = setting or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project / 'mlflow.db'}"
    prefix = "sqlite:///"
    if uri.startswith(prefix):
        path = Path(uri.removeprefix(prefix))
        return prefix + str(path if path.is_absolute() else path.resolve())
    return uri


def open_store(setting: str | None, project: Path, experiment: str) -> Store:
    """Return the store with its experiment; both are created if missing.

    Args:
        setting: the `--tracking-uri`, or None.
        project: the project folder.
        experiment: name of the experiment; `MLFLOW_EXPERIMENT_NAME` wins over it.

    Raises:
        TrackingError: the store cannot be opened; says which and what to do. An AccessError if it refuses the user.
    """
    uri = resolve_tracking_uri(setting, project)
    (project / "mlruns").mkdir(parents=True, exist_ok=True)
    try:
        if uri.startswith("sqlite:"):
            database = Path(uri.removeprefix("sqlite:///"))
            # If two processes create the tables at the same time, both fail.
            with FileLock(f"{database}.lock"):
                _make_tables(database, project)
                _require_sqlite(database)
                client = MlflowClient(uri)
                client.search_experiments(max_results=1)
        else:
            client = MlflowClient(uri)
        _use_for_loading(uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or experiment
        experiment_id = _get_or_create_experiment(client, uri, project, name)
    except MlflowException as err:
        raise as_tracking_error(uri, err) from err
    except (OSError, sqlite3.Error) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else err
        raise TrackingError(f"tracking store {uri}: {reason}; see --tracking-uri") from err
    return Store(uri, client, experiment_id, name, project)


def _make_tables(database: Path, project: Path) -> None:
    """Create a new store under another name, then move it: one that was killed halfway could never be opened again."""
    if database.exists():
        return
    # A folder, so that the SQLite journal of a killed attempt is removed as well.
    partial = database.with_name(f"{database.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    # Closed before it is moved: SQLite looks for the journal of an open database under the name it was opened with.
    # Not at the top: worker processes and remote stores do without the second that it takes.
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(f"sqlite:///{partial / database.name}", (project / "mlruns").as_uri()).engine.dispose()
    os.replace(partial / database.name, database)
    shutil.rmtree(partial, ignore_errors=True)


def _require_sqlite(database: Path) -> None:
    """Fail immediately on a damaged file: MLflow would retry for two minutes, then raise an error of SQLAlchemy."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA schema_version")


def _use_for_loading(uri: str) -> None:
    """Make MLflow load models with `models:/` addresses from this store, without changing the environment.

    MLflow also sets `MLFLOW_TRACKING_URI`, which would redirect the next program that a notebook runs.
    """
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


def _get_or_create_experiment(client: MlflowClient, uri: str, project: Path, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        # Without a server, artifacts would go below the current folder.
        location = (project / "mlruns" / name.replace("/", "-")).as_uri() if urlparse(uri).scheme == "sqlite" else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=_EXPERIMENT_TAGS))
        except MlflowException:
            # Another process has created it meanwhile, or this one has and the store's answer was lost.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"tracking store {uri}: experiment {name} was deleted; restore it with `mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`, or set MLFLOW_EXPERIMENT_NAME"
        )
    return str(found.experiment_id)
