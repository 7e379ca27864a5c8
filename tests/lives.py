"""Lives of a program: started, killed where a `Cut` says, and started again until it ends.

Processes are forked from one that has loaded TensorFlow and never used it, and a store with empty tables is copied:
loading takes longer than a small search. TensorFlow runs without graphs, whose tracing takes most of so short a
training. Workers are always programs of their own.
"""

import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from tests.write_counter import Cut, install_from_environment, read_log

__all__ = ["Lives", "in_child", "prepare"]

_LIFE_SECS = 600  # a life that takes longer hangs
_MAX_STARTS = 3  # of a life that ends with an error of its own
Program = Literal["tune", "baseline"]


@dataclass(frozen=True)
class Lives:
    """How a program is run, killed and compared.

    Attributes:
        program: which one.
        words: its command line; `resumed` is added in later lives.
        folder: holds one project folder a k.
        hook: folder with the module that arms a process.
        cold: whether each life is a program of its own rather than a fork of this one.
        variables: further environment; with `MLFLOW_TRACKING_URI` the store is no file in the project folder.
    """

    program: Program
    words: list[str]
    resumed: list[str]
    folder: Path
    hook: Path
    cold: bool
    variables: dict[str, str] = field(default_factory=dict)

    def run(
        self, name: str, cuts: list[Cut], look: Callable[[Path], list[str]] = lambda project: []
    ) -> tuple[Path, list[str], list[str]]:
        """Run to the end through all cuts; return the project folder, the writes at the cuts, and the errors.

        Args:
            name: of the project folder, which is made anew.
            cuts: where the lives end, the last one excepted.
            look: called after each cut; returns what is wrong then.
        """
        project = self.folder / name
        shutil.rmtree(project, ignore_errors=True)
        (project / "experiments").mkdir(parents=True)
        if "MLFLOW_TRACKING_URI" not in self.variables:
            shutil.copy(self.folder / "empty.db", project / "mlflow.db")
        labels, errors = [], list[str]()
        undisturbed = Cut("store", 0, "after", str(project), str(project / "log-end"))
        num_failures = 0
        lives = [*(replace(cut, root=str(project), log=str(project / "log-writes")) for cut in cuts), undisturbed]
        while lives and num_failures < _MAX_STARTS:
            cut = lives.pop(0)
            Path(cut.log).unlink(missing_ok=True)
            code = self._live(project, cut)
            killed = cut.kind != "worker" or cut.with_driver
            if cut.at and len(writes := read_log(Path(cut.log), cut.match)) >= cut.at:
                labels.append(writes[cut.at - 1])
                errors += [f"at {labels[-1]}: {line}" for line in look(project)]
                if killed != (code == -signal.SIGKILL):
                    errors.append(f"killed at {labels[-1]!r}, it ended with {code}: {_last_line(project)}")
            elif code == 0:
                break
            else:
                num_failures += 1
                errors.append(f"ended with {code}: {_last_line(project)}")
                lives.insert(0, undisturbed)
        return project, labels, errors

    def _live(self, project: Path, cut: Cut) -> int:
        """Run one life and return its exit code, negative for a signal."""
        words = self.words + (self.resumed if (project / "log.txt").exists() else [])
        variables = cut.environment(self.hook) | {"FAKEFACE_CACHE": str(self.folder / "cache"), "COLUMNS": "200"}
        process = _started(self.program, words, project, variables | self.variables, self.cold)
        code = _waited(process)
        _wait_for_workers(project)
        return code


def _started(
    program: Program, words: list[str], project: Path, variables: dict[str, str], cold: bool
) -> psutil.Process:
    """Start a program in its project folder, in a process group of its own."""
    foreign = ("MLFLOW_TRACKING", "MLFLOW_EXPERIMENT", "FAKEFACE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | variables
    log = os.open(project / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        if cold:
            command = [sys.executable, "-m", f"fakeface_lab.{program}", *words]
            return psutil.Popen(
                command, cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _become(program, words, project, environment, log)
        return psutil.Process(pid)
    finally:
        os.close(log)


def _become(program: Program, words: list[str], project: Path, environment: dict[str, str], log: int) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(project)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(environment)
        # As Python does it at the start of a program.
        sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
        sys.argv = [program, *words]
        install_from_environment()
        code = importlib.import_module(f"fakeface_lab.{program}").main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _waited(process: psutil.Process) -> int:
    """Return the exit code of a process, which is killed when it takes too long."""
    try:
        return int(process.wait(_LIFE_SECS))
    except psutil.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return 124


def _wait_for_workers(project: Path) -> None:
    """Wait until the workers of a killed driver have noticed; they end themselves."""
    deadline = time.monotonic() + 10
    while any(_is_worker_in(project, process) for process in psutil.process_iter()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"workers of {project} outlived their driver by 10 s")
        time.sleep(0.05)


def _is_worker_in(project: Path, process: psutil.Process) -> bool:
    try:
        return "fakeface_lab.search.run.worker" in process.cmdline() and Path(process.cwd()) == project.resolve()
    except psutil.Error:
        return False


def _last_line(project: Path) -> str:
    lines = (project / "log.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no word"


def in_child(action: Callable[[], Any]) -> Any:
    """Return what `action` returns, done in a process of its own: MLflow starts threads, and threads do not fork."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "w") as pipe:
                json.dump(action(), pipe)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    if os.waitpid(pid, 0)[1] != 0:
        raise RuntimeError("reading a search failed")
    return json.loads(text)


def prepare(folder: Path) -> None:
    """Load what a life needs, and make the tables that it starts from."""

    def make_tables() -> None:
        from fakeface_lab.tracking.store import open_store

        with tempfile.TemporaryDirectory() as scratch:
            open_store(None, Path(scratch), "Default")
            shutil.copy(Path(scratch) / "mlflow.db", folder / "empty.db")

    for name in ("fakeface_lab.baseline", "fakeface_lab.detector.work", "fakeface_lab.search.run.local_engine",
                 "fakeface_lab.detector.search", "tests.search_state", "matplotlib.backends.backend_agg",
                 "mlflow.keras", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store"):  # fmt: skip
        importlib.import_module(name)
    from fakeface_lab.backend import tf

    tf.config.run_functions_eagerly(True)
    gc.freeze()  # Keras collects garbage after each training: half a second for what is loaded here
    if not (folder / "empty.db").exists():
        in_child(make_tables)
