"""One search of one side through one fault, on an MLflow server of its own."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import psutil
from curve import EPOCH_SECS, EXPERIMENT, JOURNAL, Trial
from losses import Losses, read_journal, read_losses
from mlflow.tracking import MlflowClient

from tests.lost_replies import proxy
from tests.mlflow_server import Server

__all__ = ["FAULTS", "OUTAGE_SECS", "SIDES", "Fault", "run_cell"]

Fault = Literal["none", "kill", "outage", "lost-reply"]
FAULTS: tuple[Fault, ...] = ("none", "kill", "outage", "lost-reply")
SIDES = ("here", "optuna_mlflow", "optuna_rdb", "ray_tune")
OUTAGE_SECS = 60.0

_FAULT_AFTER_EPOCHS = (18, 28)  # by round: in the third epoch of a trial, in the first epoch of a trial
_MAX_STARTS = 5
_LIFE_SECS = 400.0  # a driver that takes longer hangs
_HERE = Path(__file__).resolve().parent


class NthOfEachKind:
    """Loses the n-th reply to each kind of request."""

    def __init__(self, n: int) -> None:
        self._n, self._seen = n, Counter[str]()

    def __call__(self, kind: str, number: int, is_first: bool) -> bool:
        self._seen[kind] += 1
        return self._seen[kind] == self._n


class Driver:
    """The process that drives a side's search, in the folder of the cell."""

    def __init__(self, side: str, folder: Path, uri: str) -> None:
        self._words, self._folder = [sys.executable, str(_HERE / f"{side}.py")], folder
        self.journal = folder / "epochs.jsonl"
        foreign = ("MLFLOW_TRACKING", "MLFLOW_EXPERIMENT", "MLFLOW_RUN", "FAKEFACE_", "RAY_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        self._environment = kept | {
            "PYTHONPATH": os.pathsep.join([str(_HERE), str(_HERE.parents[1])]),
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "OMP_NUM_THREADS": "1",
            JOURNAL: str(self.journal),
        }
        self.num_starts = 0
        self.start()

    def start(self) -> None:
        """Start it, or start it again."""
        self.num_starts += 1
        with (self._folder / "driver.log").open("ab") as log:
            self.process = psutil.Popen(
                self._words, cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_for_epochs(self, num_epochs: int) -> None:
        """Wait until half an epoch after so many have ended."""
        deadline = time.monotonic() + _LIFE_SECS
        while len(read_journal(self.journal)) < num_epochs:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no {num_epochs} epochs; see {self._folder / 'driver.log'}")
            time.sleep(0.05)
        time.sleep(EPOCH_SECS / 2)

    def kill(self) -> None:
        """End it with SIGKILL, if it still runs, and give what it has started 15 s to notice."""
        if self.process.poll() is not None:
            return
        started = self.process.children(recursive=True)
        self.process.kill()
        self.process.wait()
        for process in psutil.wait_procs(started, timeout=15)[1]:
            process.kill()

    def finish(self) -> bool:
        """Wait for its end, starting it again when it fails; return whether the search came to its end."""
        while True:
            try:
                if self.process.wait(_LIFE_SECS) == 0:
                    return True
            except psutil.TimeoutExpired:
                self.kill()
            if self.num_starts == _MAX_STARTS:
                return False
            self.start()

    def trials(self) -> list[Trial]:
        """Return the trials that the side's own store has."""
        words = [*self._words, "--trials"]
        done = subprocess.run(
            words, cwd=self._folder, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        return [Trial(**trial) for trial in json.loads(done.stdout.splitlines()[-1])]


def run_cell(side: str, fault: Fault, round_number: int, folder: Path) -> Losses:
    """Run a search in an empty folder, disturb it, start it again as often as it takes, and return what was lost."""
    server, log = Server(folder), folder / "requests.log"
    server.start()
    try:
        # Before the faults: a side is not to fail at its first request.
        MlflowClient(server.uri).create_experiment(EXPERIMENT)
        way: AbstractContextManager[str] = nullcontext(server.uri)
        if fault == "lost-reply":
            way = proxy(server.uri, log, "drop", NthOfEachKind(2 + round_number))
        with way as uri:
            driver = Driver(side, folder, uri)
            try:
                _ACTIONS[fault](driver, server, _FAULT_AFTER_EPOCHS[round_number % len(_FAULT_AFTER_EPOCHS)])
                ended = driver.finish()
            finally:
                driver.kill()
            num_lost = log.read_text().count("(lost)") if log.exists() else 0
            num_restarts, trials = driver.num_starts - 1, driver.trials()
        return read_losses(
            server.uri, driver.journal, trials, ended=ended, num_restarts=num_restarts, num_replies_lost=num_lost
        )
    finally:
        server.kill()


def _kill(driver: Driver, _server: Server, num_epochs: int) -> None:
    driver.wait_for_epochs(num_epochs)
    driver.kill()
    driver.start()


def _outage(driver: Driver, server: Server, num_epochs: int) -> None:
    driver.wait_for_epochs(num_epochs)
    server.kill()
    time.sleep(OUTAGE_SECS)
    server.start()


_ACTIONS: dict[Fault, Callable[[Driver, Server, int], None]] = {
    "none": lambda *_: None,
    "kill": _kill,
    "outage": _outage,
    "lost-reply": lambda *_: None,
}
