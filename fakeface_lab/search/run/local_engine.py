"""The engine that trains in worker processes, which may die without harm to the search."""

import queue
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fakeface_lab.search.run.attempt import as_event
from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from fakeface_lab.search.run.engine import Assignment, Event, Handler, handle_pending, unheard
from fakeface_lab.search.run.worker import Inbox, Worker, take_worker

__all__ = ["LocalEngine"]

# A worker whose memory has grown by this factor since its first assignment is replaced.
_GROWTH_LIMIT = 1.5


class LocalEngine:
    """Trains in worker processes, each started as a separate program: no `__main__` guard is needed.

    A worker is reused for the next assignment, and replaced if it died, hung or grew. However the driver dies, the
    socket then closes and the workers exit.

    Args:
        work_path: of the work, as `pickle_mapped` wrote it.
        num_workers: assignments at the same time.
        num_threads: of each.
        hang_secs: a worker without a training step for this long is killed.
        gpus: that of each worker, as in CUDA_VISIBLE_DEVICES; empty if there are none to choose from.
        memory_bytes: what an assignment may use; None for no limit.
        storage: where checkpoints are copied to; None for nowhere.
    """

    def __init__(
        self,
        work_path: Path,
        *,
        num_workers: int,
        num_threads: int,
        hang_secs: float,
        gpus: Sequence[str] = (),
        memory_bytes: int | None = None,
        storage: CheckpointStorage | None = None,
    ) -> None:
        self.handler: Handler = unheard
        self._needed = {"work": str(work_path), "num_threads": num_threads, "memory_bytes": memory_bytes}
        self._num_workers, self._hang_secs, self._gpus, self.storage = num_workers, hang_secs, list(gpus), storage
        self._workers: list[Worker] = []
        self._inbox: Inbox = queue.SimpleQueue()

    def num_free(self) -> int:
        """Return how many workers are idle, those not yet started included."""
        return self._num_workers - sum(worker.key is not None for worker in self._workers)

    def start(self, assignment: Assignment, folder: Path) -> None:
        """Give the assignment to an idle worker; start one if needed."""
        worker = next((worker for worker in self._workers if worker.key is None), None) or self._add()
        worker.key, worker.last_heard = assignment.key, time.monotonic()
        checkpoints = self.storage.url if self.storage else None
        try:
            worker.send({"assignment": asdict(assignment), "folder": str(folder), "checkpoints": checkpoints})
        except OSError:
            self._discard(worker, "worker process ended between two trials")

    def wait(self, timeout_secs: float) -> None:
        """Handle all pending messages, deaths and hangs."""
        handle_pending(self._inbox, timeout_secs, lambda received: self._receive(*received))
        for worker in list(self._workers):
            if worker.process.poll() is not None:
                worker.kill()  # its children: then the socket closes
            is_silent = worker.key is not None and time.monotonic() - worker.last_heard > self._hang_secs
            # Handling one may have discarded another.
            if is_silent and worker in self._workers:
                self._discard(worker, f"hung: no training step for {self._hang_secs:.0f} s")

    def cancel(self, key: str, reason: str) -> None:
        """Kill the worker of an assignment."""
        for worker in [worker for worker in self._workers if worker.key == key]:
            self._discard(worker, reason)

    def stop(self) -> None:
        """Kill all workers; their checkpoints remain."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def _add(self) -> Worker:
        worker, used = take_worker(), {worker.slot for worker in self._workers}
        worker.slot = next(number for number in range(self._num_workers) if number not in used)
        threading.Thread(target=worker.read_into, args=(self._inbox,), daemon=True).start()
        self._workers.append(worker)
        with suppress(OSError):  # it has ended already, which the next message will tell
            worker.send({**self._needed, "gpu": self._gpus[worker.slot] if self._gpus else None})
        return worker

    def _receive(self, worker: Worker, message: dict[str, Any] | None) -> None:
        if worker not in self._workers:  # already discarded: its earlier messages no longer count
            return
        if message is None:
            self._discard(worker, None)
            return
        key = worker.key
        if key is None or message["kind"] == "ready":
            return
        if message["kind"] == "overgrown":
            self._discard(worker, message["reason"])
            return
        event = as_event(key, message)
        if event.kind not in ("step", "epoch", "print"):
            worker.key = None
        if event.kind == "done":
            self._replace_grown(worker, message["rss_bytes"])
        self.handler(event)

    def _replace_grown(self, worker: Worker, rss_bytes: int) -> None:
        if worker.first_rss_bytes is None:
            worker.first_rss_bytes = rss_bytes
        elif rss_bytes > _GROWTH_LIMIT * worker.first_rss_bytes:
            worker.kill()
            self._remove(worker)

    def _discard(self, worker: Worker, reason: str | None) -> None:
        """Remove a worker, and report its assignment as died; `reason` None: it has ended by itself."""
        if reason is not None:
            worker.kill()
        key = worker.key
        self._remove(worker)
        if key is not None:
            self.handler(Event(key, "died", reason=reason or worker.explain_exit()))

    def _remove(self, worker: Worker) -> None:
        self._workers.remove(worker)
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=5)  # for its own exit code
        worker.kill()
