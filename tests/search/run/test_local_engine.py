"""Worker processes: reuse, deaths, hangs, imports, and the end of their driver."""

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import psutil
import pytest

from fakeface_lab.files import pickle_mapped
from fakeface_lab.search.run.engine import Assignment, Event
from fakeface_lab.search.run.local_engine import LocalEngine
from tests.search import curve_work
from tests.search.curve_work import CurveWork

VALUES = {"x": 0.5, "kind": "a"}


class Desk:
    """An engine and the events it has reported."""

    def __init__(
        self,
        folder: Path,
        faults: dict[str, str],
        num_workers: int = 1,
        hang_secs: float = 60,
        kind: type[CurveWork] = CurveWork,
    ) -> None:
        cloudpickle.register_pickle_by_value(curve_work)
        self.folder, self.events = folder, list[Event]()
        work_path = pickle_mapped(kind(folder / "trained.txt", faults), folder / "work", "work.pkl")
        self.engine = LocalEngine(
            work_path, self.events.append, num_workers=num_workers, num_threads=1, hang_secs=hang_secs
        )

    def start(self, key: str) -> None:
        (self.folder / key).mkdir(exist_ok=True)
        self.engine.start(Assignment(key, VALUES, 3, 0), self.folder / key)

    def end_of(self, key: str) -> Event:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for event in self.events:
                if event.key == key and event.kind in ("done", "failed", "died", "disturbed"):
                    return event
            self.engine.wait(1)
        raise TimeoutError(key)

    def run(self, key: str) -> Event:
        self.start(key)
        return self.end_of(key)


@pytest.fixture
def desks() -> Iterator[list[Desk]]:
    opened: list[Desk] = []
    yield opened
    for desk in opened:
        desk.engine.stop()


def workers() -> set[int]:
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "fakeface_lab.search.run.worker" in " ".join(child.cmdline())}


def test_a_worker_is_reused_and_a_dead_one_replaced(tmp_path: Path, desks: list[Desk]) -> None:
    faults = {"wrong": "error", "crowded": "memory", "full": "disk", "killed": "kill", "again": "once exit"}
    desks.append(desk := Desk(tmp_path, faults))
    assert desk.run("good").kind == "done"
    first = workers()
    kinds = [event.kind for event in desk.events]
    assert kinds[0] == "step"
    assert [kind for kind in kinds if kind != "step"] == ["epoch", "epoch", "epoch", "done"]
    assert (desk.run("wrong").kind, desk.run("crowded").kind) == ("failed", "died")
    reasons = [event.reason for event in desk.events if event.reason]
    assert reasons == ["ValueError: a shape does not fit", "out of memory: no room for the weights"]
    assert desk.run("full").kind == "disturbed"
    assert workers() == first
    died = desk.run("killed")
    assert (died.kind, died.reason) == ("died", "worker process was killed (signal 9): most likely out of memory")
    assert desk.engine.num_free() == 1
    # The next attempt resumes after the finished epoch.
    assert "ended with exit code 7" in desk.run("again").reason
    desk.events.clear()
    assert desk.run("again").kind == "done"
    assert [event.record.epoch for event in desk.events if event.record] == [2, 3]
    assert workers().isdisjoint(first)


def test_a_busy_and_an_idle_worker_that_die_together_cost_one_attempt(tmp_path: Path, desks: list[Desk]) -> None:
    desks.append(desk := Desk(tmp_path, {"stuck": "once hang"}, num_workers=2))

    def handle(event: Event) -> None:
        desk.events.append(event)
        if event.kind == "died":
            desk.start(event.key)

    desk.engine._handler = handle
    for key in ("first", "second"):
        desk.start(key)
    assert (desk.end_of("first").kind, desk.end_of("second").kind) == ("done", "done")
    desk.start("stuck")
    deadline = time.monotonic() + 120
    while not (tmp_path / "stuck" / "failed-once").exists():
        assert time.monotonic() < deadline
        desk.engine.wait(0.1)
    both = [psutil.Process(pid) for pid in workers()]
    assert len(both) == 2
    for process in both:
        process.kill()
    psutil.wait_procs(both)
    desk.events.clear()
    deadline = time.monotonic() + 120
    while not any(event.kind == "done" for event in desk.events) and time.monotonic() < deadline:
        desk.engine.wait(1)
    kinds = [event.kind for event in desk.events if event.kind in ("died", "done")]
    assert kinds in (["died", "done"], ["died", "died", "done"])  # the idle one may be found dead when it is used


TALKER = """
from pathlib import Path
import time

from fakeface_lab.training.recorder import EpochRecord

class Talker:
    def __init__(self, *_): pass

    def __call__(self, assignment, folder, listener):
        for epoch in range(1, 3001):
            listener.epoch_ended(EpochRecord(epoch, 0, {"loss": 0.1, "padding" * 20: 1.0}))
        (folder / "all-said").write_text("")
        time.sleep(1)
"""


def test_a_busy_driver_neither_blocks_a_worker_nor_considers_it_hung(
    tmp_path: Path, desks: list[Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "talker_of_the_test.py").write_text(TALKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    desks.append(desk := Desk(tmp_path, {}, hang_secs=600, kind=importlib.import_module("talker_of_the_test").Talker))
    desk.start("talking")
    deadline = time.monotonic() + 120
    while not (tmp_path / "talking" / "all-said").exists():
        assert time.monotonic() < deadline, "the worker stands still"
        time.sleep(0.1)
    desk.engine._hang_secs = 0.5
    assert desk.end_of("talking").kind == "done"
    assert [event.record.epoch for event in desk.events if event.record] == list(range(1, 3001))


MINE = """
from tests.search.curve_work import CurveWork

class Mine(CurveWork):
    pass
"""


def test_a_worker_can_import_what_its_driver_can(
    tmp_path: Path, desks: list[Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty entry means the current folder, in its position: a file there does not replace a library of its name."""
    (tmp_path / "mine_of_the_user.py").write_text(MINE)
    (tmp_path / "queue.py").write_text("raise RuntimeError('not the library')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*(path for path in sys.path if path), ""])
    kind = importlib.import_module("mine_of_the_user").Mine
    desks.append(desk := Desk(tmp_path, {}, kind=kind))
    assert desk.run("good").kind == "done"


@pytest.mark.slow
def test_a_hanging_worker_is_killed_and_its_neighbour_is_not(tmp_path: Path, desks: list[Desk]) -> None:
    desks.append(desk := Desk(tmp_path, {"stuck": "hang"}, num_workers=2, hang_secs=30))
    desk.start("stuck")
    desk.start("fine")
    assert desk.engine.num_free() == 0
    assert desk.end_of("stuck").reason == "hung: no training step for 30 s"
    assert desk.end_of("fine").kind == "done"


@pytest.mark.slow
def test_a_killed_driver_leaves_no_worker_behind(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from test_local_engine import Desk
        desk = Desk(Path({str(tmp_path)!r}), {{"stuck": "hang"}}, hang_secs=600)
        desk.start("stuck")
        while True:
            desk.engine.wait(1)
            print(len(desk.events), flush=True)
    """)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, text=True)
    assert driver.stdout is not None
    try:
        while driver.stdout.readline().strip() not in ("1", "2"):
            assert driver.poll() is None
        left = psutil.Process(driver.pid).children(recursive=True)
        assert left
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert psutil.wait_procs(left, timeout=10)[1] == []
