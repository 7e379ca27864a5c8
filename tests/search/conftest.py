"""Stores of their own for searches; MLflow's tables are copied, because making them takes seconds."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fakeface_lab.tracking.store import Store, open_store


@pytest.fixture(scope="session")
def empty_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder whose store has its tables and no run."""
    root = tmp_path_factory.mktemp("empty")
    open_store(None, root, "curves")
    return root


@pytest.fixture
def new_store(tmp_path: Path, empty_project: Path) -> Callable[[str], Store]:
    """Return a function that makes a store in a project folder of its own."""

    def make(name: str) -> Store:
        root = tmp_path / name
        root.mkdir()
        shutil.copy(empty_project / "mlflow.db", root / "mlflow.db")
        return open_store(None, root, name)

    return make
