"""The ledger restores what it recorded, repairs itself, and lets one driver write."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakeface_lab.errors import SearchError, TrackingError
from fakeface_lab.search.ledger import heartbeat
from fakeface_lab.search.ledger.heartbeat import Heartbeat
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.ledger.resume import find_search
from fakeface_lab.search.suggest.suggestion import Suggestion
from fakeface_lab.tracking.store import Store
from tests.search.curve_work import open_ledger

ROOT = Path(__file__).parents[3]


@pytest.fixture
def store(new_store: Callable[[str], Store]) -> Store:
    return new_store("ledger")


def reopened(ledger: Ledger, **identity: Any) -> Ledger:
    ledger.parent.lock.release()
    return open_ledger(ledger.parent.store, **identity)


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


def test_the_same_name_with_other_settings_is_refused_with_the_differences(store: Store) -> None:
    ledger = open_ledger(store, epochs=5, space={"x": {"min": 0, "max": 1}})
    with pytest.raises(SearchError, match=r"epochs: 5 recorded, 6 given; space.x.max: 1 recorded, 2 given\); use"):
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
    with pytest.raises(TrackingError, match=r"run curves: another process is writing it; wait"):
        open_ledger(store)
    ledger.parent.lock.release()
    open_ledger(store)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECS", 0.2)
    monkeypatch.setattr(heartbeat, "WATCH_SECS", 2.0)


@pytest.fixture
def elsewhere(store: Store, tmp_path: Path) -> Store:
    """The same store used from another project folder, as from another machine."""
    (tmp_path / "elsewhere").mkdir()
    return replace(store, project=tmp_path / "elsewhere")


@pytest.mark.usefixtures("quick")
def test_a_driver_elsewhere_is_recognized_by_its_heartbeat(store: Store, elsewhere: Store) -> None:
    ledger = open_ledger(store)
    with Heartbeat(ledger.parent), pytest.raises(SearchError, match=r"search 'curves': process .* drives it; wait for"):
        open_ledger(elsewhere)
    ledger.parent.require_owned()


@pytest.mark.usefixtures("quick")
def test_a_silent_driver_elsewhere_is_replaced_and_notices_it(store: Store, elsewhere: Store) -> None:
    old = open_ledger(store)
    trial = old.create(Suggestion({"x": 0.0}), "t000", {})
    Heartbeat(old.parent).__enter__().stop_beating()  # as if suspended: SIGSTOP, a sleeping laptop
    program = (
        "import sys; from pathlib import Path\n"
        "from fakeface_lab.search.ledger import heartbeat; from tests.search.curve_work import open_ledger\n"
        "from fakeface_lab.tracking.store import open_store\n"
        "heartbeat.WATCH_SECS = 1.0\n"
        "ledger = open_ledger(open_store(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))\n"
        "print(len(ledger.trials), 'trial')\n"
    )
    words = [sys.executable, "-c", program, store.uri, str(elsewhere.project), store.experiment_name]
    assert "1 trial" in subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    writes: list[Callable[[], object]] = [
        lambda: old.create(Suggestion({"x": 1.0}), "t001", {}),
        lambda: old.end(trial, "finished", 1.0),
        old.parent.require_owned,
    ]
    for write in writes:
        with pytest.raises(TrackingError, match=r"run curves: another process has taken it over .*; this one stops"):
            write()
    assert len(Ledger(old.parent).trials) == 1
    assert "outcome" not in store.client.get_run(trial.run_id).data.tags


@pytest.mark.usefixtures("quick")
def test_a_killed_driver_of_this_folder_is_not_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = open_ledger(store)
    Heartbeat(ledger.parent).__enter__().stop_beating()
    ledger.parent.lock.release()  # as when a process dies
    monkeypatch.setattr(heartbeat, "WATCH_SECS", 1e9)
    open_ledger(store)


def test_the_heartbeat_counts_time_and_ends_with_an_empty_tag(store: Store) -> None:
    parent = open_ledger(store).parent
    for _ in range(2):
        with Heartbeat(parent) as beating:
            time.sleep(0.2)
    tags = store.client.get_run(parent.run_id).data.tags
    assert tags["driver"] == ""
    assert 0.4 <= float(tags["used_secs"]) <= beating.used_secs()


@pytest.mark.usefixtures("quick")
def test_the_heart_beats(store: Store) -> None:
    parent = open_ledger(store).parent
    seen: set[str] = set()
    with Heartbeat(parent):
        deadline = time.monotonic() + 20
        while len(seen) < 3 and time.monotonic() < deadline:
            seen.add(store.client.get_run(parent.run_id).data.tags["driver"])
            time.sleep(0.05)
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["bob's search", 'the "best"', "[/x] y", "50 % {off}; -- x"])
def test_a_search_of_any_name_resumes(store: Store, name: str) -> None:
    ledger = open_ledger(store, name)
    ledger.create(Suggestion({"x": 0.0}), "t000", {})
    ledger.parent.lock.release()
    assert len(open_ledger(store, name).trials) == 1


def test_a_name_with_both_kinds_of_quotes_is_refused(store: Store) -> None:
    with pytest.raises(
        TrackingError, match=r"name a'b\"c: holds both ' and \", which MLflow cannot search for; use one"
    ):
        open_ledger(store, "a'b\"c")


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


def test_of_parents_duplicated_by_a_lost_answer_the_one_in_use_remains(store: Store) -> None:
    ledger = open_ledger(store)
    parent = store.client.get_run(ledger.parent.run_id)
    ledger.create(Suggestion({"x": 0.0}), "t000", {})
    with Heartbeat(ledger.parent):
        pass
    store.client.create_run(store.experiment_id, tags=parent.data.tags)
    again = reopened(ledger)
    assert (again.parent.run_id, len(again.trials)) == (ledger.parent.run_id, 1)
    assert len(store.client.search_runs([store.experiment_id], "tags.role = 'search'")) == 1


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
