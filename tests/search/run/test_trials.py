"""Searches of a cheap curve: interrupted at every event, with promotions, repeats and limits."""

import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras_tuner
import pytest

from fakeface_lab.errors import AllTrialsFailedError, TrackingError
from fakeface_lab.search.run.engine import InlineEngine
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.tracking.owner import OWNER_TAG, sweep_dead_runs
from fakeface_lab.tracking.store import Store
from tests.search.curve_work import Algorithm, CurveWork, Notes, open_ledger, template
from tests.search.run.curve_search import Facts, facts, run


@pytest.mark.parametrize(
    "algorithm", ["random", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grid", "bayesian", "hyperband"))]
)
def test_a_search_that_is_interrupted_at_every_event_is_the_same(
    new_store: Callable[[str], Store], algorithm: Algorithm
) -> None:
    whole = Notes()
    undisturbed = facts(run(new_store("whole"), algorithm, notes=whole))
    assert len(undisturbed) > 5
    store = new_store("cut")
    cut_at, num_cuts = 1, 0
    while True:
        # Interrupted after one to seven events in turn, so that cuts fall everywhere.
        notes = Notes(cut_at=cut_at)
        try:
            ledger = run(store, algorithm, notes=notes)
            break
        except KeyboardInterrupt:
            num_cuts += 1
            cut_at = 1 + num_cuts % 7
            open_runs = store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'")
            assert [found.data.tags["role"] for found in open_runs if found.data.tags["role"] != "search"] == []
    assert num_cuts > 8
    assert facts(ledger) == undisturbed
    assert not list(store.work_folder.glob("*/epoch.ckpt"))


def test_a_search_resumes_after_another_program_declared_its_trial_dead(
    new_store: Callable[[str], Store], undisturbed: Facts
) -> None:
    store = new_store("swept")
    with pytest.raises(KeyboardInterrupt):
        run(store, notes=Notes(cut_at=14))
    trial = open_ledger(store).trials[-1]
    store.client.update_run(trial.run_id, status="RUNNING")  # as after SIGKILL, with the lock file left behind
    assert sweep_dead_runs(store)
    ended = store.client.search_runs([store.experiment_id], "tags.outcome = 'finished'")[-1]
    store.client.set_terminated(ended.info.run_id, "KILLED")  # as if killed before this write
    assert facts(run(store)) == undisturbed


def test_all_trials_failing_ends_the_search_with_exit_code_4(new_store: Callable[[str], Store]) -> None:
    store = new_store("all")
    with pytest.raises(AllTrialsFailedError, match=r"all 6 trials failed .*a shape") as err:
        run(store, faults={f"trial-{number}": "error" for number in range(6)})
    assert err.value.exit_code == 4


@pytest.mark.slow
def test_a_rung_of_nine_with_three_failures_still_promotes(new_store: Callable[[str], Store]) -> None:
    oracle = template("hyperband", max_epochs=9)
    store = new_store("rung")
    # The rung of nine begins after trial 0; an undisturbed search shows which trials are in it.
    nine = [
        f"trial-{trial.record.sequence}"
        for trial in run(new_store("plain"), "hyperband", oracle=oracle).trials
        if trial.record.bracket_values["tuner/bracket"] == 2 and trial.record.bracket_values["tuner/round"] == 0
    ]
    assert len(nine) == 9
    ledger = run(store, "hyperband", oracle=oracle, faults=dict.fromkeys(nine[:3], "error"))
    rungs = Counter(
        (trial.record.bracket_values["tuner/round"], trial.record.status)
        for trial in ledger.trials
        if trial.record.bracket_values["tuner/bracket"] == 2
    )
    assert rungs == {(0, "finished"): 6, (0, "failed"): 3, (1, "finished"): 3, (2, "finished"): 1}
    promoted = {
        trial.record.bracket_values["tuner/trial_id"] for trial in ledger.trials if "tuner/trial_id" in
        trial.record.bracket_values
    }  # fmt: skip
    assert promoted.isdisjoint({int(key.removeprefix("trial-")) for key in nine[:3]})


def test_a_promoted_trial_resumes_from_its_parent_and_unneeded_checkpoints_are_deleted(
    new_store: Callable[[str], Store],
) -> None:
    store = new_store("promoted")
    kept: list[int] = []

    class Watching(Notes):
        def ended(self, trial: Any) -> None:
            kept.append(len(list(store.work_folder.glob("*/epoch.ckpt"))))

    ledger = run(store, "hyperband", notes=Watching())
    trained = Counter((store.project / "trained.txt").read_text().splitlines())
    assert set(trained.values()) == {1}  # no epoch twice
    promoted = [trial for trial in ledger.trials if "tuner/trial_id" in trial.record.bracket_values]
    assert promoted
    for trial in promoted:
        key = f"trial-{trial.record.sequence}"
        assert f"{key} 2" not in trained  # its parent trained this epoch
        assert f"{key} 4" in trained
        history = store.client.get_metric_history(trial.run_id, "val_loss")
        assert sorted(point.step for point in history) == [1, 2, 3, 4]
    assert max(kept) >= 5  # a whole rung waits for its promotions
    assert not list(store.work_folder.glob("*/epoch.ckpt"))


def test_a_configuration_finished_at_the_same_budget_is_not_trained_again(new_store: Callable[[str], Store]) -> None:
    class Stubborn(keras_tuner.Oracle):
        def populate_space(self, trial_id: str) -> dict[str, Any]:
            return {"status": "RUNNING", "values": {"x": 0.25 * (int(trial_id) % 2), "kind": "a"}}

    space = template("random").hyperparameters
    oracle = Stubborn(objective=keras_tuner.Objective("val_loss", "min"), max_trials=4, hyperparameters=space, seed=1)
    store = new_store("repeats")
    ledger = run(store, oracle=oracle)
    assert [trial.tags.get("duplicate_of") for trial in ledger.trials] == [None, None, "0", "1"]
    trained = (store.project / "trained.txt").read_text()
    assert "trial-1 4" in trained
    assert "trial-2" not in trained
    rows = facts(ledger)
    for repeat, original in ((2, 0), (3, 1)):
        assert rows[repeat][0].score == rows[original][0].score
        assert rows[repeat][1:] == rows[original][1:]


def test_the_search_says_who_drives_it_until_all_is_written(new_store: Callable[[str], Store]) -> None:
    store = new_store("driven")
    ledger, work = open_ledger(store), CurveWork(store.project / "trained.txt")

    def driver() -> str:
        return str(store.client.get_run(ledger.parent.run_id).data.tags["driver"])

    with ledger.driving():
        Trials(ledger, template("random", 1), work, InlineEngine(work), Notes(), epochs=4, seed=3).run()
        assert json.loads(driver())["pid"] == os.getpid()  # as if final trainings and a report followed
    assert driver() == ""


def test_a_process_that_was_replaced_leaves_the_search_to_its_successor(new_store: Callable[[str], Store]) -> None:
    store = new_store("replaced")
    ledger = open_ledger(store)
    successor = {OWNER_TAG: "successor", "driver": "its heartbeat"}
    with pytest.raises(TrackingError, match="another process has taken it over"), ledger.driving():
        ledger.parent.set_tags(successor)
    run = store.client.get_run(ledger.parent.run_id)
    assert run.data.tags["driver"] == "its heartbeat"
    assert run.info.status == "RUNNING"


def test_hours_are_counted_over_restarts_and_a_search_can_be_extended(new_store: Callable[[str], Store]) -> None:
    store = new_store("hours")
    with pytest.raises(KeyboardInterrupt):
        run(store, notes=Notes(cut_at=3))
    ledger = open_ledger(store)
    ledger.parent.lock.release()
    used = store.client.get_run(ledger.parent.run_id).data.tags
    assert float(used["used_secs"]) > 0
    assert used["driver"] == ""
    store.client.set_tag(ledger.parent.run_id, "used_secs", "7200")
    # Out of time: the trial that has started is finished, and no other one starts.
    assert [trial.record.status for trial in run(store, hours=2).trials] == ["finished"]
    assert len(run(store, hours=3, oracle=template("random", 3)).trials) == 3
    first_three = facts(run(store, oracle=template("random", 3)))
    assert facts(run(store, oracle=template("random", 6)))[:3] == first_three
