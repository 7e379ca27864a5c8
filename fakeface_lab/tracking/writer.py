"""Writes that wait: a tracking server that goes away must cost neither the training nor a metric."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import requests
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from fakeface_lab.errors import TrackingError, without_credentials

__all__ = ["Background", "PatientWriter", "is_passing_fault"]


T = TypeVar("T")


class Background:
    """Threads that begin what is submitted in the order of its submission.

    Unlike those of `concurrent.futures` they are daemons: Ctrl-C must not wait for minutes of upload.
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

        def settle() -> None:
            try:
                future.set_result(action())
            except BaseException as err:  # handed to whoever asks for the result
                future.set_exception(err)

        self._queue.put(settle)
        return future

    def close(self) -> None:
        """End the threads after what they are doing now; what is queued is not begun."""
        self._is_closed = True
        for _ in range(self._num_threads):
            self._queue.put(None)

    def _work(self) -> None:
        while (settle := self._queue.get()) is not None and not self._is_closed:
            settle()


_PASSING_CODES = {
    databricks_pb2.ErrorCode.Name(code)
    for code in (
        databricks_pb2.INTERNAL_ERROR,  # what MLflow makes of a refused connection and of a locked sqlite file
        databricks_pb2.TEMPORARILY_UNAVAILABLE,
        databricks_pb2.REQUEST_LIMIT_EXCEEDED,
        databricks_pb2.DEADLINE_EXCEEDED,
    )
}

_LONGEST_PAUSE_SECS = 10.0


def is_passing_fault(err: Exception) -> bool:
    """Return whether the same write may go through later."""
    if isinstance(err, MlflowException):
        return err.error_code in _PASSING_CODES
    if isinstance(err, requests.HTTPError):  # an artifact's upload
        return err.response is None or err.response.status_code >= 500 or err.response.status_code == 429
    return isinstance(err, (requests.RequestException, ConnectionError, TimeoutError))


class PatientWriter:
    """Tries each write until it goes through, for at most `patience_secs`; in order, and off the training's thread.

    `call` waits for the result; `submit` returns at once. A write must be repeatable: it may be sent twice.

    Args:
        patience_secs: how long a write is tried.
        notify: shows a message to the user.
    """

    def __init__(self, patience_secs: float, notify: Callable[[str], None] = lambda message: None) -> None:
        self._patience_secs = patience_secs
        self.notify = notify
        self._queue: queue.Queue[Callable[[], object]] = queue.Queue()
        self._failure: Exception | None = None
        threading.Thread(target=self._work, name="tracking-writer", daemon=True).start()

    def submit(self, write: Callable[[], object]) -> None:
        """Queue a write.

        Raises:
            TrackingError: an earlier write was given up; the training should stop, it can be continued later.
        """
        self._raise_failure()
        self._queue.put(write)

    def drain(self) -> None:
        """Wait until all queued writes went through.

        Raises:
            TrackingError: one was given up.
        """
        self._queue.join()
        self._raise_failure()

    def beside(self) -> "PatientWriter":
        """Return a writer of the same patience whose writes wait for none of this one's."""
        return PatientWriter(self._patience_secs, self.notify)

    def call(self, action: Callable[[], T]) -> T:
        """Drain the queue, then do `action` here with the same patience, and return its result.

        Raises:
            TrackingError: the store stayed away longer than `patience_secs`, or refused.
        """
        self.drain()
        return self._persist(action)

    def _work(self) -> None:
        while True:
            write = self._queue.get()
            try:
                if self._failure is None:
                    self._persist(write)
            except Exception as err:  # handed to the training's thread, which raises it
                self._failure = err
            finally:
                self._queue.task_done()

    def _persist(self, action: Callable[[], T]) -> T:
        started = time.monotonic()
        pause_secs = 0.5
        while True:
            try:
                return action()
            except (MlflowException, OSError) as err:
                first_line = str(err).partition("\n")[0]
                if not is_passing_fault(err):
                    raise TrackingError(f"tracking store refused: {first_line}") from err
                away_secs = time.monotonic() - started
                if away_secs >= self._patience_secs:
                    raise TrackingError(
                        f"tracking store: away for {away_secs:.0f} s, longer than --tracking-patience-secs "
                        f"{self._patience_secs:.0f}; start the same command again when it is back ({first_line})"
                    ) from err
                reason = without_credentials(first_line)
                self.notify(f"tracking store does not answer, trying again in {pause_secs:g} s: {reason}")
                time.sleep(pause_secs)
                pause_secs = min(2 * pause_secs, _LONGEST_PAUSE_SECS)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
