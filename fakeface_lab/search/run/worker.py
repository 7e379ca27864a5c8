"""Program of a worker process: does one assignment after another, and exits when its driver is gone.

Started by `local_engine` with an inherited socket, not by hand.
"""

import gc
import io
import json
import math
import os
import queue
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

__all__ = ["main"]

# Steps are only shown on a status line; tiny networks take thousands per second.
_STEP_SECS = 0.2


class _Reporter:
    """A listener that sends steps and epochs to the driver as JSON."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._last_step = -math.inf

    def send(self, **message: Any) -> None:
        with self._lock:  # the user's code may print in threads of its own
            self._connection.send_bytes(json.dumps(message).encode())

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        now = time.monotonic()
        if now - self._last_step >= _STEP_SECS:
            self._last_step = now
            self.send(kind="step", epoch=epoch, step=step, num_steps=num_steps)

    def epoch_ended(self, record: Any) -> None:
        self.send(kind="epoch", record=asdict(record))


class _SentLines(io.RawIOBase):
    """What is written here is sent to the driver, line by line."""

    def __init__(self, reporter: _Reporter) -> None:
        super().__init__()
        self._reporter, self._begun = reporter, b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        *lines, self._begun = (self._begun + bytes(data)).split(b"\n")
        for line in lines:
            self._reporter.send(kind="print", line=line.decode("utf-8", "replace"))
        return len(data)

    def end_line(self) -> None:
        """Send what has no line end."""
        if self._begun:
            self.write(b"\n")


def _read(connection: Connection, inbox: "queue.Queue[dict[str, Any]]") -> None:
    try:
        while True:
            inbox.put(json.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        # The driver is gone, perhaps killed. Finished epochs are in the checkpoint; nothing may train on unattended.
        os._exit(1)


def main(argv: list[str]) -> int:
    """Work until the driver closes the socket; arguments: file descriptor, path of the work, number of threads."""
    descriptor, work_path, num_threads = int(argv[0]), Path(argv[1]), int(argv[2])
    connection = Connection(descriptor)
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()

    with suppress(OSError):  # Linux: if memory runs out, a worker is killed and not its driver
        Path("/proc/self/oom_score_adj").write_text("1000")
    # After the reader has started: loading TensorFlow takes seconds, in which the driver may die.
    import psutil

    from fakeface_lab.backend import keras, set_up_process
    from fakeface_lab.files import unpickle_mapped
    from fakeface_lab.search.run.engine import Assignment
    from fakeface_lab.training.faults import explain_fault, keep_traceback, kind_of_fault

    set_up_process(num_threads)
    work = unpickle_mapped(work_path)
    # Keras collects garbage before and after each training: half a second each in what the libraries hold.
    gc.freeze()
    reporter = _Reporter(connection)
    reporter.send(kind="ready")
    # What the user's code prints is shown by the driver; Keras's progress bars, a line per step, are not.
    keras.utils.disable_interactive_logging()
    printed = _SentLines(reporter)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(printed), "utf-8", line_buffering=True)
    while True:
        order = inbox.get()
        ended: dict[str, Any]
        try:
            work(Assignment(**order["assignment"]), Path(order["folder"]), reporter)
            ended = {"kind": "done", "rss_bytes": psutil.Process().memory_info().rss}
        except Exception as err:
            keep_traceback(err, Path(order["folder"]))
            ended = {"kind": kind_of_fault(err), "reason": explain_fault(err)}
        sys.stdout.flush()
        printed.end_line()
        reporter.send(**ended)
        keras.backend.clear_session()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
