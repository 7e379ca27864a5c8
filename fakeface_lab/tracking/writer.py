"""Writes that survive an outage of the tracking server, background threads, and what a store's errors mean."""

import queue
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import mlflow
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from fakeface_lab.errors import AccessError, TrackingError, without_credentials

__all__ = ["Background", "PatientWriter", "access_error", "as_tracking_error", "is_transient_error"]


T = TypeVar("T")


class Background:
    """Daemon threads that start actions in the order of their submission.

    The threads of `concurrent.futures` are not daemons: Ctrl-C would wait for an upload of minutes.
    """

    def __init__(self, name: str, num_threads: int = 1) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._is_closed = False
        self._num_threads = num_threads
        for _ in range(num_threads):
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, action: Callable[[], T]) -> Future[T]:
        """Queue `action` and return its future."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(action())
            except BaseException as err:  # raised again by `Future.result`
                future.set_exception(err)

        self._queue.put(run)
        return future

    def close(self) -> None:
        """End the threads after their current actions; queued actions are dropped."""
        self._is_closed = True
        for _ in range(self._num_threads):
            self._queue.put(None)

    def _work(self) -> None:
        while (run := self._queue.get()) is not None and not self._is_closed:
            run()


# By name, as in `MlflowException.error_code`; the constants of the protocol are numbers.
_TRANSIENT_CODES = {
    databricks_pb2.ErrorCode.Name(code)
    for code in (
        databricks_pb2.INTERNAL_ERROR,  # MLflow's code for a refused connection and a locked sqlite file
        databricks_pb2.TEMPORARILY_UNAVAILABLE,
        databricks_pb2.REQUEST_LIMIT_EXCEEDED,
        databricks_pb2.DEADLINE_EXCEEDED,
    )
}

_DUPLICATE_ROW = ("IntegrityError", "UniqueViolation")  # in the texts of sqlite and MySQL, and of PostgreSQL

# So that a server that is back is noticed within seconds, however long it was away.
_LONGEST_PAUSE_SECS = 10.0


def is_transient_error(err: Exception) -> bool:
    """Return whether the same write may succeed later."""
    if isinstance(err, MlflowException):
        # MLflow looks for a data set, then inserts it: of two runs that name the same new one at the same time, one is
        # refused. The next try finds it.
        return err.error_code in _TRANSIENT_CODES or any(name in str(err) for name in _DUPLICATE_ROW)
    if isinstance(err, requests.HTTPError):  # upload of an artifact
        # Any other answer in the 400s would be the same next time. Not 401: the password was right when the store was
        # opened, and MLflow answers so too while the database of its users is away.
        return err.response is None or err.response.status_code >= 500 or err.response.status_code in (401, 429)
    return isinstance(err, (requests.RequestException, ConnectionError, TimeoutError))


_REFUSALS = {
    "UNAUTHENTICATED": "wrong or no password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "PERMISSION_DENIED": (
        "this user has no permission; ask the experiment's owner for it, or choose another with MLFLOW_EXPERIMENT_NAME"
    ),
}


def access_error(store: str, err: Exception) -> AccessError | None:
    """Return one line if a server refuses the user, else None; `store` names the store."""
    reason = _REFUSALS.get(err.error_code) if isinstance(err, MlflowException) else None
    return None if reason is None else AccessError(f"{store}: {reason}")


def as_tracking_error(uri: str, err: MlflowException) -> TrackingError:
    """Return one line on a store that could not be opened: which, why, and what to do."""
    store, text = f"tracking store {uri}", str(err)
    refusal = access_error(store, err)
    if refusal is not None:
        return refusal
    # MLflow gives this the code of any internal error, so only the text tells.
    if "out-of-date database schema" in text:
        if _is_newer_schema(text):
            return TrackingError(
                f"{store}: made by a newer MLflow than {mlflow.__version__}; install that one to use it"
            )
        return TrackingError(f"{store}: made by an older MLflow; back it up, then run `mlflow db upgrade {uri}`")
    first_line = text.splitlines()[0]
    if uri.startswith("http") and is_transient_error(err):
        return TrackingError(f"{store}: no answer; is the server running, and is --tracking-uri right? ({first_line})")
    return TrackingError(f"{store}: {first_line}; see --tracking-uri")


def _is_newer_schema(message: str) -> bool:
    found = re.search(r"found version ([0-9a-f]{12})", message)
    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    return found is not None and not any(migrations.glob(f"{found[1]}_*.py"))


class PatientWriter:
    """Performs writes in order, and retries each for at most `patience_secs`.

    `submit` queues a write for a background thread; `call` waits for the queue and for its own result. Writes must be
    idempotent: they may be sent twice.

    Args:
        patience_secs: how long a write is retried.
        notify: shows a message to the user.
    """

    def __init__(self, patience_secs: float, notify: Callable[[str], None] = lambda message: None) -> None:
        self._patience_secs = patience_secs
        self.notify = notify
        self._queue: queue.Queue[Callable[[], object]] = queue.Queue()
        self._failure: Exception | None = None
        # Started by the first `submit`: a writer that is only used to read needs no thread.
        self._thread = threading.Thread(target=self._work, name="tracking-writer", daemon=True)
        self._start_lock = threading.Lock()

    def submit(self, write: Callable[[], object]) -> None:
        """Queue a write.

        Raises:
            TrackingError: an earlier write has failed; the training must stop, and can be resumed later.
        """
        self._raise_failure()
        with self._start_lock:
            # Several threads may submit, and a thread can be started only once.
            if not self._thread.is_alive():
                self._thread.start()
        self._queue.put(write)

    def drain(self) -> None:
        """Wait until all queued writes are done.

        Raises:
            TrackingError: one has failed.
        """
        self._queue.join()
        self._raise_failure()

    def with_own_queue(self) -> "PatientWriter":
        """Return a writer with the same settings and a separate queue."""
        return PatientWriter(self._patience_secs, self.notify)

    def call(self, action: Callable[[], T]) -> T:
        """Drain the queue, then perform `action` on this thread with the same retries, and return its result.

        Raises:
            TrackingError: the store was unreachable for longer than `patience_secs`, or refused the request.
        """
        self.drain()
        return self._persist(action)

    def _work(self) -> None:
        while True:
            write = self._queue.get()
            try:
                # After a failure the rest is dropped: the training stops, and writes all again when resumed.
                if self._failure is None:
                    self._persist(write)
            except Exception as err:  # raised again on the training's thread
                self._failure = err
            finally:
                # In any case, or `drain` would wait forever.
                self._queue.task_done()

    def _persist(self, action: Callable[[], T]) -> T:
        started = time.monotonic()
        pause_secs = 0.5
        while True:
            try:
                return action()
            # The exceptions of requests are OSErrors as well.
            except (MlflowException, OSError) as err:
                first_line = str(err).partition("\n")[0]
                if not is_transient_error(err):
                    refusal = TrackingError(f"tracking store refused: {first_line}")
                    raise access_error("tracking store", err) or refusal from err
                away_secs = time.monotonic() - started
                if away_secs >= self._patience_secs:
                    raise TrackingError(
                        f"tracking store: unreachable for {away_secs:.0f} s, longer than the retry limit of "
                        f"{self._patience_secs:.0f} s; rerun when it is back to resume ({first_line})"
                    ) from err
                reason = without_credentials(first_line)
                self.notify(f"tracking store does not answer, retrying in {pause_secs:g} s: {reason}")
                time.sleep(pause_secs)
                pause_secs = min(2 * pause_secs, _LONGEST_PAUSE_SECS)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
