"""A Ray cluster of three nodes that records in the deployed server."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.driven import Driver, found, undisturbed
from tests.cluster.ray_nodes import ray_nodes
from tests.cluster.test_ray_programs import searched
from tests.deploy.servers import TrackingServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_sixteen_trials_on_three_nodes_are_in_the_server_as_in_a_file(
    client_of: TrackingServer, tmp_path: Path, new_project: Callable[[str], Path]
) -> None:
    project = new_project("project")
    expected = undisturbed(project, 16)
    (tmp_path / "nodes").mkdir()
    with ray_nodes(tmp_path / "nodes", 3) as nodes:
        # The driver alone knows the server: the nodes were started without its password.
        nodes.environment |= client_of.address
        driver = Driver(project, nodes, "--trials", "16", "--epoch-secs", "0.1")
        assert driver.end() == 0, driver.log.read_text()
    assert found(project) == expected
    assert set(driver.trained().values()) == {1}
    assert client_of.address["MLFLOW_TRACKING_PASSWORD"] not in "".join(
        path.read_text(errors="replace") for path in [driver.log, *tmp_path.rglob("node-*.log")]
    )


def test_a_tuner_on_three_nodes_finds_what_worker_processes_find(
    tracking_server: TrackingServer, tmp_path: Path
) -> None:
    local = searched(tmp_path / "local", "local", 16)
    (tmp_path / "nodes").mkdir()
    with ray_nodes(tmp_path / "nodes", 3) as nodes:
        token = {name: value for name, value in nodes.environment.items() if name.startswith("RAY_")}
        address = tracking_server.address | {"RAY_ADDRESS": nodes.address}
        ray = searched(tmp_path / "ray", "ray", 16, **token, **address)
    assert ray["scores"] == local["scores"]
    # The best model has come from a node through the server to S3, and back.
    assert ray["accuracy"] == pytest.approx(ray["best"])
    assert not list((tmp_path / "ray").rglob("mlflow.db"))
