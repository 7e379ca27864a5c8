"""A Ray cluster of three nodes that records in the deployed server."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.driven import Driver, found, undisturbed
from tests.cluster.ray_nodes import ray_nodes
from tests.deploy.servers import TrackingServer


@pytest.mark.slow
@pytest.mark.timeout(900)
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
