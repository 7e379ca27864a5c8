"""Searches on a Ray cluster of several nodes, which are killed, added and lost while it runs."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.driven import Driver, found, node_of_a_training, trainings, undisturbed
from tests.cluster.ray_nodes import RayNodes, ray_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


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


def in_its_second_epoch(key: str) -> Callable[[Counter[str]], bool]:
    return lambda trained: trained[f"{key} 2"] > 0


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
    assert "raylet" not in driver.log.read_text(), "Ray's own paragraphs"
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
