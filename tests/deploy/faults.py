"""What can befall the deployed server, each as a block in which it is so."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import pytest

from tests.deploy.servers import TrackingServer

__all__ = ["FAULTS", "befall"]

FAULTS: Mapping[str, Callable[[TrackingServer], AbstractContextManager[None]]] = {
    "PostgreSQL killed": lambda server: server.postgres.killed(),
    "server killed": lambda server: server.killed(),
    "server suspended": lambda server: server.suspended(),
    "S3 suspended": lambda server: server.s3.suspended(),
    "disk full": lambda server: server.s3.full_disk(),
}


def befall(server: TrackingServer, fault: str) -> AbstractContextManager[None]:
    """Return the block of a fault; skips the test where it cannot be made."""
    if fault == "disk full" and not server.s3.is_small:
        pytest.skip("only root can mount the small file system that is filled")
    return FAULTS[fault](server)
