"""The same test on a file and through a server, and a writer."""

from pathlib import Path

import pytest

from fakeface_lab.tracking.store import Store, open_store
from fakeface_lab.tracking.writer import PatientWriter
from tests.mlflow_server import Server


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
