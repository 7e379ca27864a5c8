"""The sign of life of a driver: written again and again, gone at the end, and believed by others."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from fakeface_lab.search import presence
from fakeface_lab.search.presence import Presence
from fakeface_lab.tracking.store import Store
from tests.search.curve_work import open_ledger


def test_a_driver_shows_that_it_lives_while_it_does(
    new_store: Callable[[str], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "_BEAT_SECS", 0.05)
    ledger = open_ledger(new_store("presence"))
    parent = ledger.parent

    def tags() -> dict[str, str]:
        return dict(parent.store.client.get_run(parent.run_id).data.tags)

    def sign() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(tags()["driver"])
        return found

    with Presence(parent):
        first, first_secs = sign(), float(tags()["used_secs"])
        deadline = time.monotonic() + 20
        while sign()["seen_secs"] == first["seen_secs"] or float(tags()["used_secs"]) == first_secs:
            assert time.monotonic() < deadline, "no second sign of life"
            time.sleep(0.05)
    assert tags()["driver"] == ""
    ledger.parent.lock.release()
