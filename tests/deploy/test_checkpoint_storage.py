"""Checkpoints of unfinished trials in a real S3 server: another machine resumes from them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import s3fs

from fakeface_lab.errors import ConfigError
from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from tests.cluster.driven import Driver, found, node_of_a_training, undisturbed
from tests.cluster.ray_nodes import ray_nodes
from tests.deploy.servers import S3
from tests.search.run.test_checkpoint_storage import Silent, epoch, read, write


@pytest.fixture
def s3_address(s3: S3, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a machine that may use the store; this process has it too."""
    for name, value in s3.client_variables.items():
        monkeypatch.setenv(name, value)
    return s3.client_variables


def objects(storage: CheckpointStorage) -> list[str]:
    """The objects of a search, as the server has them."""
    files = s3fs.S3FileSystem(use_listings_cache=False)
    return sorted(files.find(storage.url)) if files.exists(storage.url) else []


def test_another_machine_finds_the_last_epoch_in_s3(s3_address: dict[str, str], tmp_path: Path) -> None:
    storage = CheckpointStorage.open("s3://artifacts/epochs/", "search")
    here, there = tmp_path / "here" / "run", tmp_path / "there" / "run"
    listener = storage.follow(here, Silent())
    write(here, checkpoint="1", kept="1", execution__outcome="whole")
    listener.epoch_ended(epoch(1))
    write(here, checkpoint="22")
    listener.epoch_ended(epoch(2))
    write(here, checkpoint="lost with its machine")
    resumed = storage.follow(there, Silent())
    assert read(there) == {"checkpoint": "22", "kept": "1", "execution/outcome": "whole"}
    write(there, checkpoint="333")
    resumed.epoch_ended(epoch(3))
    assert len(objects(storage)) == 4, "of each file one, and one index"
    storage.fetch(tmp_path / "elsewhere" / "run")
    assert read(tmp_path / "elsewhere" / "run")["checkpoint"] == "333"
    storage.remove("run")
    assert objects(storage) == []


def test_a_bucket_that_is_not_there_is_named_at_once(s3_address: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"^checkpoint_storage = s3://Not A Bucket/epochs: cannot be written \("):
        CheckpointStorage.open("s3://Not A Bucket/epochs", "search")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_lost_node_costs_its_trial_at_most_an_epoch_with_checkpoints_in_s3(
    s3_address: dict[str, str], new_project: Callable[[str], Path], tmp_path: Path
) -> None:
    project = new_project("project")
    expected = undisturbed(project, 4)
    (tmp_path / "nodes").mkdir()
    # The nodes have the address in their environment, as docs/cluster.md says.
    with ray_nodes(tmp_path / "nodes", 3) as nodes:
        words = ["--trials", "4", "--epoch-secs", "3", "--storage", "s3://artifacts/lost-node"]
        driver = Driver(project, nodes, *words)
        driver.wait_for(lambda trained: all(trained[f"trial-{number} 3"] for number in (0, 1, 2)))
        nodes.kill(node_of_a_training(nodes))
        assert driver.end() == 0, driver.log.read_text()
    assert found(project) == expected
    again = [line for line, times in driver.trained().items() if times > 1]
    assert len(again) == 1
    assert again[0].endswith((" 3", " 4"))
    assert "its node was lost" in driver.log.read_text()
    assert "raylet" not in driver.log.read_text(), "Ray's own paragraphs"
    assert objects(CheckpointStorage("s3://artifacts/lost-node")) == []
