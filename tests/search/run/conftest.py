"""An uninterrupted search to compare with, and engines that are stopped after a test."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakeface_lab.tracking.store import open_store
from tests.search.run.curve_search import Facts, facts, run
from tests.search.run.desk import Desk


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_project: Path) -> Facts:
    """The facts of an uninterrupted random search."""
    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(empty_project / "mlflow.db", root / "mlflow.db")
    return facts(run(open_store(None, root, "whole")))


@pytest.fixture
def desks() -> Iterator[list[Desk]]:
    """A list for the engines of a test, which are stopped after it."""
    opened: list[Desk] = []
    yield opened
    for desk in opened:
        desk.engine.stop()
