"""At most one driver per search: in one process, and on two simulated machines with clocks five minutes apart."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fakeface_lab.errors import SearchError, TrackingError
from fakeface_lab.search.ledger import heartbeat
from fakeface_lab.search.ledger.heartbeat import WATCH_SECS, Heartbeat, refuse_second_driver
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.suggest.suggestion import Suggestion
from fakeface_lab.tracking.store import Store, open_store
from fakeface_lab.tracking.writer import PatientWriter
from tests.kill_search import PROJECT, faults, run_undisturbed, summary, write_project
from tests.mlflow_server import Server
from tests.search.curve_work import open_ledger
from tests.service import kill_family


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECS", 0.2)
    monkeypatch.setattr(heartbeat, "WATCH_SECS", 2.0)


@pytest.fixture
def elsewhere(store: Store, tmp_path: Path) -> Store:
    """The same store used from another project folder, as from another machine."""
    (tmp_path / "elsewhere").mkdir()
    return replace(store, project=tmp_path / "elsewhere")


def test_the_heartbeat_counts_time_and_ends_with_an_empty_tag(store: Store) -> None:
    parent = open_ledger(store).parent
    for _ in range(2):
        with Heartbeat(parent) as beating:
            time.sleep(0.2)
    tags = store.client.get_run(parent.run_id).data.tags
    assert tags["driver"] == ""
    assert 0.4 <= float(tags["used_secs"]) <= beating.used_secs()


@pytest.mark.usefixtures("quick")
def test_the_heart_beats(store: Store) -> None:
    parent = open_ledger(store).parent
    seen: set[str] = set()
    with Heartbeat(parent):
        deadline = time.monotonic() + 20
        while len(seen) < 3 and time.monotonic() < deadline:
            seen.add(store.client.get_run(parent.run_id).data.tags["driver"])
            time.sleep(0.05)
    assert len(seen) == 3


@pytest.mark.usefixtures("quick")
def test_a_driver_elsewhere_is_recognized_by_its_heartbeat(store: Store, elsewhere: Store) -> None:
    ledger = open_ledger(store)
    with Heartbeat(ledger.parent), pytest.raises(SearchError, match=r"search 'curves': process .* drives it; wait for"):
        open_ledger(elsewhere)
    ledger.parent.require_owned()


def test_a_driver_is_not_replaced_because_the_server_was_away(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECS", 1.0)
    monkeypatch.setattr(heartbeat, "WATCH_SECS", 3.0)
    store = open_store(server.uri, tmp_path, "away")
    parent = open_ledger(store).parent

    def be_away(notice: str) -> None:
        if "watching its heartbeat" in notice:
            outage = server.suspended()
            outage.__enter__()
            # Not for 5 s, after which the server closes connections: both drivers are answered at the same time.
            threading.Timer(4, outage.__exit__, (None, None, None)).start()

    (tmp_path / "elsewhere").mkdir()
    with Heartbeat(parent), pytest.raises(SearchError, match="drives it"):
        refuse_second_driver(replace(store, project=tmp_path / "elsewhere"), PatientWriter(60, be_away), parent.read())


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_silent_driver_elsewhere_is_replaced_and_notices_it(store: Store, elsewhere: Store) -> None:
    old = open_ledger(store)
    trial = old.create(Suggestion({"x": 0.0}), "t000", {})
    Heartbeat(old.parent).__enter__().stop_beating()  # as if suspended: SIGSTOP, a sleeping laptop
    program = (
        "import sys; from pathlib import Path\n"
        "from fakeface_lab.search.ledger import heartbeat; from tests.search.curve_work import open_ledger\n"
        "from fakeface_lab.tracking.store import open_store\n"
        "heartbeat.WATCH_SECS = 1.0\n"
        "ledger = open_ledger(open_store(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))\n"
        "print(len(ledger.trials), 'trial')\n"
    )
    words = [sys.executable, "-c", program, store.uri, str(elsewhere.project), store.experiment_name]
    assert "1 trial" in subprocess.run(words, check=True, capture_output=True, text=True, cwd=PROJECT).stdout
    writes: list[Callable[[], object]] = [
        lambda: old.create(Suggestion({"x": 1.0}), "t001", {}),
        lambda: old.end(trial, "finished", 1.0),
        old.parent.require_owned,
    ]
    for write in writes:
        with pytest.raises(TrackingError, match=r"run curves: another process has taken it over .*; this one stops"):
            write()
    assert len(Ledger(old.parent).trials) == 1
    assert "outcome" not in store.client.get_run(trial.run_id).data.tags


@pytest.mark.usefixtures("quick")
def test_a_killed_driver_of_this_folder_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = open_ledger(store)
    Heartbeat(ledger.parent).__enter__().stop_beating()
    ledger.parent.lock.release()  # as when a process dies
    monkeypatch.setattr(heartbeat, "WATCH_SECS", 1e9)
    open_ledger(store)


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
        self._folder, self._started = folder, list[Process]()

    def start(self) -> Process:
        process = subprocess.Popen(
            self._words, cwd=self._folder, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._started.append(process)
        return process

    def stop(self) -> None:
        for process in self._started:
            kill_family(process)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_project(tmp_path, "random", workers=1, final_seeds=1, num_trials=16)


@pytest.fixture
def machines(tmp_path: Path, config: Path) -> Iterator[tuple[Machine, Machine]]:
    store = tmp_path / "shared" / "mlflow.db"
    store.parent.mkdir()
    both = Machine(config, tmp_path / "first", store, []), Machine(config, tmp_path / "second", store, CLOCK_AHEAD)
    yield both
    # Not all children of this process: an earlier test may have left a Ray cluster among them, and 60 s after that is
    # killed, Ray ends this process.
    for machine in both:
        machine.stop()


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


def assert_equals_undisturbed(folder: Path, config: Path) -> None:
    run_undisturbed(config, folder / "undisturbed")
    assert faults(folder / "shared") == []
    assert summary(folder / "shared") == summary(folder / "undisturbed")


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
    assert_equals_undisturbed(tmp_path, config)


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
    assert_equals_undisturbed(tmp_path, config)
