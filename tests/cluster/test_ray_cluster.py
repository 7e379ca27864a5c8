"""Searches on a Ray cluster of several nodes, which are killed, added and lost while it runs."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fakeface_lab.search.run.engine import InlineEngine
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.tracking.store import open_store
from tests.cluster.curves import EPOCHS
from tests.cluster.ray_nodes import RayNodes, ray_nodes
from tests.search.curve_work import CurveWork, Notes, open_ledger, template
from tests.search.run.curve_search import Facts, facts, open_ledger_released

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[RayNodes]:
    """A cluster of a head and two nodes, each with one core."""
    (tmp_path / "nodes").mkdir()
    with ray_nodes(tmp_path / "nodes", 3) as started:
        yield started


@pytest.fixture
def project(tmp_path: Path, empty_project: Path) -> Path:
    """An empty project."""
    (tmp_path / "project" / "experiments").mkdir(parents=True)
    shutil.copy(empty_project / "mlflow.db", tmp_path / "project" / "mlflow.db")
    return tmp_path / "project"


def undisturbed(project: Path, num_trials: int) -> Facts:
    """The facts of the same search in this process."""
    beside = project.with_name("undisturbed")
    (beside / "experiments").mkdir(parents=True)
    shutil.copy(project / "mlflow.db", beside / "mlflow.db")
    ledger = open_ledger(open_store(None, beside, "curves"))
    work = CurveWork(beside / "trained.txt", {})
    oracle = template("random", num_trials, EPOCHS)
    Trials(ledger, oracle, work, lambda handler: InlineEngine(work, handler), Notes(), epochs=EPOCHS, seed=3).run()
    ledger.parent.lock.release()
    return without_order(facts(ledger))


def without_order(rows: Facts) -> Facts:
    """The facts without the order in which trials began and ended, which several at a time do not have."""
    return [(replace(record, created_order=0, ended_order=0), *others) for record, *others in rows]


class Driver:
    """The driver of a search, as a process of its own."""

    def __init__(self, project: Path, nodes: RayNodes, *words: str) -> None:
        self.project, self.log = project, project / "driver.log"
        command = [sys.executable, "-m", "tests.cluster.curves", str(project), nodes.address, *words]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=nodes.environment | {"COLUMNS": "200"}, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def trained(self) -> Counter[str]:
        """How often each epoch of each trial was begun."""
        path = self.project / "trained.txt"
        return Counter(path.read_text().splitlines() if path.exists() else [])

    def wait_for(self, is_met: Callable[[Counter[str]], bool]) -> None:
        deadline = time.monotonic() + 300
        while not is_met(self.trained()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> int:
        try:
            return self.process.wait(600)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def found(project: Path) -> Facts:
    return without_order(facts(open_ledger_released(open_store(None, project, "curves"))))


def in_its_second_epoch(key: str) -> Callable[[Counter[str]], bool]:
    return lambda trained: trained[f"{key} 2"] > 0


def trainings(nodes: RayNodes, number: int) -> list[psutil.Process]:
    """The processes of a node that train."""
    children = psutil.Process(nodes.processes[number].pid).children(recursive=True)
    return [child for child in children if "ray::_train" in " ".join(child.cmdline())]


def node_of_a_training(nodes: RayNodes) -> int:
    """The number of a node, not the head, on which something is trained."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for number in range(1, len(nodes.processes)):
            if trainings(nodes, number):
                return number
    raise TimeoutError("no node trains")


def test_sixteen_trials_on_three_nodes_equal_those_of_one_process(nodes: RayNodes, project: Path) -> None:
    expected = undisturbed(project, 16)
    driver = Driver(project, nodes, "--trials", "16", "--epoch-secs", "0.1")
    assert driver.end() == 0, driver.log.read_text()
    assert found(project) == expected
    assert set(driver.trained().values()) == {1}


def test_a_killed_worker_costs_one_attempt(nodes: RayNodes, project: Path) -> None:
    expected = undisturbed(project, 4)
    driver = Driver(project, nodes, "--trials", "4")
    driver.wait_for(in_its_second_epoch("trial-0"))
    victim = trainings(nodes, node_of_a_training(nodes))[0]
    victim.kill()
    assert driver.end() == 0, driver.log.read_text()
    assert "worker process died; Ray's logs on its node say more; trying again" in driver.log.read_text()
    assert found(project) == expected


@pytest.mark.parametrize("has_storage", [True, False], ids=["with-storage", "without-storage"])
def test_a_lost_node_costs_its_trial_at_most_an_epoch_or_its_beginning(
    nodes: RayNodes, project: Path, has_storage: bool
) -> None:
    expected = undisturbed(project, 4)
    storage = project.with_name("storage")
    words = ["--storage", str(storage)] if has_storage else []
    driver = Driver(project, nodes, "--trials", "4", "--epoch-secs", "3", *words)
    driver.wait_for(lambda trained: all(trained[f"trial-{number} 3"] for number in (0, 1, 2)))
    nodes.kill(node_of_a_training(nodes))
    assert driver.end() == 0, driver.log.read_text()
    assert "its node was lost" in driver.log.read_text()
    assert found(project) == expected
    again = [line for line, times in driver.trained().items() if times > 1]
    if has_storage:
        assert len(again) == 1
        assert again[0].endswith((" 3", " 4"))
        assert not list(storage.glob("*/*"))
    else:
        assert sorted(line.split()[1] for line in again)[0] == "1"


def test_a_node_that_joins_is_used(nodes: RayNodes, project: Path) -> None:
    expected = undisturbed(project, 8)
    driver = Driver(project, nodes, "--trials", "8", "--workers", "4", "--epoch-secs", "3")
    driver.wait_for(in_its_second_epoch("trial-0"))
    joined = nodes.add()
    driver.wait_for(lambda trained: bool(trainings(nodes, joined)))
    assert driver.end() == 0, driver.log.read_text()
    assert found(project) == expected


def test_a_lost_head_ends_the_driver_and_the_same_command_resumes(
    nodes: RayNodes, project: Path, tmp_path: Path
) -> None:
    expected = undisturbed(project, 4)
    storage = ["--storage", str(tmp_path / "storage")]
    driver = Driver(project, nodes, "--trials", "4", "--epoch-secs", "2", *storage)
    driver.wait_for(in_its_second_epoch("trial-0"))
    for number in range(3):
        nodes.kill(number)
    assert driver.end() != 0
    (tmp_path / "again").mkdir()
    with ray_nodes(tmp_path / "again", 3) as restarted:
        driver = Driver(project, restarted, "--trials", "4", *storage)
        assert driver.end() == 0, driver.log.read_text()
    assert found(project) == expected


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "in-another-folder"])
def test_a_killed_driver_leaves_no_task_and_another_one_resumes(
    nodes: RayNodes, project: Path, tmp_path: Path, elsewhere: bool
) -> None:
    expected = undisturbed(project, 4)
    storage = ["--storage", str(tmp_path / "storage")]
    driver = Driver(project, nodes, "--trials", "4", "--epoch-secs", "2", *storage)
    driver.wait_for(in_its_second_epoch("trial-0"))
    driver.kill()
    deadline = time.monotonic() + 60
    while any(trainings(nodes, number) for number in range(3)):
        assert time.monotonic() < deadline, "a task goes on without its driver"
        time.sleep(0.5)
    if elsewhere:
        shutil.rmtree(project / "mlruns" / ".work", ignore_errors=True)
    before = driver.trained()
    driver = Driver(project, nodes, "--trials", "4", *storage)
    assert driver.end() == 0, driver.log.read_text()
    assert found(project) == expected
    # Finished epochs are not trained again, wherever the driver is.
    assert driver.trained()["trial-0 1"] == before["trial-0 1"] == 1
