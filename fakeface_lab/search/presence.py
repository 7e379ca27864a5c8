"""One driver at a time, and how long a search has been driven: a sign of life in the tags of the parent run.

A lock file (`tracking.runs`) stops a second driver in the same project folder. This stops one in another folder or on
another machine that shares the store, except within a race window: two drivers that both read the tag before either
has written it (about a second from opening the search to its first sign of life) are not told from each other.
Clocks of the machines may differ by less than `_DEAD_AFTER_SECS`.
"""

import json
import os
import socket
import threading
import time
from types import TracebackType

import psutil
from mlflow.entities import Run, RunTag

from fakeface_lab.errors import SearchError
from fakeface_lab.tracking.runs import TrackedRun

__all__ = ["Presence", "refuse_second_driver"]

_BEAT_SECS = 20.0
# A driver on another machine that gave no sign for so long is taken for dead.
_DEAD_AFTER_SECS = 120.0


class Presence:
    """While it is entered, the parent run says who drives the search, and its time is counted over all restarts."""

    def __init__(self, parent: TrackedRun) -> None:
        self._parent = parent
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="presence", daemon=True)
        self._before_secs = self._started = 0.0

    def __enter__(self) -> "Presence":
        client, run_id = self._parent.store.client, self._parent.run_id
        tags = self._parent.writer.call(lambda: client.get_run(run_id)).data.tags
        self._before_secs, self._started = float(tags.get("used_secs", "0")), time.monotonic()
        self._write(_sign_of_life())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        if kind is None:
            self._write("")
        else:
            # Once, and not for long: the program is ending.
            try:
                self._parent.store.client.log_batch(self._parent.run_id, tags=self._tags(""))
            except Exception:  # the error that brought us here is the one to report
                return

    def used_secs(self) -> float:
        """Return how long this search was driven, earlier processes included, s."""
        return self._before_secs + time.monotonic() - self._started

    def _beat_on(self) -> None:
        while not self._stopped.wait(_BEAT_SECS):
            try:
                self._parent.store.client.log_batch(self._parent.run_id, tags=self._tags(_sign_of_life()))
            except Exception:  # the store is away: whoever writes results waits for it and reports it
                continue

    def _write(self, driver: str) -> None:
        tags = self._tags(driver)
        self._parent.writer.call(lambda: self._parent.store.client.log_batch(self._parent.run_id, tags=tags))

    def _tags(self, driver: str) -> list[RunTag]:
        return [RunTag("driver", driver), RunTag("used_secs", f"{self.used_secs():.1f}")]


def refuse_second_driver(parent: Run) -> None:
    """Pass where nobody drives the search.

    Raises:
        SearchError: a living process does; names it.
    """
    text = parent.data.tags.get("driver", "")
    if not text:
        return
    other = json.loads(text)
    silent_secs = time.time() - other["seen_secs"]
    if other["host"] == socket.gethostname():
        is_alive = other["pid"] != os.getpid() and _is_alive(other["pid"], other["started_secs"])
    else:
        is_alive = silent_secs < _DEAD_AFTER_SECS
    if is_alive:
        raise SearchError(
            f"search {parent.info.run_name!r}: process {other['pid']} on {other['host']} drives it, last seen "
            f"{max(0, silent_secs):.0f} s ago; wait for that one, or stop it first"
        )


def _sign_of_life() -> str:
    process = psutil.Process()
    return json.dumps(
        {
            "host": socket.gethostname(),
            "pid": process.pid,
            "started_secs": process.create_time(),
            "seen_secs": time.time(),
        }
    )


def _is_alive(pid: int, started_secs: float) -> bool:
    try:
        process = psutil.Process(pid)
        # Numbers of processes are used again.
        return bool(abs(process.create_time() - started_secs) < 2 and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
