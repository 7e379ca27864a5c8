"""A worker process imports what its driver can, and exits when its driver is gone."""

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakeface_lab.search.run.attempt import Reporter
from fakeface_lab.search.run.worker import launched_ahead, take_worker
from fakeface_lab.training.epochs import EpochRecord
from tests.search.run.desk import Desk, workers

MINE = """
from tests.search.curve_work import CurveWork

class Mine(CurveWork):
    pass
"""


@pytest.mark.slow
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
def test_a_killed_driver_leaves_no_worker_behind(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        from pathlib import Path
        from tests.search.run.desk import Desk
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


def test_a_worker_launched_ahead_is_the_first_taken_and_ends_with_the_block_if_it_is_not() -> None:
    with launched_ahead():
        (ahead,) = workers()
        taken, other = take_worker(), take_worker()
    assert taken.process.pid == ahead
    assert workers() == {ahead, other.process.pid}
    taken.kill()
    other.kill()
    with launched_ahead():
        (ahead,) = workers()
        psutil.Process(ahead).kill()
        psutil.Process(ahead).wait(10)
        taken = take_worker()
        assert taken.process.pid != ahead, "one that has died, for example of too little memory, is not taken"
        taken.kill()
    with launched_ahead():
        assert len(workers()) == 1
    assert workers() == set()


def test_steps_are_sent_with_time_between_them_and_everything_else_at_once() -> None:
    sent: list[Mapping[str, Any]] = []
    reporter = Reporter(sent.append, step_secs=0.2)
    began = time.monotonic()
    for step in range(1, 20_001):
        reporter.step_ended(1, step, 20_000)
        if step % 5_000 == 0:
            reporter.epoch_ended(EpochRecord(step // 5_000, 0, {"loss": 0.5}))
    elapsed_secs = time.monotonic() - began
    steps = [message["step"] for message in sent if message["kind"] == "step"]
    assert steps[0] == 1
    assert len(steps) <= 1 + elapsed_secs / 0.2
    assert [message["record"]["epoch"] for message in sent if message["kind"] == "epoch"] == [1, 2, 3, 4]
