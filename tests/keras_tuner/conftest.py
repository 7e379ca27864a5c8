"""A project with an empty store, and what it holds afterwards."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient


@pytest.fixture
def project(project: Path, empty_project: Path) -> Path:
    shutil.copy(empty_project / "mlflow.db", project / "mlflow.db")  # creating the tables takes seconds
    return project


@pytest.fixture
def client(project: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


RunsOf = Callable[[str], list[Run]]


@pytest.fixture
def runs_of(client: MlflowClient) -> RunsOf:
    """Return the runs with a role, in the order of their creation."""

    def find(role: str) -> list[Run]:
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        found = client.search_runs(experiments, f"tags.role = '{role}'", order_by=["attributes.start_time ASC"])
        return list(found)

    return find
