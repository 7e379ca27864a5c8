"""A cluster started as docs/cluster.md says: who has no token gets nothing from it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.ray_nodes import RayNodes, ray_nodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CONNECT = """
import sys
from fakeface_lab.errors import ConfigError
from fakeface_lab.search.run.placement import connect
try:
    connect(sys.argv[1])
except ConfigError as err:
    print(err)
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNodes]:
    """A head that asks for a token."""
    with ray_nodes(tmp_path_factory.mktemp("nodes"), 1) as started:
        yield started


@pytest.mark.parametrize(
    "given",
    [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}],
    ids=["without-a-token", "with-a-wrong-one"],
)
def test_a_program_without_the_token_is_refused_with_one_line(
    given: dict[str, str], nodes: RayNodes, tmp_path: Path
) -> None:
    # The home folder may hold a token of the user's.
    environment = {name: value for name, value in nodes.environment.items() if not name.startswith("RAY_")} | given
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, nodes.address], env=environment | {"HOME": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert done.stdout == (
        f"ray_address = {nodes.address}: wrong or no token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN\n"
    )
    assert "Traceback" not in done.stderr
    assert nodes.environment["RAY_AUTH_TOKEN"] not in done.stderr
