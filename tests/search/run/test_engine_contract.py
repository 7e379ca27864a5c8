"""What every engine promises, seen from outside: for worker processes, a Ray cluster and this process alike."""

import hashlib
import json
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.search.run.local_engine import LocalEngine
from fakeface_lab.search.run.placement import EngineKind
from fakeface_lab.training.epochs import Listener
from fakeface_lab.training.outcome import Outcome, read_outcome
from tests.search.curve_work import CurveWork
from tests.search.run.desk import VALUES, Desk

APART = ("local", pytest.param("ray", marks=pytest.mark.services))
# Tests that end processes which have loaded TensorFlow; on Ray they are slow ones.
ENDING = ("local", pytest.param("ray", marks=pytest.mark.slow))
LARGE_BYTES = 100_000_007
MEMORY_BYTES = 1_500_000_000
FAULTS = {
    "wrong": "error",
    "hopeless": "nan",
    "crowded": "memory",
    "full": "disk",
    "forked": "kill",
    "stuck": "hang",
    "cancelled": "hang",
    "stopped": "hang",
}


class ContractWork(CurveWork):
    """A curve whose training also prints, forks, leaves a large file or takes much memory, if its key says so."""

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        if assignment.key == "talking":
            print("one line")
            print("and no end", end="")
        if assignment.key == "forked":
            # As a pool of the user's own would: it holds everything that its parent has open.
            child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(120,), daemon=True)
            child.start()
            self.trained.with_name("child.txt").write_text(str(child.pid))
        if assignment.key == "large":
            (folder / "artifacts").mkdir()
            (folder / "artifacts" / "large.bin").write_bytes(b"0123456789" * (LARGE_BYTES // 10) + b"0123456")
            (folder / "artifacts" / "empty.txt").write_bytes(b"")
        if assignment.key == "greedy":
            greedy = b"1" * MEMORY_BYTES  # besides what TensorFlow takes
            assert greedy
            time.sleep(600)
        return super().__call__(assignment, folder, listener)


@pytest.fixture(scope="module", params=["inline", *APART])
def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """An engine of each kind."""
    yield from opened(tmp_path_factory, request.param)


@pytest.fixture(scope="module", params=ENDING)
def apart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """An engine whose trainings are in processes of their own, two at a time."""
    yield from opened(tmp_path_factory, request.param)


def opened(folders: pytest.TempPathFactory, engine: EngineKind) -> Iterator[Desk]:
    num_workers = 1 if engine == "inline" else 2
    desk = Desk(folders.mktemp(engine), FAULTS, num_workers, 300, ContractWork, engine, memory_bytes=MEMORY_BYTES)
    yield desk
    desk.engine.stop()


def test_events_come_in_order_and_the_result_is_in_the_folder(desk: Desk) -> None:
    assert desk.run("good").kind == "done"
    assert [kind for kind in desk.kinds("good") if kind != "step"] == ["epoch", "epoch", "epoch", "done"]
    assert [event.record.epoch for event in desk.events if event.key == "good" and event.record] == [1, 2, 3]
    outcome = read_outcome(desk.folder / "good")
    assert outcome is not None
    assert outcome.metrics["num_epochs"] == 3
    assert (desk.folder / "good" / "kept-3.weights").read_text() == "kept"


def test_a_training_resumes_from_what_is_in_its_folder(desk: Desk) -> None:
    desk.run("before")
    folder = desk.folder / "resumed"
    folder.mkdir()
    records = json.loads((desk.folder / "before" / "epoch.ckpt").read_text())
    (folder / "epoch.ckpt").write_text(json.dumps(records[:2]))
    assert desk.run("resumed").kind == "done"
    assert [event.record.epoch for event in desk.events if event.key == "resumed" and event.record] == [3]


@pytest.mark.parametrize(
    ("key", "kind", "reason"),
    [
        ("wrong", "invalid", "ValueError: a shape does not fit"),
        ("hopeless", "invalid", "training diverged: loss became nan"),
        ("crowded", "died", "out of memory: no room for the weights"),
        ("full", "disturbed", "OSError: [Errno 28] No space left on device"),
    ],
)
def test_an_error_is_explained_and_its_traceback_kept(desk: Desk, key: str, kind: str, reason: str) -> None:
    event = desk.run(key)
    assert (event.kind, event.reason) == (kind, reason)
    assert "in _fail" in (desk.folder / key / "error.txt").read_text()
    assert (desk.folder / key / "epoch.ckpt").exists()
    assert desk.run(f"after {key}").kind == "done"


def test_a_result_larger_than_a_message_arrives_whole(desk: Desk) -> None:
    assert desk.run("large").kind == "done"
    content = (desk.folder / "large" / "artifacts" / "large.bin").read_bytes()
    expected = b"0123456789" * (LARGE_BYTES // 10) + b"0123456"
    assert hashlib.sha256(content).digest() == hashlib.sha256(expected).digest()
    assert (desk.folder / "large" / "artifacts" / "empty.txt").read_bytes() == b""
    assert not list((desk.folder / "large").rglob("*.partial"))


def test_what_is_printed_is_reported_line_by_line(apart: Desk) -> None:
    assert apart.run("talking").kind == "done"
    assert [event.line for event in apart.events if event.kind == "print"] == ["one line", "and no end"]


def test_a_death_costs_one_attempt(apart: Desk) -> None:
    event = apart.run("forked")
    assert event.kind == "died"
    assert "worker process" in event.reason
    if isinstance(apart.engine, LocalEngine):
        assert event.reason == "worker process was killed (signal 9): most likely out of memory"
    assert _has_ended(int((apart.folder / "child.txt").read_text()))
    assert apart.engine.num_free() == 2
    assert apart.run("after a death").kind == "done"


def _has_ended(pid: int) -> bool:
    try:
        child = psutil.Process(pid)
        deadline = time.monotonic() + 10
        while child.status() != psutil.STATUS_ZOMBIE:  # where nobody collects orphans
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    except psutil.NoSuchProcess:
        return True
    return True


def test_of_two_trainings_at_a_time_the_silent_one_is_ended(apart: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    apart.start("stuck")
    apart.wait_for(lambda: "epoch" in apart.kinds("stuck"), "first epoch")
    assert apart.engine.num_free() == 1
    assert apart.run("beside stuck").kind == "done"
    assert "died" not in apart.kinds("stuck")
    monkeypatch.setattr(apart.engine, "_hang_secs", 1.0)
    assert apart.end_of("stuck").reason == "hung: no training step for 1 s"


def test_a_cancelled_training_ends_with_the_reason(apart: Desk) -> None:
    apart.start("cancelled")
    apart.wait_for(lambda: "epoch" in apart.kinds("cancelled"), "first epoch")
    apart.engine.cancel("cancelled", "no longer wanted")
    event = apart.end_of("cancelled")
    assert (event.kind, event.reason) == ("died", "no longer wanted")
    apart.engine.cancel("cancelled", "twice")
    assert apart.kinds("cancelled").count("died") == 1
    assert apart.engine.num_free() == 2


@pytest.mark.slow
def test_a_training_that_takes_too_much_memory_is_ended(apart: Desk) -> None:
    event = apart.run("greedy")
    assert event.kind == "died"
    assert event.reason.startswith("out of memory: ")
    assert event.reason.endswith(" GB are more than the 1.50 GB of a trial")
    assert apart.run("after greedy").kind == "done"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENDING)
def test_a_stopped_engine_trains_nothing_more(tmp_path: Path, engine: EngineKind) -> None:
    desk = Desk(tmp_path, FAULTS, engine=engine)
    desk.start("stopped")
    desk.wait_for(lambda: "epoch" in desk.kinds("stopped"), "first epoch")
    desk.engine.stop()
    trained = (tmp_path / "trained.txt").read_text()
    time.sleep(2)
    assert (tmp_path / "trained.txt").read_text() == trained
    assert "died" not in desk.kinds("stopped")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENDING)
def test_stored_checkpoints_replace_a_lost_folder(tmp_path: Path, engine: EngineKind) -> None:
    """With a checkpoint storage the next attempt resumes, even if nothing is left where the last one ran."""
    storage = CheckpointStorage.open(str(tmp_path / "storage"), "search")
    desk = Desk(tmp_path, {"moved": "kill"}, engine=engine, storage=storage)
    assert desk.run("moved").kind == "died"
    # On Ray a killed process takes its last messages with it; the epoch is stored.
    assert [event.record.epoch for event in desk.events if event.record] in ([1], [] if engine == "ray" else [1])
    for path in (tmp_path / "moved").iterdir():
        path.unlink()
    desk.events.clear()
    desk.engine.stop()
    healthy = Desk(tmp_path, {}, engine=engine, storage=storage)
    (tmp_path / "moved").mkdir(exist_ok=True)
    healthy.engine.start(Assignment("moved", VALUES, 3, 0), tmp_path / "moved")
    assert healthy.end_of("moved").kind == "done"
    assert [event.record.epoch for event in healthy.events if event.record] == [2, 3]
    healthy.engine.stop()
    storage.remove("moved")
    assert not (tmp_path / "storage" / "search" / "moved").exists()
