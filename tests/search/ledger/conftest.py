"""A store of its own for each test of the ledger."""

from collections.abc import Callable

import pytest

from fakeface_lab.tracking.store import Store


@pytest.fixture
def store(new_store: Callable[[str], Store]) -> Store:
    """A store without runs."""
    return new_store("ledger")
