"""One search and two drivers on simulated machines: separate folders, the same host name, clocks five minutes apart."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from fakeface_lab.search.ledger.heartbeat import WATCH_SECS
from tests.kill_search import PROJECT, faults, run_undisturbed, summary, write_project

# From Debian's package `faketime`; without it both clocks are equal.
CLOCK_AHEAD = ["faketime", "-f", "+5m"] if shutil.which("faketime") else []

Process = subprocess.Popen[str]


class Machine:
    """A project folder whose programs share a store with those of other folders."""

    def __init__(self, config: Path, folder: Path, store: Path, prefix: list[str]) -> None:
        (folder / "experiments").mkdir(parents=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "FAKEFACE_"))}
        self._environment = kept | {
            "PYTHONPATH": str(PROJECT),
            "FAKEFACE_CACHE": str(config.parent / "cache"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{store}",
        }
        self._words = [*prefix, sys.executable, "-m", "fakeface_lab.tune", "--config", str(config)]
        self._folder = folder

    def start(self) -> Process:
        return subprocess.Popen(
            self._words, cwd=self._folder, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_project(tmp_path, "random", workers=1, final_seeds=1, num_trials=16)


@pytest.fixture
def machines(tmp_path: Path, config: Path) -> Iterator[tuple[Machine, Machine]]:
    store = tmp_path / "shared" / "mlflow.db"
    store.parent.mkdir()
    yield (
        Machine(config, tmp_path / "first", store, []),
        Machine(config, tmp_path / "second", store, CLOCK_AHEAD),
    )
    for child in psutil.Process().children(recursive=True):
        child.kill()


def wait_for_trials(store: Path, number: int) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if store.exists():
            client = MlflowClient(f"sqlite:///{store}")
            experiments = [experiment.experiment_id for experiment in client.search_experiments()]
            if len(client.search_runs(experiments, "tags.role = 'trial'")) >= number:
                return
        time.sleep(0.5)
    raise TimeoutError(f"{number} trials")


def suspend(process: Process, store: Path) -> None:
    """Stop a driver between two of its writes: sqlite would stay locked for everyone if it were stopped in one."""
    while True:
        process.send_signal(signal.SIGSTOP)
        try:
            with closing(sqlite3.connect(store, timeout=1)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
            return
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_second_driver_stops_and_says_why(machines: tuple[Machine, Machine], tmp_path: Path, config: Path) -> None:
    first, second = machines
    driving = first.start()
    wait_for_trials(tmp_path / "shared" / "mlflow.db", 1)
    refused = second.start()
    _, errors = refused.communicate(timeout=300)
    assert refused.returncode == 2
    assert f"process {driving.pid} on" in errors
    assert "drives it; wait for that process, or stop it first" in errors
    _, errors = driving.communicate(timeout=600)
    assert driving.returncode == 0, errors
    run_undisturbed(config, tmp_path / "undisturbed")
    assert faults(tmp_path / "shared") == []
    assert summary(tmp_path / "shared") == summary(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_driver_that_was_suspended_and_replaced_stops_and_says_why(
    machines: tuple[Machine, Machine], tmp_path: Path, config: Path
) -> None:
    first, second = machines
    held = first.start()
    wait_for_trials(tmp_path / "shared" / "mlflow.db", 2)
    suspend(held, tmp_path / "shared" / "mlflow.db")
    started = time.monotonic()
    replacing = second.start()
    wait_for_trials(tmp_path / "shared" / "mlflow.db", 3)
    assert time.monotonic() - started > WATCH_SECS
    held.send_signal(signal.SIGCONT)
    _, errors = held.communicate(timeout=300)
    assert held.returncode == 1
    assert "another process has taken it over" in errors
    assert "this one stops" in errors
    _, errors = replacing.communicate(timeout=600)
    assert replacing.returncode == 0, errors
    run_undisturbed(config, tmp_path / "undisturbed")
    assert faults(tmp_path / "shared") == []
    assert summary(tmp_path / "shared") == summary(tmp_path / "undisturbed")
