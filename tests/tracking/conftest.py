"""A sqlite file for each test of the store, and each test on a file and through a server."""

import shutil
from pathlib import Path

import pytest

from fakeface_lab.tracking.store import Store, open_store
from fakeface_lab.tracking.writer import PatientWriter
from tests.mlflow_server import Server


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with MLflow's tables, made once: each takes seconds."""
    folder = tmp_path_factory.mktemp("empty")
    open_store(f"sqlite:///{folder / 'mlflow.db'}", folder, "template")
    return folder / "mlflow.db"


@pytest.fixture
def project_with_tables(project: Path, empty_database: Path) -> Path:
    """A project folder whose store has its tables already."""
    shutil.copy(empty_database, project / "mlflow.db")
    return project


@pytest.fixture
def local_store(project_with_tables: Path) -> Store:
    """A store of its own in the project folder."""
    return open_store(None, project_with_tables, "faces")


@pytest.fixture(params=["sqlite", "server"])
def store(request: pytest.FixtureRequest, project: Path) -> Store:
    """The same test on a file and through a server."""
    if request.param == "sqlite":
        local: Store = request.getfixturevalue("local_store")
        return local
    server: Server = request.getfixturevalue("server")
    return open_store(server.uri, project, f"faces {request.node.name}")


@pytest.fixture
def writer() -> PatientWriter:
    """A writer that gives up soon."""
    return PatientWriter(patience_secs=20)
