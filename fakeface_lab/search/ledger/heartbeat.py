"""A heartbeat in the tags of the parent run: at most one driver per search, and how long the search has run.

A lock file (`tracking.owner`) stops a second driver in the same project folder; the heartbeat stops one in another
folder, or on another machine that shares the store. It beats until everything is written (`Ledger.driving`), so also
while models are judged and registered. A second driver watches whether it changes; clocks are never compared. A driver
that was suspended for so long that it was replaced notices before its next write of an event, before it registers a
model and before it ends the search (`TrackedRun.require_owned`), and stops. If two drivers find the same search silent,
the later claim wins in the same way. A race remains between reading the claim and the write that follows: some
milliseconds.
"""

import json
import os
import socket
import threading
import time
from contextlib import suppress

from fakeface_lab.errors import SearchError
from fakeface_lab.tracking.owner import PROCESS, owner_state
from fakeface_lab.tracking.runs import Run, StoredRun, TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter

__all__ = ["Heartbeat", "refuse_second_driver"]

BEAT_SECS = 20.0
# A driver elsewhere is considered dead after this long without a heartbeat: three beats.
WATCH_SECS = 60.0
_LOOK_SECS = 2.0


class Heartbeat:
    """While entered, the parent run says who drives the search, and its time is counted over all restarts."""

    def __init__(self, parent: TrackedRun) -> None:
        self._parent = parent
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._num_beats = 0
        self._before_secs = self._started = 0.0

    def __enter__(self) -> "Heartbeat":
        tags = self._parent.read().data.tags
        self._before_secs, self._started = float(tags.get("used_secs", "0")), time.monotonic()
        self._parent.set_tags(self._tags(self._heartbeat()))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop_beating()
        if kind is None:
            # Suspended and replaced after its last event, it would say that nobody drives the search, and end its run.
            self._parent.require_owned()
            self._parent.set_tags(self._tags(""))
        else:
            with suppress(Exception):  # one try only: the program is ending, and its own error is the one to report
                self._parent.tag_if_owned(self._tags(""))

    def stop_beating(self) -> None:
        """Stop the thread, and leave the last heartbeat as it is."""
        self._stopped.set()
        self._thread.join()

    def used_secs(self) -> float:
        """Return how long this search has run, earlier processes included, s."""
        return self._before_secs + time.monotonic() - self._started

    def _beat(self) -> None:
        while not self._stopped.wait(BEAT_SECS):
            try:
                # If this process was suspended and replaced, its heartbeat must not claim the search back.
                self._parent.tag_if_owned(self._tags(self._heartbeat()))
            except Exception:  # the store is unreachable: the driver's own writes retry and report that
                continue

    def _heartbeat(self) -> str:
        self._num_beats += 1
        facts = {"host": socket.gethostname(), "pid": os.getpid(), "process": PROCESS, "num_beats": self._num_beats}
        return json.dumps(facts)

    def _tags(self, driver: str) -> dict[str, str]:
        return {"driver": driver, "used_secs": f"{self.used_secs():.3f}"}


def refuse_second_driver(store: Store, writer: PatientWriter, parent: Run) -> None:
    """Raise SearchError if a live process drives the search; takes up to `WATCH_SECS` if that is uncertain."""
    sign = parent.data.tags.get("driver", "")
    if not sign:
        return
    other = json.loads(sign)
    who = f"process {other['pid']} on {other['host']}"
    name = parent.info.run_name
    already_driven = SearchError(f"search {name!r}: {who} drives it; wait for that process, or stop it first")
    with owner_state(parent, store.work_folder / parent.info.run_id) as state:
        if state == "gone":
            return
        if state == "alive":
            raise already_driven
    writer.notify(f"search {name}: {who} may be driving it; watching its heartbeat for {WATCH_SECS:.0f} s")
    watched_since = time.monotonic()
    while time.monotonic() - watched_since < WATCH_SECS:
        time.sleep(min(_LOOK_SECS, WATCH_SECS / 4))
        asked = time.monotonic()
        now = StoredRun(store, writer, parent).read().data.tags.get("driver", "")
        if not now:
            return
        if now != sign:
            raise already_driven
        if time.monotonic() - asked > BEAT_SECS:  # the store was away: the other driver could not beat either
            watched_since = time.monotonic()
