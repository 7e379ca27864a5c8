"""A writer for the tests of the store."""

import pytest

from fakeface_lab.tracking.writer import PatientWriter


@pytest.fixture
def writer() -> PatientWriter:
    """A writer that gives up soon."""
    return PatientWriter(patience_secs=20)
