"""The ledger restores what it recorded, and repairs itself."""

from typing import Any

import pytest

from fakeface_lab.errors import SearchError
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.suggest.suggestion import Suggestion
from fakeface_lab.tracking.store import Store
from tests.search.curve_work import open_ledger, reopened


def finished(ledger: Ledger, trial: LedgerTrial, score: float) -> LedgerTrial:
    ended = ledger.end(trial, "finished", score)
    ledger.close(ended, has_model=False, writer=ledger.parent.writer)
    return ledger.note_closed(ended, has_model=False)


def test_a_ledger_read_again_is_the_same(store: Store) -> None:
    ledger = open_ledger(store)
    first = ledger.create(Suggestion({"x": 0.1, "kind": "ä"}, {"tuner/epochs": 2}), "t000", {"seed": "3"})
    second = ledger.create(Suggestion({"x": 1e-300, "kind": "b"}), "t001", {})
    ledger.count_epoch(ledger.count_death(ledger.count_start(second), "gone"), 1)
    finished(ledger, first, 0.1 + 0.2)
    again = reopened(ledger)
    assert again.records == ledger.records
    assert [(record.created_order, record.ended_order) for record in again.records] == [(1, 3), (2, None)]
    assert again.records[0].score == 0.1 + 0.2
    trial = again.trials[1]
    assert (trial.num_starts, trial.num_deaths, trial.epochs_done) == (0, 0, 1)
    assert store.client.get_run(first.run_id).info.status == "FINISHED"
    assert again.num_events == 3


def test_an_outdated_or_overwritten_status_is_repaired(store: Store) -> None:
    ledger = open_ledger(store)
    done = finished(ledger, ledger.create(Suggestion({"x": 0.0}), "t000", {}), 1.0)
    failed = ledger.end(ledger.create(Suggestion({"x": 1.0}), "t001", {}), "failed", None, "a reason")
    store.client.update_run(done.run_id, status="RUNNING")
    store.client.set_terminated(failed.run_id, "KILLED")
    reopened(ledger)
    statuses = [store.client.get_run(trial.run_id).info.status for trial in (done, failed)]
    assert statuses == ["FINISHED", "FAILED"]


def test_a_child_run_is_created_once(store: Store) -> None:
    ledger = open_ledger(store)
    tags = {"role": "final", "final_key": "a"}
    first = ledger.child("final_key", "final a", tags)
    assert ledger.child("final_key", "final a", tags).info.run_id == first.info.run_id
    assert ledger.child("final_key", "final b", tags | {"final_key": "b"}).info.run_id != first.info.run_id


def test_an_exception_ends_open_child_runs_as_killed(store: Store) -> None:
    ledger = open_ledger(store)
    trial = ledger.create(Suggestion({"x": 0.0}), "t000", {})
    ended = finished(ledger, ledger.create(Suggestion({"x": 1.0}), "t001", {}), 1.0)
    with pytest.raises(KeyboardInterrupt), ledger.killing_open_runs():
        raise KeyboardInterrupt
    run = store.client.get_run(trial.run_id)
    assert (run.info.status, run.data.tags["status_reason"]) == ("KILLED", "stopped by Ctrl-C")
    assert store.client.get_run(ended.run_id).info.status == "FINISHED"


def test_of_trials_duplicated_by_a_lost_answer_the_one_in_use_remains(store: Store) -> None:
    ledger = open_ledger(store)
    trials = [ledger.create(Suggestion({"x": float(number)}), f"t00{number}", {}) for number in range(3)]
    for trial in trials:  # empty duplicates, a newer and an older one
        store.client.create_run(store.experiment_id, tags=trial.tags, start_time=trial.run.info.start_time + 1)
        store.client.create_run(store.experiment_id, tags=trial.tags, start_time=1)
    ledger.end(trials[0], "finished", 0.5)
    ledger.count_start(trials[1])
    again = reopened(ledger)
    assert [trial.run_id for trial in again.trials[:2]] == [trial.run_id for trial in trials[:2]]
    assert len(again.children("tags.role = 'trial'")) == 3


def test_long_values_and_settings_are_restored_completely(store: Store) -> None:
    long: dict[str, Any] = {f"units_{number}": "é" * 90 for number in range(300)}
    ledger = open_ledger(store, settings=long)
    ledger.create(Suggestion(long), "t000", {})
    again = reopened(ledger, settings=long)
    assert again.records[0].values == long
    with pytest.raises(SearchError, match=r"settings.units_7: é+ recorded, 1 given"):
        reopened(again, settings={**long, "units_7": 1})


def test_reading_a_ledger_writes_nothing(store: Store) -> None:
    ledger = open_ledger(store)
    ended = ledger.end(ledger.create(Suggestion({"x": 0.0}), "t000", {}), "failed", None, "a reason")
    store.client.update_run(ended.run_id, status="RUNNING")
    Ledger(ledger.parent)
    assert store.client.get_run(ended.run_id).info.status == "RUNNING"
