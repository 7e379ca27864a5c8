"""Program of a worker process: does one assignment after another, and exits when its driver is gone.

Started by `local_engine` with an inherited socket, not by hand.
"""

import gc
import json
import os
import queue
import signal
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

__all__ = ["main"]

_STEP_SECS = 0.2


def _read(connection: Connection, inbox: "queue.Queue[dict[str, Any]]") -> None:
    try:
        while True:
            inbox.put(json.loads(connection.recv_bytes()))
    except (EOFError, OSError):
        # The driver is gone, perhaps killed. Finished epochs are in the checkpoint; nothing may run on unattended, and
        # nothing that the user's code has started: this process leads a session of its own.
        os.killpg(os.getpgrp(), signal.SIGKILL)


def main(argv: list[str]) -> int:
    """Work until the driver closes the socket.

    Arguments: file descriptor, path of the work, number of threads, most bytes of memory (0: no limit).
    """
    descriptor, work_path, num_threads, memory_bytes = int(argv[0]), Path(argv[1]), int(argv[2]), int(argv[3])
    connection = Connection(descriptor)
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()

    with suppress(OSError):  # Linux: if memory runs out, a worker is killed and not its driver
        Path("/proc/self/oom_score_adj").write_text("1000")
    # After the reader has started: loading TensorFlow takes seconds, in which the driver may die.
    from fakeface_lab.backend import keras, set_up_process
    from fakeface_lab.files import unpickle_mapped
    from fakeface_lab.search.run.attempt import Reporter, make_attempt
    from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
    from fakeface_lab.search.run.engine import Assignment
    from fakeface_lab.training.checkpoint import keep_memory

    set_up_process(num_threads)
    keep_memory()
    work = unpickle_mapped(work_path)
    # Keras collects garbage before and after each training: half a second each in what the libraries hold.
    gc.freeze()
    reporter = Reporter(lambda message: connection.send_bytes(json.dumps(message).encode()), _STEP_SECS)
    reporter.send(kind="ready")
    while True:
        order = inbox.get()
        url = order["checkpoints"]
        ended = make_attempt(
            work, Assignment(**order["assignment"]), Path(order["folder"]), reporter,
            memory_bytes=memory_bytes or None, storage=CheckpointStorage(url) if url else None,
        )  # fmt: skip
        reporter.send(**ended)
        keras.backend.clear_session()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
