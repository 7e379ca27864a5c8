"""A search whose tracking server is away for some time, or whose folder changes."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakeface_lab.tracking.store import Store, open_store
from tests.mlflow_server import Server
from tests.search.curve_work import Notes
from tests.search.run.curve_search import facts, run


class Outage(Notes):
    """Kills the server at one event, and restarts it after some seconds."""

    def __init__(self, server: Server, at_event: int, away_secs: float) -> None:
        super().__init__()
        self._server, self._at_event, self._away_secs = server, at_event, away_secs
        self.thread: threading.Thread | None = None

    def _note(self, text: str) -> None:
        super()._note(text)
        if len(self.lines) == self._at_event:
            self._server.kill()
            self.thread = threading.Thread(target=self._bring_back)
            self.thread.start()

    def _bring_back(self) -> None:
        time.sleep(self._away_secs)
        self._server.start()


@pytest.mark.slow
@pytest.mark.parametrize("away_secs", [5, 60])
def test_a_server_outage_changes_nothing(
    server: Server, new_store: Callable[[str], Store], tmp_path: Path, away_secs: float
) -> None:
    undisturbed = facts(run(new_store("file"), "hyperband"))
    (tmp_path / "remote").mkdir()
    store = open_store(server.uri, tmp_path / "remote", f"away {away_secs}")
    notes = Outage(server, 24, away_secs)
    ledger = run(store, "hyperband", notes=notes)
    assert notes.thread is not None
    notes.thread.join()
    assert facts(ledger) == undisturbed


@pytest.mark.slow
def test_a_search_resumes_in_another_folder_on_the_same_server(
    server: Server, new_store: Callable[[str], Store], tmp_path: Path
) -> None:
    undisturbed = facts(run(new_store("file")))
    stores: list[Any] = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        stores.append(open_store(server.uri, tmp_path / name, "two folders"))
    with pytest.raises(KeyboardInterrupt):
        run(stores[0], notes=Notes(cut_at=17))  # the checkpoint of the second trial stays there
    ledger = run(stores[1])
    assert facts(ledger) == undisturbed
    trained = (tmp_path / "second" / "trained.txt").read_text()
    assert trained.startswith("trial-1 1\n")
