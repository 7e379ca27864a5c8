"""One attempt at an assignment, as a worker of any kind makes it: it trains, and tells its driver by messages.

A message is a mapping that survives JSON. Its `kind` is `ready`, `step`, `epoch`, `print`, `done`, `overgrown` (the
trial uses more memory than it may; the engine ends the worker) or a fault as in `kind_of_fault`.
"""

import io
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from fakeface_lab.backend import keras
from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from fakeface_lab.search.run.engine import Assignment, Event, Work
from fakeface_lab.training.epochs import EpochRecord
from fakeface_lab.training.faults import explain_fault, keep_traceback, kind_of_fault

__all__ = ["Reporter", "as_event", "make_attempt"]

Message = Mapping[str, Any]

_MEMORY_POLL_SECS = 0.2


class Reporter:
    """A listener that turns what it is told into messages.

    Args:
        send: takes a message; called from any thread.
        step_secs: shortest time between two steps that are sent: they are only shown on a status line, and tiny
            networks take thousands per second.
    """

    def __init__(self, send: Callable[[Message], None], step_secs: float) -> None:
        self._send, self._step_secs = send, step_secs
        self._lock = threading.Lock()
        self._last_step = -math.inf

    def send(self, **message: Any) -> None:
        """Send a message."""
        with self._lock:  # the user's code may print in threads of its own
            self._send(message)

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        """Send a step, unless another one was sent just before."""
        now = time.monotonic()
        if now - self._last_step >= self._step_secs:
            self._last_step = now
            self.send(kind="step", epoch=epoch, step=step, num_steps=num_steps)

    def epoch_ended(self, record: EpochRecord) -> None:
        """Send a finished epoch."""
        self.send(kind="epoch", record=asdict(record))


def as_event(key: str, message: Message) -> Event:
    """Return what a message says about an assignment."""
    match message["kind"]:
        case "step":
            return Event(key, "step", step=(message["epoch"], message["step"], message["num_steps"]))
        case "epoch":
            return Event(key, "epoch", record=EpochRecord(**message["record"]))
        case "print":
            return Event(key, "print", line=message["line"])
        case "done":
            return Event(key, "done")
        case kind:
            return Event(key, kind, reason=message["reason"])


def make_attempt(
    work: Work,
    assignment: Assignment,
    folder: Path,
    reporter: Reporter,
    *,
    memory_bytes: int | None,
    storage: CheckpointStorage | None,
) -> Message:
    """Train, and return the message that says how it ended; the messages before it are sent.

    Args:
        work: what is trained.
        assignment: with which values.
        folder: of the run; what an earlier attempt has left there is resumed from.
        reporter: sends the messages.
        memory_bytes: what the trial may use; None for no limit.
        storage: where each epoch's checkpoint is copied to, and resumed from if it is there; None for nowhere.
    """
    printed = _SentLines(reporter)
    output = io.TextIOWrapper(io.BufferedWriter(printed), "utf-8", line_buffering=True)
    try:
        with redirect_stdout(output), _memory_limit(memory_bytes, reporter):
            listener = reporter if storage is None else storage.follow(folder, reporter)
            # What the user's code prints is shown by the driver; Keras's progress bars, a line per step, are not.
            keras.utils.disable_interactive_logging()
            work(assignment, folder, listener)
        message: Message = {"kind": "done", "rss_bytes": psutil.Process().memory_info().rss}
    except Exception as err:
        keep_traceback(err, folder)
        message = {"kind": kind_of_fault(err), "reason": explain_fault(err)}
    output.flush()
    printed.end_line()
    return message


@contextmanager
def _memory_limit(limit_bytes: int | None, reporter: Reporter) -> Iterator[None]:
    """Report once if this process uses more private memory than it may; mapped files are shared and do not count."""
    if limit_bytes is None:
        yield
        return
    has_ended = threading.Event()

    def watch() -> None:
        process = psutil.Process()
        while not has_ended.wait(_MEMORY_POLL_SECS):
            memory = process.memory_info()
            used_bytes = memory.rss - getattr(memory, "shared", 0)
            if used_bytes > limit_bytes:
                text = f"{used_bytes / 1e9:.2f} GB are more than the {limit_bytes / 1e9:.2f} GB of a trial"
                reporter.send(kind="overgrown", reason=f"out of memory: {text}")
                return

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        has_ended.set()
        watching.join()  # what it reports is of this trial, not of the next


class _SentLines(io.RawIOBase):
    """What is written here is sent to the driver, line by line."""

    def __init__(self, reporter: Reporter) -> None:
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
