"""The deployed servers, started once, and a client's environment."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.searches import Searches
from tests.deploy.servers import S3, PostgreSQL, TrackingServer, find_postgresql
from tests.search_state import State


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgreSQL]:
    """A running PostgreSQL; a test that stops it starts it again."""
    programs = find_postgresql()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; with Debian: apt-get install postgresql")
    # pytest's own folders are closed to the user that it runs as.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    service = PostgreSQL(folder, programs)
    try:
        service.make()
        service.start()
        yield service
    finally:
        service.kill()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A running S3 server."""
    service = S3(tmp_path_factory.mktemp("s3"))
    try:
        service.start()
        yield service
    finally:
        service.close()


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory, postgres: PostgreSQL, s3: S3) -> Iterator[TrackingServer]:
    """The server of `deploy/server.sh`; a test that kills it starts it again."""
    service = TrackingServer(tmp_path_factory.mktemp("tracking"), postgres, s3)
    try:
        service.start()
        service.add_user()
        yield service
    finally:
        service.kill()


@pytest.fixture
def client_of(tracking_server: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> TrackingServer:
    """The same server, with this process as its client."""
    for name, value in tracking_server.address.items():
        monkeypatch.setenv(name, value)
    return tracking_server


# Of the whole session, as the server is: a second one would find the first one's search there.
@pytest.fixture(scope="session")
def whole_searches(
    tracking_server: TrackingServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Searches, State]]:
    """Searches with equal settings, and the state of one that nothing has disturbed."""
    searches = Searches(tracking_server, tmp_path_factory.mktemp("searches"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tracking_server.address.items():
            patch.setenv(name, value)
        undisturbed = searches.finish("undisturbed", searches.start("undisturbed"))
        searches.empty_registry()
    try:
        yield searches, undisturbed
    finally:
        searches.end()


@pytest.fixture
def searches(whole_searches: tuple[Searches, State], client_of: TrackingServer) -> Iterator[Searches]:
    """Searches with equal settings; those of a test have ended after it."""
    searches, _ = whole_searches
    yield searches
    searches.end()
    searches.empty_registry()


@pytest.fixture
def undisturbed(whole_searches: tuple[Searches, State]) -> State:
    """The state of such a search that nothing has disturbed."""
    return whole_searches[1]
