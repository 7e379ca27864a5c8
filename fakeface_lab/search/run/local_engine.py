"""The engine that trains in worker processes, which may die without harm to the search."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fakeface_lab.search.run.attempt import as_event
from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from fakeface_lab.search.run.engine import Assignment, Event, Handler, handle_pending, unheard

__all__ = ["LocalEngine"]

# A worker whose memory has grown by this factor since its first assignment is replaced.
_GROWTH_LIMIT = 1.5
_LOG_TAIL_CHARS = 300


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    log: Path
    slot: int
    key: str | None = None
    last_heard: float = field(default_factory=time.monotonic)
    first_rss_bytes: int | None = None

    def read_into(self, inbox: "queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]]") -> None:
        """Queue all messages of this worker, then None when it has ended.

        Runs on its own thread: while the driver is busy, the pipe must not fill up and block the worker, and a worker
        that reports must not seem silent.
        """
        try:
            while True:
                message = json.loads(self.connection.recv_bytes())
                self.last_heard = time.monotonic()
                inbox.put((self, message))
        except (EOFError, OSError):
            inbox.put((self, None))
        finally:
            self.connection.close()

    def kill(self) -> None:
        """End the process and all that it has started: a forked child would keep the socket open, and its memory."""
        with suppress(ProcessLookupError, PermissionError):  # the latter on macOS, of one that has just died
            os.killpg(self.process.pid, signal.SIGKILL)  # it leads a session of its own
        self.process.wait()


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
        self._work_path = work_path
        self.handler: Handler = unheard
        self._num_workers, self._num_threads, self._hang_secs = num_workers, num_threads, hang_secs
        self._gpus, self._memory_bytes, self.storage = list(gpus), memory_bytes, storage
        self._workers: list[_Worker] = []
        self._inbox: queue.SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = queue.SimpleQueue()

    def num_free(self) -> int:
        """Return how many workers are idle, those not yet started included."""
        return self._num_workers - sum(worker.key is not None for worker in self._workers)

    def start(self, assignment: Assignment, folder: Path) -> None:
        """Give the assignment to an idle worker; start one if needed."""
        worker = next((worker for worker in self._workers if worker.key is None), None) or self._launch()
        worker.key, worker.last_heard = assignment.key, time.monotonic()
        checkpoints = self.storage.url if self.storage else None
        order = {"assignment": asdict(assignment), "folder": str(folder), "checkpoints": checkpoints}
        try:
            worker.connection.send_bytes(json.dumps(order).encode())
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
                self._kill(worker, f"hung: no training step for {self._hang_secs:.0f} s")

    def cancel(self, key: str, reason: str) -> None:
        """Kill the worker of an assignment."""
        for worker in [worker for worker in self._workers if worker.key == key]:
            self._kill(worker, reason)

    def stop(self) -> None:
        """Kill all workers; their checkpoints remain."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def _launch(self) -> _Worker:
        ours, theirs = Pipe()
        used = {worker.slot for worker in self._workers}
        slot = next(number for number in range(self._num_workers) if number not in used)
        # Workers can import what this process can; an empty entry means the current folder.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot]
        log = self._work_path.with_name(f"worker-{slot}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    # -P: do not search the current folder first: a file there may have the name of a library.
                    sys.executable, "-P", "-m", "fakeface_lab.search.run.worker",
                    str(theirs.fileno()), str(self._work_path), str(self._num_threads), str(self._memory_bytes or 0),
                ],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                # Ctrl-C reaches only the driver, which decides what to stop; and `kill` reaches what a worker starts.
                start_new_session=True,
            )  # fmt: skip
        theirs.close()
        worker = _Worker(process, ours, log, slot)
        threading.Thread(target=worker.read_into, args=(self._inbox,), daemon=True).start()
        self._workers.append(worker)
        return worker

    def _receive(self, worker: _Worker, message: dict[str, Any] | None) -> None:
        if worker not in self._workers:  # already discarded: its earlier messages no longer count
            return
        if message is None:
            self._discard(worker, None)
            return
        key = worker.key
        if key is None or message["kind"] == "ready":
            return
        if message["kind"] == "overgrown":
            self._kill(worker, message["reason"])
            return
        event = as_event(key, message)
        if event.kind not in ("step", "epoch", "print"):
            worker.key = None
        if event.kind == "done":
            self._replace_grown(worker, message["rss_bytes"])
        self.handler(event)

    def _kill(self, worker: _Worker, reason: str) -> None:
        worker.kill()
        self._discard(worker, reason)

    def _replace_grown(self, worker: _Worker, rss_bytes: int) -> None:
        if worker.first_rss_bytes is None:
            worker.first_rss_bytes = rss_bytes
        elif rss_bytes > _GROWTH_LIMIT * worker.first_rss_bytes:
            worker.kill()
            self._remove(worker)

    def _discard(self, worker: _Worker, reason: str | None) -> None:
        """Remove a dead worker, and report its assignment as died; `reason` None: read it from the process."""
        key = worker.key
        self._remove(worker)
        if key is not None:
            self.handler(Event(key, "died", reason=reason or _explain_exit(worker)))

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=5)  # for its own exit code
        worker.kill()


def _explain_exit(worker: _Worker) -> str:
    code = worker.process.returncode
    if code == -9:
        return "worker process was killed (signal 9): most likely out of memory"
    tail = worker.log.read_text(errors="replace").strip()[-_LOG_TAIL_CHARS:].splitlines()
    how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"worker process {how}" + (f": {tail[-1]}" if tail else "")
