"""Program of a worker process: does one assignment after the other, and ends when its driver is gone.

Started by `engines.LocalEngine` with an inherited socket; not meant to be called by hand.
"""

import json
import os
import queue
import sys
import threading
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fakeface_lab.errors import FakefaceLabError

__all__ = ["main"]


class _Reporter:
    """Sends steps and epochs to the driver as JSON."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, **message: Any) -> None:
        self._connection.send_bytes(json.dumps(message).encode())

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        self.send(kind="step", epoch=epoch, step=step, num_steps=num_steps)

    def epoch_ended(self, record: Any) -> None:
        self.send(kind="epoch", record=asdict(record))


def _read(connection: Connection, inbox: "queue.Queue[dict[str, Any]]") -> None:
    try:
        while True:
            inbox.put(json.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        # The driver is gone, perhaps killed. What is finished is in the checkpoint; nothing must go on training.
        os._exit(1)


def main(argv: list[str]) -> int:
    """Work until told to stop; arguments: file descriptor, path of the work, number of threads."""
    descriptor, work_path, num_threads = int(argv[0]), Path(argv[1]), int(argv[2])
    connection = Connection(descriptor)
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()

    # After the reader: loading TensorFlow takes seconds in which the driver may die.
    import psutil

    from fakeface_lab.backend import keras, set_up_process, tf
    from fakeface_lab.search.work import Assignment, load_work

    set_up_process(num_threads)
    work = load_work(work_path)
    reporter = _Reporter(connection)
    reporter.send(kind="ready")
    while True:
        order = inbox.get()
        try:
            work(Assignment(**order["assignment"]), Path(order["folder"]), reporter)
        except (MemoryError, tf.errors.ResourceExhaustedError) as err:
            reporter.send(kind="died", reason=f"out of memory: {str(err).splitlines()[0] if str(err) else 'no detail'}")
        except FakefaceLabError as err:
            reporter.send(kind="failed", reason=str(err))
        except Exception as err:  # a fault in the model or its data: the same again in every attempt
            import traceback

            traceback.print_exc()
            first_line = (str(err).splitlines() or [""])[0]
            reporter.send(kind="failed", reason=f"{type(err).__name__}: {first_line}")
        else:
            reporter.send(kind="done", rss_bytes=psutil.Process().memory_info().rss)
        keras.backend.clear_session()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
