"""A search resumes by its name, with the settings and the threads that it began with, and for one driver only."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakeface_lab.errors import SearchError, TrackingError
from fakeface_lab.search.ledger.heartbeat import Heartbeat
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.ledger.resume import THREADS_TAG, choose_threads, find_search, open_search
from fakeface_lab.search.suggest.suggestion import Suggestion
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter
from tests.kill_search import PROJECT, read_search, write_project
from tests.search.curve_work import open_ledger, reopened


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


BEGIN = """
import sys
from pathlib import Path
from fakeface_lab.tracking.store import open_store
from tests.search.curve_work import open_ledger
print(open_ledger(open_store(sys.argv[1], Path(sys.argv[2]), sys.argv[3])).parent.run_id)
"""


@pytest.mark.parametrize("restart", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_of_two_drivers_that_begin_a_search_at_the_same_time_one_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    if restart:
        open_ledger(store).parent.lock.release()
    begun: list[str] = []
    create_run = store.client.create_run

    def create_run_later(*args: Any, **kwargs: Any) -> Any:
        """The other driver has begun after this one has looked for the search."""
        if not begun:
            program = BEGIN.replace(", sys.argv[3])", ", sys.argv[3]), restart=True") if restart else BEGIN
            words = [sys.executable, "-c", program, store.uri, str(tmp_path), store.experiment_name]
            done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=PROJECT)
            begun.append(done.stdout.split()[-1])
        return create_run(*args, **kwargs)

    monkeypatch.setattr(store.client, "create_run", create_run_later)
    with pytest.raises(SearchError, match="search 'curves': another process has just begun it; wait for that"):
        open_ledger(store, restart=restart)
    found = find_search(store, "curves")
    assert found is not None
    assert [found.info.run_id] == begun
    assert len(store.runs("tags.role = 'search'")) == 1 + restart
    assert [folder.name for folder in store.work_folder.glob("*/") if folder.name == begun[0]] == []


def test_a_start_that_was_interrupted_leaves_nothing_locked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook keeps the error, and with it all that was open."""
    open_ledger(store).parent.lock.release()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    errors = []
    for place, name in ((Ledger, "repair"), (TrackedRun, "_note_written")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, interrupted)
            with pytest.raises(KeyboardInterrupt) as error:
                open_ledger(store)
        errors.append(error)
    open_ledger(store).parent.lock.release()


def test_a_driver_whose_search_was_deleted_stops_and_says_why(store: Store) -> None:
    ledger = open_ledger(store)
    store.client.delete_run(ledger.parent.run_id)
    with pytest.raises(TrackingError, match="run curves: deleted by a user, or in favour of one begun at the same"):
        ledger.create(Suggestion({"x": 0.0}), "t000", {})


def test_threads_are_those_that_the_search_began_with(new_store: Callable[[str], Store]) -> None:
    store = new_store("threads")
    assert (choose_threads(None, 0), choose_threads(None, 4)) == (0, 4)
    open_search(store, PatientWriter(5), "s", {}, {THREADS_TAG: "3"}, restart=False).parent.lock.release()
    found = find_search(store, "s")
    assert (choose_threads(found, 0), choose_threads(found, 3)) == (3, 3)
    with pytest.raises(SearchError, match=r"threads = 2: search 's' began with 3 per trial, .* leave --threads"):
        choose_threads(found, 2)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2, reason="needs two cores")
def test_a_search_resumes_on_a_machine_with_other_cores(tmp_path: Path) -> None:
    config = write_project(tmp_path, "random", workers=1, final_seeds=0, num_trials=2)
    config.write_text(config.read_text().replace("threads = 1\n", ""))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "FAKEFACE_"))}
    environment |= {"PYTHONPATH": str(PROJECT), "FAKEFACE_CACHE": str(tmp_path / "cache")}
    for cores, words in (({0}, ["--trials", "2"]), ({0, 1}, ["--trials", "3"])):
        program = (
            f"import os, sys; os.sched_setaffinity(0, {cores}); from fakeface_lab.tune import main; sys.exit(main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, "--config", str(config), *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    _, parent, trials, _ = read_search(tmp_path)
    assert [run.data.params["num_threads"] for run in trials] == ["1"] * 3
    assert parent.data.tags[THREADS_TAG] == "1"
