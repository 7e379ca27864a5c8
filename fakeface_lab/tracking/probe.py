"""Tries a store out: does it answer, what is its version and its clock, can a tag and a file be written.

Every function gives up after `ANSWER_SECS`: MLflow itself would retry for minutes. Nothing stays in the store.
"""

import sqlite3
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlparse

import requests
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.rest_utils import http_request
from mlflow.utils.uri import append_to_uri_path, is_local_uri

from fakeface_lab.errors import TrackingError
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import Background

__all__ = ["Answer", "artifact_location", "ask_store", "local_folder", "try_artifact", "try_tag", "within"]

ANSWER_SECS = 20.0
_CONNECT_SECS = 5
_PROBE = "doctor"
_MARKER_TABLE = "alembic_version"  # MLflow makes it with the others
_POSTGRESQL_TIME = "SELECT extract(epoch FROM clock_timestamp())"

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What a store says about itself.

    Attributes:
        server_version: of the server's MLflow; None if there is no server, or it does not say.
        clock_ahead_secs: time of the store minus time here, s; None if the store does not tell its time.
        is_new: whether it is a database without tables, which MLflow would make.
    """

    server_version: str | None = None
    clock_ahead_secs: float | None = None
    is_new: bool = False


def within(action: Callable[[], T], what: str, secs: float = ANSWER_SECS) -> T:
    """Return the result of `action`, which runs on in the background if it takes too long.

    Raises:
        TrackingError: it took longer than `secs`; `what` begins the message.
    """
    thread = Background("probe")
    future: Future[T] = thread.submit(action)
    try:
        return future.result(secs)
    except TimeoutError as err:
        raise TrackingError(
            f"{what}: no answer within {secs:.0f} s; is the address right, and the network up?"
        ) from err
    finally:
        thread.close()


def ask_store(uri: str) -> Answer:
    """Return what the store with this absolute tracking URI says about itself.

    Raises:
        TrackingError: it does not answer, refuses the credentials, or is no database.
    """
    scheme = urlparse(uri).scheme
    if scheme in ("http", "https"):
        return within(lambda: _ask_server(uri), f"tracking store {uri}")
    if scheme == "sqlite":
        return _ask_file(uri, Path(uri.removeprefix("sqlite:///")))
    return within(lambda: _ask_database(uri), f"tracking store {uri}")


def _ask_server(uri: str) -> Answer:
    asked = time.time()
    try:
        # Through MLflow, which adds the credentials and certificates of its environment variables.
        reply = http_request(
            get_default_host_creds(uri), "/version", "GET", max_retries=0, timeout=_CONNECT_SECS, raise_on_status=False
        )
    except (MlflowException, requests.RequestException) as err:
        raise TrackingError(
            f"tracking store {uri}: no answer; is the server running, and is --tracking-uri right? ({_first_line(err)})"
        ) from err
    if reply.status_code in (401, 403):
        raise TrackingError(
            f"tracking store {uri}: refuses the credentials ({reply.status_code}); set MLFLOW_TRACKING_USERNAME and "
            f"MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if reply.status_code >= 500:
        raise TrackingError(f"tracking store {uri}: the server answers {reply.status_code}; see its log")
    ahead = None
    with suppress(KeyError, ValueError):
        # The header is cut to whole seconds, so it is half a second late on average.
        ahead = parsedate_to_datetime(reply.headers["Date"]).timestamp() + 0.5 - (asked + time.time()) / 2
    version = reply.text.strip()
    # A proxy may answer with a page of its own.
    return Answer(version if reply.ok and version[:1].isdigit() and len(version) < 40 else None, ahead)


def _ask_file(uri: str, database: Path) -> Answer:
    if not database.exists():
        return Answer(is_new=True)
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            tables = {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        # SQLite writes a journal beside the database; the time of a new file there is that of the disk's owner.
        with tempfile.NamedTemporaryFile(dir=database.parent, prefix=f".{_PROBE}-") as file:
            asked = time.time()
            Path(file.name).write_text("the time")
            ahead = Path(file.name).stat().st_mtime - asked
        return Answer(clock_ahead_secs=ahead, is_new=_MARKER_TABLE not in tables)
    except (OSError, sqlite3.Error) as err:
        raise TrackingError(f"tracking store {uri}: {_first_line(err)}; see --tracking-uri") from err


def _ask_database(uri: str) -> Answer:
    import sqlalchemy  # slow, and MLflow's client of a server does without it

    try:
        engine = sqlalchemy.create_engine(uri)
        with engine.connect() as connection:
            is_new = not sqlalchemy.inspect(connection).has_table(_MARKER_TABLE)
            if engine.dialect.name != "postgresql":
                return Answer(is_new=is_new)
            asked = time.time()
            there = float(connection.execute(sqlalchemy.text(_POSTGRESQL_TIME)).scalar_one())
            return Answer(clock_ahead_secs=there - (asked + time.time()) / 2, is_new=is_new)
    except Exception as err:  # each driver raises its own errors
        raise TrackingError(
            f"tracking store {uri}: {_first_line(err)}; is the database running, and is --tracking-uri right?"
        ) from err


def try_tag(store: Store) -> None:
    """Write a tag of the store's experiment and delete it again.

    Raises:
        TrackingError: the store refuses, or does not answer.
    """
    client, key = store.client, f"{_PROBE}.{uuid.uuid4().hex}"

    def write() -> None:
        client.set_experiment_tag(store.experiment_id, key, "may be deleted")
        client.delete_experiment_tag(store.experiment_id, key)

    try:
        within(write, f"experiment {store.experiment_name}")
    except MlflowException as err:
        raise TrackingError(f"experiment {store.experiment_name}: refuses a tag ({_first_line(err)})") from err


def artifact_location(store: Store) -> str:
    """Return the address below which the artifacts of the store's experiment are."""
    return str(store.client.get_experiment(store.experiment_id).artifact_location)


def local_folder(location: str) -> Path | None:
    """Return the folder that an artifact location names; None if it is not on this machine."""
    return Path(local_file_uri_to_path(location)) if is_local_uri(location) else None


def try_artifact(store: Store, location: str) -> None:
    """Write a file below an artifact location, read it back and delete it.

    Raises:
        TrackingError: that failed; names the reason.
    """
    folder = local_folder(location)
    is_new = folder is not None and not folder.exists()
    text = uuid.uuid4().hex
    place = append_to_uri_path(location, f"{_PROBE}-{text}")

    def write() -> str:
        files = get_artifact_repository(place, tracking_uri=store.uri)
        with tempfile.TemporaryDirectory() as here:
            path = Path(here) / "probe.txt"
            path.write_text(text)
            try:
                files.log_artifact(str(path))
                return Path(files.download_artifacts(path.name, str(Path(here)))).read_text()
            finally:
                files.delete_artifacts()

    try:
        read = within(write, f"artifacts in {location}")
    except TrackingError:
        raise
    except Exception as err:  # each kind of storage raises its own errors
        raise TrackingError(f"artifacts in {location}: {type(err).__name__}: {_first_line(err)}") from err
    if read != text:
        raise TrackingError(f"artifacts in {location}: a file was not read as it was written")
    if folder is not None and is_new:
        with suppress(OSError):  # another program may have written there meanwhile
            folder.rmdir()


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0]
