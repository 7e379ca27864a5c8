"""Both ends of a worker process: the driver's, and the program, which ends when its driver is gone."""

import gc
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from fakeface_lab.files import silent_stderr, unpickle_mapped
from fakeface_lab.garbage import loading_libraries

__all__ = ["Worker", "launched_ahead", "main", "take_worker"]

_STEP_SECS = 0.2
_OUTPUT_TAIL_CHARS = 300

Inbox = queue.SimpleQueue[tuple["Worker", dict[str, Any] | None]]


@dataclass
class Worker:
    """The driver's end of a worker process. Its first message says what the process needs, the others what to do."""

    process: subprocess.Popen[bytes]
    connection: Connection
    output: IO[bytes]  # what the process prints
    slot: int = 0  # number among the workers of an engine
    key: str | None = None  # of its assignment
    last_heard: float = field(default_factory=time.monotonic)
    first_rss_bytes: int | None = None  # after its first assignment

    @classmethod
    def launch(cls) -> "Worker":
        """Start a process, which loads TensorFlow before it reads its first message."""
        ours, theirs = Pipe()
        # Workers can import what this process can; an empty entry means the current folder.
        path = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        # As in `backend`, which this process may not have loaded yet.
        settings = {"TF_CPP_MIN_LOG_LEVEL": "3"} | os.environ | {"PYTHONPATH": path, "KERAS_BACKEND": "tensorflow"}
        output = tempfile.TemporaryFile()  # noqa: SIM115
        process = subprocess.Popen(
            # -P: do not search the current folder first: a file there may have the name of a library.
            [sys.executable, "-P", "-m", "fakeface_lab.search.run.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=settings,
            # Ctrl-C reaches only the driver, which decides what to stop; and `kill` reaches what a worker starts.
            start_new_session=True,
        )  # fmt: skip
        theirs.close()
        return cls(process, ours, output)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message; raises OSError if the process has ended."""
        self.connection.send_bytes(json.dumps(message).encode())

    def read_into(self, inbox: Inbox) -> None:
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

    def explain_exit(self) -> str:
        """Return how the process has ended, with the last line that it has printed."""
        code = self.process.returncode
        if code == -9:
            return "worker process was killed (signal 9): most likely out of memory"
        self.output.seek(0)
        tail = self.output.read().decode(errors="replace").strip()[-_OUTPUT_TAIL_CHARS:].splitlines()
        how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"worker process {how}" + (f": {tail[-1]}" if tail else "")


_ahead: list[Worker] = []


@contextmanager
def launched_ahead() -> Iterator[None]:
    """Have a worker for the first that takes one: it loads TensorFlow at the same time as this process."""
    _ahead.append(Worker.launch())
    try:
        yield
    finally:
        while _ahead:
            _ahead.pop().kill()


def take_worker() -> Worker:
    """Return a worker process that has not been sent anything."""
    while _ahead:
        if (worker := _ahead.pop()).process.poll() is None:
            return worker
    return Worker.launch()


def _read(connection: Connection, inbox: "queue.Queue[dict[str, Any]]") -> None:
    try:
        while True:
            inbox.put(json.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        # The driver is gone, perhaps killed. Finished epochs are in the checkpoint; nothing may run on unattended, and
        # nothing that the user's code has started: this process leads a session of its own.
        os.killpg(os.getpgrp(), signal.SIGKILL)


def main(argv: list[str]) -> int:
    """Work until the driver closes the socket whose file descriptor is the only argument."""
    connection = Connection(int(argv[0]))
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()

    with suppress(OSError):  # Linux: if memory runs out, a worker is killed and not its driver
        Path("/proc/self/oom_score_adj").write_text("1000")
    # After the reader has started: it takes seconds, in which the driver may die, or get ready.
    with silent_stderr(), loading_libraries():  # what is printed last is taken for the reason of a death
        import tensorflow  # noqa: F401

    needed = inbox.get()
    if needed["gpu"] is not None:  # is read when TensorFlow looks for devices, which `backend` lets it do
        os.environ["CUDA_VISIBLE_DEVICES"] = needed["gpu"]
    from fakeface_lab.backend import keras, set_up_process
    from fakeface_lab.search.run.attempt import Reporter, make_attempt
    from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
    from fakeface_lab.search.run.engine import Assignment

    set_up_process(needed["num_threads"])
    work = unpickle_mapped(Path(needed["work"]))
    # Keras collects garbage before and after each training: half a second each in what the libraries hold.
    gc.freeze()
    reporter = Reporter(lambda message: connection.send_bytes(json.dumps(message).encode()), _STEP_SECS)
    reporter.send(kind="ready")
    while True:
        order = inbox.get()
        url = order["checkpoints"]
        ended = make_attempt(
            work, Assignment(**order["assignment"]), Path(order["folder"]), reporter,
            memory_bytes=needed["memory_bytes"], storage=CheckpointStorage(url) if url else None,
        )  # fmt: skip
        reporter.send(**ended)
        keras.backend.clear_session()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
