"""Counts what a process writes, and ends it with SIGKILL right before or right after one of these writes.

`sitecustomize` of a folder on `PYTHONPATH` calls `install_from_environment` before the program starts, in the driver
and in every worker it starts. What is counted: `store`, each commit of a transaction that changed the tracking store
or the model registry and each call that changes artifacts; `disk` and `worker`, each call that makes, replaces or
removes a file below the project folder, in the driver or in its workers. A file opened for writing is one write, and
empty right after it; what is written into it then belongs to the time before the next one.
"""

import builtins
import fcntl
import io
import json
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["Cut", "Kind", "install_from_environment", "read_log", "write_hook"]

Kind = Literal["store", "disk", "worker"]

_VARIABLE = "CUT_AT_WRITE"
_HOOK = "from tests.write_counter import install_from_environment\n\ninstall_from_environment()\n"
_FRAMES = 3
_PASSING_ON = ("write", "set_tags", "set_status", "log_params")  # of `StoredRun`: who calls them says more
_os_open, _os_kill = os.open, os.kill


@dataclass(frozen=True)
class Cut:
    """Where a life ends.

    Attributes:
        kind: which writes are counted.
        at: number of the write, from 1; 0 lets the life go on.
        when: whether that write is still carried out.
        root: the project folder.
        log: file to which each write adds a line.
        with_driver: a worker takes its driver with it.
        match: regular expression; only writes whose line in the log it finds are counted.
    """

    kind: Kind
    at: int
    when: Literal["before", "after"]
    root: str
    log: str
    with_driver: bool = False
    match: str = ""

    def environment(self, hook: Path) -> dict[str, str]:
        """Return the variables that arm a process and its children; `hook` is a folder made by `write_hook`."""
        places = [str(hook), str(Path(__file__).parents[1])]
        return {_VARIABLE: json.dumps(asdict(self)), "PYTHONPATH": os.pathsep.join(places)}


def write_hook(folder: Path) -> Path:
    """Write the module that Python imports at its start, and return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_HOOK)
    return folder


def read_log(path: Path, match: str = "") -> list[str]:
    """Return what the writes were, in their order."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if re.search(match, line)]


def install_from_environment() -> None:
    """Count the writes of this process if the environment asks for it."""
    text = os.environ.get(_VARIABLE)
    if text is None:
        return
    counter = _Counter(Cut(**json.loads(text)))
    is_worker = "fakeface_lab.search.run.worker" in sys.orig_argv
    if counter.cut.kind == "store" and not is_worker:
        _count_store(counter)
    if counter.cut.kind == ("worker" if is_worker else "disk"):
        _count_disk(counter)


class _Counter:
    def __init__(self, cut: Cut) -> None:
        self.cut = cut
        self._lock = threading.Lock()

    @contextmanager
    def counted(self, label: str) -> Iterator[None]:
        """Count the write done inside, and die before or after it if it is the one."""
        is_last = self._is_last(f"{_masked(label)} <- {_callers()}")
        if is_last and self.cut.when == "before":
            self._die()
        try:
            yield
        finally:  # a call that fails is none, but counted
            if is_last:
                self._die()

    def _is_last(self, label: str) -> bool:
        # In a file, because a search may start several workers one after the other.
        with self._lock:
            descriptor = _os_open(self.cut.log, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            earlier = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode().splitlines()
            line = f"{1 + len(earlier)} {label}"
            os.write(descriptor, f"{line}\n".encode())
            os.close(descriptor)
        matching = [one for one in [*earlier, line] if re.search(self.cut.match, one)]
        return len(matching) == self.cut.at and matching[-1] == line

    def _die(self) -> None:
        if self.cut.with_driver:
            _os_kill(os.getppid(), signal.SIGKILL)
        _os_kill(os.getpid(), signal.SIGKILL)


def _count_store(counter: _Counter) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from sqlalchemy import event
    from sqlalchemy.engine import Engine
    from sqlalchemy.engine.default import DefaultDialect

    changes = threading.local()

    @event.listens_for(Engine, "before_cursor_execute")
    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        words = re.match(r"\s*(INSERT|UPDATE|DELETE)\s+(?:INTO\s+|FROM\s+|OR \w+ INTO\s+)?(\w+)", statement)
        if words:
            changes.found = [*getattr(changes, "found", []), f"{words[1]} {words[2]}"]

    commit: Callable[..., None] = DefaultDialect.do_commit
    rollback: Callable[..., None] = DefaultDialect.do_rollback

    def do_commit(dialect: DefaultDialect, connection: Any) -> None:
        found, changes.found = Counter(getattr(changes, "found", [])), []
        if not found:
            commit(dialect, connection)
            return
        with counter.counted(", ".join(f"{what} x{count}" for what, count in found.items())):
            commit(dialect, connection)

    def do_rollback(dialect: DefaultDialect, connection: Any) -> None:
        changes.found = []
        rollback(dialect, connection)

    DefaultDialect.do_commit, DefaultDialect.do_rollback = do_commit, do_rollback  # type: ignore[method-assign]
    for name in ("log_artifact", "log_artifacts", "delete_artifacts"):
        setattr(LocalArtifactRepository, name, _counting(counter, name, getattr(LocalArtifactRepository, name)))


def _counting(counter: _Counter, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def call(repository: Any, *words: Any, **named: Any) -> Any:
        with counter.counted(f"{name} {Path(repository.artifact_dir).name}"):
            return method(repository, *words, **named)

    return call


def _count_disk(counter: _Counter) -> None:
    root = counter.cut.root + os.sep

    def place(path: Any, dir_fd: int | None = None) -> str | None:
        """Return a path relative to the project, None if it is elsewhere or the store's own."""
        if isinstance(path, int):
            return None
        folder = Path.cwd() if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink()
        # Not resolved: a link is a file of its own.
        whole = os.path.normpath(folder / os.fsdecode(path))
        is_ours = whole.startswith(root) and not whole.startswith((root + "mlflow.db", root + "log"))
        return whole.removeprefix(root) if is_ours else None

    def count(module: Any, name: str, which: int) -> None:
        """Count the calls of one function of `os` whose argument number `which` is a path of ours."""
        function = getattr(module, name)

        def call(*words: Any, **named: Any) -> Any:
            where = place(words[which], named.get("dir_fd"))
            if where is None or (name == "open" and not words[1] & os.O_CREAT):
                return function(*words, **named)
            with counter.counted(f"os.{name} {where}"):
                return function(*words, **named)

        setattr(module, name, call)

    for name, which in [("replace", 1), ("rename", 1), ("link", 1), ("unlink", 0), ("remove", 0), ("rmdir", 0),
                        ("mkdir", 0), ("open", 0)]:  # fmt: skip
        count(os, name, which)
    open_file = builtins.open

    def open_counted(file: Any, mode: str = "r", *words: Any, **named: Any) -> Any:
        where = place(file) if set(mode) & set("wax+") else None
        if where is None:
            return open_file(file, mode, *words, **named)
        with counter.counted(f"open({mode}) {where}"):
            return open_file(file, mode, *words, **named)

    builtins.open = io.open = open_counted


def _masked(label: str) -> str:
    return re.sub(r"[0-9a-f]{32}", lambda found: found[0][:4], label)


def _callers() -> str:
    """Return the innermost functions of the project on the stack."""
    frame, found = sys._getframe(1), list[str]()
    while frame is not None and len(found) < _FRAMES:
        path = Path(frame.f_code.co_filename)
        passes_on = path.name in ("writer.py", "terminal.py") or frame.f_code.co_name in _PASSING_ON
        if "fakeface_lab" in path.parts and not passes_on:
            found.append(f"{path.name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back  # type: ignore[assignment]
    return " <- ".join(found)
