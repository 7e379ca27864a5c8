"""The engine that trains on a Ray cluster: each assignment is a task, which Ray places, starts and ends.

Nothing is expected of the nodes' disks. A task is given the run's folder as objects, works in a folder of its own, and
streams back its messages and, at the end, its folder. The ledger counts attempts, so Ray retries nothing. A task whose
driver is gone is ended by Ray.
"""

import os
import queue
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from fakeface_lab.search.run.engine import Assignment, Event, Handler, Work, handle_pending, unheard
from fakeface_lab.tracking.owner import OWNERS

__all__ = ["RayEngine", "share"]

# Each message is an object of Ray's, which costs about a millisecond.
_STEP_SECS = 1.0
_PART_BYTES = 32 << 20
# A task waits while this many messages have not been read: parts of a large file must not fill the object store.
_MAX_UNREAD = 16
# Written last: it marks a training as finished. Before it the checkpoint, which needs its weights.
_LAST = ("epoch.ckpt", "outcome.json")


def share(work: Work) -> Any:
    """Give a work to Ray, which sends it once to each node that needs it; return Ray's reference."""
    import ray

    # As plain arrays, which Ray shares among the processes of a node; of a mapped file each would get a copy.
    ray.util.register_serializer(
        np.memmap, serializer=lambda mapped: np.asarray(mapped).view(np.ndarray), deserializer=lambda array: array
    )
    return ray.put(work)


@dataclass
class _Task:
    """A task and what is known about it."""

    key: str
    folder: Path
    stream: Any  # ray.ObjectRefGenerator
    last_heard: float | None = None  # None while it waits for a node
    is_discarded: threading.Event = field(default_factory=threading.Event)


class RayEngine:
    """Trains as tasks of Ray; the process is connected to a cluster, see `placement.connect`.

    Args:
        shared_work: what is trained, as `share` returns it.
        num_trials: assignments that Ray is given at the same time; those that no node has room for wait.
        num_threads: of each.
        hang_secs: a task that has begun and then makes no training step for this long is ended.
        num_cpus: of each, for Ray's scheduling.
        num_gpus: of each.
        memory_bytes: what an assignment may use, also for scheduling; None for no limit.
        storage: where checkpoints are copied to; None for nowhere.
    """

    def __init__(
        self,
        shared_work: Any,
        *,
        num_trials: int,
        num_threads: int,
        hang_secs: float,
        num_cpus: float,
        num_gpus: float,
        memory_bytes: int | None,
        storage: CheckpointStorage | None,
    ) -> None:
        import ray

        self.handler: Handler = unheard
        self._num_trials, self._hang_secs, self.storage = num_trials, hang_secs, storage
        self._tasks: dict[str, _Task] = {}
        self._inbox: queue.SimpleQueue[tuple[_Task, Mapping[str, Any]]] = queue.SimpleQueue()
        self._work = shared_work
        self._settings = {
            "num_threads": num_threads,
            "memory_bytes": memory_bytes,
            "checkpoints": storage.url if storage else None,
        }
        # TensorFlow takes a number of threads once per process: Ray gives each environment its own processes.
        variables = {"FAKEFACE_NUM_THREADS": str(num_threads)}
        if not num_gpus:  # Ray would leave all GPUs visible
            variables["CUDA_VISIBLE_DEVICES"] = ""
        # TensorFlow keeps the GPU that its process has begun with: the next trial may get another one.
        self._remote = ray.remote(max_calls=1 if num_gpus else 0)(_train).options(
            num_returns="streaming",
            max_retries=0,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            memory=memory_bytes,
            runtime_env={"env_vars": variables},
            _generator_backpressure_num_objects=_MAX_UNREAD,
        )

    def num_free(self) -> int:
        """Return how many more assignments Ray may be given."""
        return self._num_trials - len(self._tasks)

    def start(self, assignment: Assignment, folder: Path) -> None:
        """Give the assignment to Ray, with the files of its folder."""
        import ray

        files = {name: [ray.put(part) for part in _parts(path)] for name, path in _files(folder).items()}
        stream = self._remote.remote(self._work, assignment, folder.name, files, self._settings)
        task = self._tasks[assignment.key] = _Task(assignment.key, folder, stream)
        threading.Thread(target=self._follow, args=(task,), daemon=True).start()

    def wait(self, timeout_secs: float) -> None:
        """Handle all pending messages, losses and hangs."""
        handle_pending(self._inbox, timeout_secs, lambda received: self._receive(*received))
        for task in list(self._tasks.values()):
            if task.last_heard is not None and time.monotonic() - task.last_heard > self._hang_secs:
                self.cancel(task.key, f"hung: no training step for {self._hang_secs:.0f} s")

    def cancel(self, key: str, reason: str) -> None:
        """End the task of an assignment."""
        if key in self._tasks:
            self._discard(self._tasks[key])
            self.handler(Event(key, "died", reason=reason))

    def stop(self) -> None:
        """End all tasks."""
        for task in list(self._tasks.values()):
            self._discard(task)

    def _discard(self, task: _Task) -> None:
        import ray

        del self._tasks[task.key]
        task.is_discarded.set()
        ray.cancel(task.stream, force=True)

    def _follow(self, task: _Task) -> None:
        """Queue the messages of a task, and write the files that it sends to the folder of its run.

        Runs on its own thread: a task must not wait while the driver is busy, nor the driver for files.
        """
        import ray

        try:
            for reference in task.stream:
                message = ray.get(reference)
                del reference  # what has been read need not stay in the object store
                task.last_heard = time.monotonic()
                if message["kind"] == "file":
                    _write_part(task, message)
                else:
                    self._inbox.put((task, message))
        except Exception as err:  # of Ray, or of this machine's disk
            self._inbox.put((task, _as_fault(err)))

    def _receive(self, task: _Task, message: Mapping[str, Any]) -> None:
        from fakeface_lab.search.run.attempt import as_event

        if self._tasks.get(task.key) is not task or message["kind"] == "ready":
            return
        if message["kind"] == "overgrown":
            self.cancel(task.key, message["reason"])
            return
        event = as_event(task.key, message)
        if event.kind not in ("step", "epoch", "print"):
            del self._tasks[task.key]
        self.handler(event)


def _as_fault(err: Exception) -> dict[str, Any]:
    """Return the message for an error with which a task has ended."""
    from ray import exceptions

    first_line = next((line for line in str(err).splitlines() if line.strip()), type(err).__name__)
    if isinstance(err, exceptions.OutOfMemoryError):
        return {"kind": "died", "reason": "out of memory: its node ran full, and Ray killed it"}
    if isinstance(err, exceptions.WorkerCrashedError):
        return {"kind": "died", "reason": "worker process died; Ray's logs on its node say more"}
    # A node that is lost takes the objects with it that it has not sent yet.
    if isinstance(err, exceptions.NodeDiedError | exceptions.ObjectLostError | exceptions.RaySystemError):
        return {"kind": "lost", "reason": f"its node was lost ({type(err).__name__})"}
    if isinstance(err, exceptions.RayTaskError):  # not of the training, whose errors are messages
        cause = getattr(err, "cause", None)
        return {"kind": "invalid", "reason": f"{type(cause).__name__}: {cause}" if cause else first_line}
    return {"kind": "disturbed", "reason": f"{type(err).__name__}: {first_line}"}


def _files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by relative name, in the order in which they may be written."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    whole = (name for name in found if not name.endswith(".partial") and name != OWNERS)
    order = {name: number for number, name in enumerate(_LAST, 1)}
    return {name: found[name] for name in sorted(whole, key=lambda name: (order.get(Path(name).name, 0), name))}


def _parts(path: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """Return the bytes of a file, in parts; an empty file has one."""
    with path.open("rb") as file:
        yield np.frombuffer(file.read(_PART_BYTES), np.uint8)
        while part := file.read(_PART_BYTES):
            yield np.frombuffer(part, np.uint8)


def _write_part(task: _Task, message: Mapping[str, Any]) -> None:
    """Append a part to a file of the run's folder, which gets its name when it is whole."""
    if task.is_discarded.is_set():  # the next attempt may already use the folder
        return
    path = task.folder / message["name"]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb" if message["is_first"] else "ab") as file:
        file.write(message["part"].data)
    if message["is_last"]:
        partial.replace(path)


def _train(
    work: Work, assignment: Assignment, run_id: str, files: Mapping[str, list[Any]], settings: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Do an assignment on a node: yield its messages, then the files of its folder, then how it ended."""
    import ray

    from fakeface_lab.backend import keras, set_up_process
    from fakeface_lab.search.run.attempt import Reporter, make_attempt

    set_up_process(settings["num_threads"])
    _end_forks_with_this_process()
    yield {"kind": "ready"}
    parent = Path(tempfile.mkdtemp(prefix="fakeface-trial-"))
    folder = parent / run_id
    folder.mkdir()
    messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def attempt() -> None:
        url = settings["checkpoints"]
        try:
            ended = dict(make_attempt(
                work, assignment, folder, Reporter(lambda message: messages.put(dict(message)), _STEP_SECS),
                memory_bytes=settings["memory_bytes"], storage=CheckpointStorage(url) if url else None,
            ))  # fmt: skip
        except BaseException as err:  # `sys.exit` in the user's code, which would end a worker process
            ended = {"kind": "died", "reason": f"{type(err).__name__}: {err}"}
        messages.put({**ended, "is_end": True})
        keras.backend.clear_session()

    try:
        for name, references in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for part in ray.get(references):
                    file.write(part.data)
        # The training has a thread of its own, because only this one can yield.
        threading.Thread(target=attempt, daemon=True).start()
        while not (message := messages.get()).pop("is_end", False):
            yield message
        yield from _sent_files(folder)
        yield message
    finally:
        shutil.rmtree(parent, ignore_errors=True)


@cache  # once per process
def _end_forks_with_this_process() -> None:
    """Let no process that the user's code forks outlive this one: it holds open what tells Ray of a death."""

    def watch(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(_STEP_SECS)
        os.kill(os.getpid(), signal.SIGKILL)

    os.register_at_fork(after_in_child=lambda: threading.Thread(target=watch, args=[os.getppid()], daemon=True).start())


def _sent_files(folder: Path) -> Iterator[dict[str, Any]]:
    for name, path in _files(folder).items():
        left_bytes, is_first = path.stat().st_size, True
        for part in _parts(path):
            left_bytes -= part.nbytes
            yield {"kind": "file", "name": name, "part": part, "is_first": is_first, "is_last": left_bytes == 0}
            is_first = False
