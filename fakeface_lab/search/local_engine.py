"""Trains in worker processes that may die without harm to the search."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fakeface_lab.recorder import EpochRecord
from fakeface_lab.search.engines import Event, Handler
from fakeface_lab.search.work import Assignment

__all__ = ["LocalEngine"]

# A worker that has grown by this factor since its first assignment is replaced.
_GROWTH_LIMIT = 1.5
_LOG_TAIL_CHARS = 300


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    log: Path
    slot: int
    key: str | None = None
    last_word: float = field(default_factory=time.monotonic)
    first_rss_bytes: int | None = None


class LocalEngine:
    """Trains in worker processes, each started as a program of its own: no `__main__` guard is needed.

    A worker is used again for the next assignment, and replaced when it died, hung or grew. When the driver dies,
    however it dies, the socket closes and the workers end themselves.
    """

    def __init__(
        self,
        work_path: Path,
        handler: Handler,
        *,
        num_workers: int,
        num_threads: int,
        hang_secs: float,
        gpus: Sequence[str] = (),
    ) -> None:
        self._work_path, self._handler = work_path, handler
        self._num_workers, self._num_threads, self._hang_secs = num_workers, num_threads, hang_secs
        self._gpus = list(gpus)
        self._workers: list[_Worker] = []

    def num_free(self) -> int:
        """Return how many workers have nothing to do, those not yet started included."""
        return self._num_workers - sum(worker.key is not None for worker in self._workers)

    def start(self, assignment: Assignment, folder: Path) -> None:
        """Give the assignment to a free worker, started if need be."""
        worker = next((worker for worker in self._workers if worker.key is None), None) or self._launch()
        worker.key, worker.last_word = assignment.key, time.monotonic()
        order = {"assignment": asdict(assignment), "folder": str(folder)}
        try:
            worker.connection.send_bytes(json.dumps(order).encode())
        except OSError:
            self._bury(worker, "worker process ended between two trials")

    def wait(self, timeout_secs: float) -> None:
        """Handle all messages that are there, deaths and hangs included."""
        ready = wait([worker.connection for worker in self._workers], timeout_secs)
        for worker in list(self._workers):
            if worker.connection in ready:
                self._receive(worker)
            elif worker.key is not None and time.monotonic() - worker.last_word > self._hang_secs:
                worker.process.kill()
                self._bury(worker, f"hung: no training step for {self._hang_secs:.0f} s")

    def stop(self) -> None:
        """Kill all workers; their checkpoints stay."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
            worker.connection.close()
        self._workers.clear()

    def _launch(self) -> _Worker:
        ours, theirs = Pipe()
        used = {worker.slot for worker in self._workers}
        slot = next(number for number in range(self._num_workers) if number not in used)
        # Whatever this process can import, its workers can; an empty entry is the current folder.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        log = self._work_path.with_name(f"worker-{slot}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    # -P: not the current folder before all others, where a file may be called like a library.
                    sys.executable, "-P", "-m", "fakeface_lab.search.worker",
                    str(theirs.fileno()), str(self._work_path), str(self._num_threads),
                ],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                # Ctrl-C goes to the driver alone, which decides what to stop.
                start_new_session=True,
            )  # fmt: skip
        theirs.close()
        worker = _Worker(process, ours, log, slot)
        self._workers.append(worker)
        return worker

    def _receive(self, worker: _Worker) -> None:
        try:
            message: dict[str, Any] = json.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            self._bury(worker, None)
            return
        worker.last_word = time.monotonic()
        key = worker.key
        if key is None or message["kind"] == "ready":
            return
        match message["kind"]:
            case "step":
                step = (message["epoch"], message["step"], message["num_steps"])
                self._handler(Event(key, "step", step=step))
            case "epoch":
                self._handler(Event(key, "epoch", record=EpochRecord(**message["record"])))
            case "done":
                worker.key = None
                self._replace_grown(worker, message["rss_bytes"])
                self._handler(Event(key, "done"))
            case kind:
                worker.key = None
                self._handler(Event(key, kind, reason=message["reason"]))

    def _replace_grown(self, worker: _Worker, rss_bytes: int) -> None:
        if worker.first_rss_bytes is None:
            worker.first_rss_bytes = rss_bytes
        elif rss_bytes > _GROWTH_LIMIT * worker.first_rss_bytes:
            self._remove(worker)

    def _bury(self, worker: _Worker, reason: str | None) -> None:
        key = worker.key
        self._remove(worker)
        if key is not None:
            self._handler(Event(key, "died", reason=reason or _explain_exit(worker)))

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.connection.close()
        try:
            worker.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def _explain_exit(worker: _Worker) -> str:
    code = worker.process.returncode
    if code == -9:
        return "worker process was killed (signal 9): most likely out of memory"
    tail = worker.log.read_text(errors="replace").strip()[-_LOG_TAIL_CHARS:].splitlines()
    how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"worker process {how}" + (f": {tail[-1]}" if tail else "")
