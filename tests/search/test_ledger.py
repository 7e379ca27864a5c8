import json
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from fakeface_lab.errors import SearchError, TrackingError
from fakeface_lab.search.ledger import Ledger
from fakeface_lab.search.opening import find_search
from fakeface_lab.search.presence import Presence, refuse_second_driver
from fakeface_lab.search.suggestion import Suggestion
from fakeface_lab.tracking.store import Store
from tests.search.curve_work import open_ledger


@pytest.fixture
def store(new_store: Callable[[str], Store]) -> Store:
    return new_store("ledger")


def reopened(ledger: Ledger, **identity: Any) -> Ledger:
    ledger.parent.lock.release()
    return open_ledger(ledger.parent.store, **identity)


def test_a_ledger_read_again_is_the_same(store: Store) -> None:
    ledger = open_ledger(store)
    first = ledger.create(Suggestion({"x": 0.1, "kind": "ä"}, {"tuner/epochs": 2}), "t000", {"seed": "3"})
    second = ledger.create(Suggestion({"x": 1e-300, "kind": "b"}), "t001", {})
    ledger.count_epoch(ledger.count_death(ledger.count_start(second), "gone"), 1)
    ledger.end(first, "finished", 0.1 + 0.2, tags={"kept_epoch": "2"})
    again = reopened(ledger)
    assert again.records == ledger.records
    assert [(record.created_order, record.ended_order) for record in again.records] == [(1, 3), (2, None)]
    assert again.records[0].score == 0.1 + 0.2
    trial = again.trials[1]
    assert (trial.num_starts, trial.num_deaths, trial.epochs_done) == (0, 0, 1)
    assert store.client.get_run(first.run_id).info.status == "FINISHED"
    assert again.num_events == 3


def test_a_status_that_lags_behind_or_was_overwritten_is_repaired(store: Store) -> None:
    ledger = open_ledger(store)
    finished = ledger.end(ledger.create(Suggestion({"x": 0.0}), "t000", {}), "finished", 1.0)
    failed = ledger.end(ledger.create(Suggestion({"x": 1.0}), "t001", {}), "failed", None, "a reason")
    store.client.update_run(finished.run_id, status="RUNNING")
    store.client.set_terminated(failed.run_id, "KILLED")
    reopened(ledger)
    statuses = [store.client.get_run(trial.run_id).info.status for trial in (finished, failed)]
    assert statuses == ["FINISHED", "FAILED"]


def test_a_child_is_made_once(store: Store) -> None:
    ledger = open_ledger(store)
    tags = {"role": "final", "final_key": "a"}
    first = ledger.child("final_key", "final a", tags)
    assert ledger.child("final_key", "final a", tags).info.run_id == first.info.run_id
    assert ledger.child("final_key", "final b", tags | {"final_key": "b"}).info.run_id != first.info.run_id


def test_an_exception_ends_open_children_as_killed(store: Store) -> None:
    ledger = open_ledger(store)
    trial = ledger.create(Suggestion({"x": 0.0}), "t000", {})
    ended = ledger.end(ledger.create(Suggestion({"x": 1.0}), "t001", {}), "finished", 1.0)
    with pytest.raises(KeyboardInterrupt), ledger.stopping():
        raise KeyboardInterrupt
    run = store.client.get_run(trial.run_id)
    assert (run.info.status, run.data.tags["status_reason"]) == ("KILLED", "stopped by Ctrl-C")
    assert store.client.get_run(ended.run_id).info.status == "FINISHED"


def test_the_same_name_with_other_settings_is_refused_with_the_differences(store: Store) -> None:
    ledger = open_ledger(store, epochs=5, space={"x": {"min": 0, "max": 1}})
    with pytest.raises(SearchError, match=r"epochs: 5 there, 6 now; space.x.max: 1 there, 2 now\); use those,"):
        reopened(ledger, epochs=6, space={"x": {"min": 0, "max": 2}})


def test_a_restart_supersedes_and_deletes_nothing(store: Store) -> None:
    old = open_ledger(store)
    old.create(Suggestion({"x": 0.0}), "t000", {})
    old.parent.lock.release()
    new = open_ledger(store, restart=True, epochs=7)
    assert new.trials == []
    assert store.client.get_run(old.parent.run_id).data.tags["superseded_by"] == new.parent.run_id
    found = find_search(store, "curves")
    assert found is not None
    assert found.info.run_id == new.parent.run_id
    assert len(Ledger(old.parent).trials) == 1


def test_a_second_driver_in_the_same_project_is_refused(store: Store) -> None:
    ledger = open_ledger(store)
    with pytest.raises(TrackingError, match="run curves: another process is writing it; wait"):
        open_ledger(store)
    ledger.parent.lock.release()
    open_ledger(store)


@pytest.mark.parametrize(
    ("host", "seen_secs_ago", "is_refused"), [("elsewhere", 5, True), ("elsewhere", 300, False), ("here", 5, True)]
)
def test_a_driver_in_another_folder_or_machine_is_told_from_its_sign_of_life(
    store: Store, host: str, seen_secs_ago: float, is_refused: bool
) -> None:
    ledger = open_ledger(store)
    with Presence(ledger.parent):
        found = store.client.get_run(ledger.parent.run_id)
    sign = json.loads(found.data.tags["driver"])
    parent = psutil.Process().parent()
    assert parent is not None
    sign |= {"seen_secs": time.time() - seen_secs_ago, "pid": parent.pid, "started_secs": parent.create_time()}
    found.data.tags["driver"] = json.dumps(sign if host == "here" else sign | {"host": host})
    if not is_refused:
        refuse_second_driver(found)
        return
    with pytest.raises(SearchError, match=rf"search 'curves': process {parent.pid} on .* drives it, last seen 5 s ago"):
        refuse_second_driver(found)
    # A dead process on this machine, and one that has the number of a dead one, drive nothing.
    found.data.tags["driver"] = json.dumps({**sign, "started_secs": parent.create_time() - 100})
    refuse_second_driver(found)


def test_presence_counts_time_and_leaves_no_sign(store: Store) -> None:
    parent = open_ledger(store).parent
    for _ in range(2):
        with Presence(parent) as presence:
            time.sleep(0.2)
    tags = store.client.get_run(parent.run_id).data.tags
    assert tags["driver"] == ""
    assert 0.4 <= float(tags["used_secs"]) <= presence.used_secs()
