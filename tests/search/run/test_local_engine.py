"""Worker processes: reuse, deaths, hangs, and a driver that is busy."""

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
import keras_tuner
import psutil
import pytest

from fakeface_lab.backend import keras
from fakeface_lab.errors import AllTrialsFailedError, SearchError
from fakeface_lab.keras_tuner.tuner import Tuner
from fakeface_lab.search.run.engine import Event
from tests.keras_tuner.tiny_tuner import X, Y, random_oracle, small
from tests.search.run.desk import Desk, workers


@pytest.mark.slow
def test_a_worker_is_reused_and_a_dead_one_replaced(tmp_path: Path, desks: list[Desk]) -> None:
    faults = {
        "wrong": "error",
        "hopeless": "fatal",
        "crowded": "memory",
        "full": "disk",
        "killed": "kill",
        "again": "once exit",
    }
    desks.append(desk := Desk(tmp_path, faults))
    assert desk.run("good").kind == "done"
    first = workers()
    kinds = [event.kind for event in desk.events]
    assert kinds[0] == "step"
    assert [kind for kind in kinds if kind != "step"] == ["epoch", "epoch", "epoch", "done"]
    assert (desk.run("wrong").kind, desk.run("crowded").kind) == ("invalid", "died")
    reasons = [event.reason for event in desk.events if event.reason]
    assert reasons == ["ValueError: a shape does not fit", "out of memory: no room for the weights"]
    assert desk.run("full").kind == "disturbed"
    hopeless = desk.run("hopeless")
    assert (hopeless.kind, hopeless.reason) == ("fatal", "FatalValueError: wrong data")
    assert workers() == first
    # The next attempt resumes after the finished epoch.
    assert desk.run("again").reason == "worker process ended with exit code 7"
    desk.events.clear()
    assert desk.run("again").kind == "done"
    assert [event.record.epoch for event in desk.events if event.record] == [2, 3]
    assert workers().isdisjoint(first)
    died = desk.run("killed")
    assert (died.kind, died.reason) == ("died", "worker process was killed (signal 9): most likely out of memory")
    assert desk.engine.num_free() == 1


@pytest.mark.slow
def test_a_busy_and_an_idle_worker_that_die_together_cost_one_attempt(
    tmp_path: Path, desks: list[Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    desks.append(desk := Desk(tmp_path, {"stuck": "once hang"}, num_workers=2))

    def handle(event: Event) -> None:
        desk.events.append(event)
        if event.kind == "died":
            desk.start(event.key)

    monkeypatch.setattr(desk.engine, "handler", handle)
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

from fakeface_lab.training.epochs import EpochRecord

class Talker:
    def __init__(self, *_): pass

    def __call__(self, assignment, folder, listener):
        for epoch in range(1, 3001):
            listener.epoch_ended(EpochRecord(epoch, 0, {"loss": 0.1, "padding" * 20: 1.0}))
        (folder / "all-said").write_text("")
        time.sleep(1)
"""


@pytest.mark.slow
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
    monkeypatch.setattr(desk.engine, "_hang_secs", 0.5)
    assert desk.end_of("talking").kind == "done"
    assert [event.record.epoch for event in desk.events if event.record] == list(range(1, 3001))


@pytest.mark.slow
def test_a_hanging_worker_is_killed_and_its_neighbour_is_not(tmp_path: Path, desks: list[Desk]) -> None:
    desks.append(desk := Desk(tmp_path, {"stuck": "hang"}, num_workers=2, hang_secs=30))
    desk.start("stuck")
    desk.start("fine")
    assert desk.engine.num_free() == 0
    assert desk.end_of("stuck").reason == "hung: no training step for 30 s"
    assert desk.end_of("fine").kind == "done"


class Sleepy(keras_tuner.HyperModel):
    """Its training reports nothing for longer than the hang limit."""

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        return small(hp)

    def fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any) -> float:
        time.sleep(6)
        return 0.5


@pytest.mark.slow
def test_a_users_own_silent_fit_is_not_considered_hung_unless_asked(
    project_with_tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fakeface_lab.keras_tuner.tuner._HANG_SECS", 2.0)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    tuner = Tuner(random_oracle(1), Sleepy(), project_name="patient", engine="local")
    tuner.search(X, Y, verbose=0)
    assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"]
    hasty = Tuner(random_oracle(1), Sleepy(), project_name="hasty", engine="local", hang_secs=2.0)
    with pytest.raises((AllTrialsFailedError, SearchError), match="hung: no training step for 2 s"):
        hasty.search(X, Y, verbose=0)
