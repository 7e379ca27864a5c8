"""A ledger to record trials in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.ledger.resume import open_search
from fakeface_lab.tracking.store import open_store
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.objective import VAL_LOSS


@pytest.fixture
def ledger(project_with_tables: Path) -> Iterator[Ledger]:
    """The ledger of a search without trials."""
    store = open_store(None, project_with_tables, "faces")
    ledger = open_search(store, PatientWriter(5), "by hand", {}, VAL_LOSS.tags(), restart=False)
    yield ledger
    ledger.parent.lock.release()
