"""Searches of a cheap curve: interrupted at every event, with faults, promotions, repeats and limits."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras_tuner
import pytest

from fakeface_lab.errors import AllTrialsFailedError, SearchError
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.run.driver import MAX_STARTS
from fakeface_lab.search.run.engine import InlineEngine
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.tracking.owner import sweep_dead_runs
from fakeface_lab.tracking.store import Store, open_store
from tests.search.curve_work import Algorithm, CurveWork, Notes, open_ledger, template


def run(
    store: Store,
    algorithm: Algorithm = "random",
    *,
    notes: Notes | None = None,
    faults: Mapping[str, str] | None = None,
    oracle: keras_tuner.Oracle | None = None,
    hours: float | None = None,
    keep_models: str = "all",
    work: CurveWork | None = None,
    **identity: Any,
) -> Ledger:
    """Run or resume a search to its end in this process."""
    ledger = open_ledger(store, **identity)
    work = work or CurveWork(store.project / "trained.txt", dict(faults or {}))
    try:
        Trials(
            ledger,
            oracle or template(algorithm),
            work,
            lambda handler: InlineEngine(work, handler),
            notes or Notes(),
            epochs=4,
            seed=3,
            hours=hours,
            keep_models=keep_models,
        ).run()
        return ledger
    finally:
        ledger.parent.lock.release()


Facts = list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_project: Path) -> Facts:
    """The facts of an uninterrupted random search."""
    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(empty_project / "mlflow.db", root / "mlflow.db")
    return facts(run(open_store(None, root, "whole")))


def facts(ledger: Ledger) -> Facts:
    """Return everything of a search that must not depend on interruptions."""
    client = ledger.parent.store.client
    rows = []
    for trial in ledger.trials:
        metrics = client.get_run(trial.run_id).data.metrics
        points = {
            key: [(point.step, point.value) for point in client.get_metric_history(trial.run_id, key)]
            for key in metrics
            if key != "epoch_secs"
        }
        assert all(len(steps) == len(dict(steps)) for steps in points.values()), points
        rows.append((trial.record, points, client.get_run(trial.run_id).info.status))
    return rows


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


def test_failed_trials_do_not_affect_others_and_are_explained(new_store: Callable[[str], Store]) -> None:
    ledger = run(new_store("faults"), faults={"trial-1": "error", "trial-3": "nan", "trial-4": "memory"})
    status = [trial.record.status for trial in ledger.trials]
    assert status == ["finished", "failed", "finished", "failed", "failed", "finished"]
    reasons = [ledger.trials[number].tags["status_reason"] for number in (1, 3, 4)]
    assert reasons == [
        "ValueError: a shape does not fit",
        "training diverged: loss became nan",
        "3 deaths without a newly finished epoch: out of memory: no room for the weights",
    ]
    store = ledger.parent.store
    failed = store.client.get_run(ledger.trials[1].run_id)
    assert failed.info.status == "FAILED"
    assert set(failed.data.params) == {"x", "kind", "epochs"}


def test_a_full_disk_stops_the_search_and_fails_no_trial(new_store: Callable[[str], Store], undisturbed: Facts) -> None:
    store = new_store("full")
    for _ in range(4):  # twelve starts of the trial: more than it may have, but none was its fault
        with pytest.raises(
            SearchError, match=r"the machine ended 3 attempts in a row \(OSError: .*No space left"
        ) as err:
            run(store, faults={f"trial-{number}": "disk" for number in range(2, 6)})
        assert "the same command resumes once the cause is gone" in str(err.value)
    assert [trial.record.status for trial in open_ledger_released(store).trials] == ["finished", "finished", "running"]
    assert facts(run(store)) == undisturbed


def test_one_lost_connection_changes_nothing(new_store: Callable[[str], Store], undisturbed: Facts) -> None:
    store = new_store("once")
    notes = Notes()
    assert facts(run(store, notes=notes, faults={"trial-1": "once disk", "trial-3": "once disk"})) == undisturbed
    assert len([line for line in notes.lines if line.startswith("retry")]) == 2


def test_trials_that_all_die_of_the_same_cause_stop_the_search(new_store: Callable[[str], Store]) -> None:
    store = new_store("stumbling")
    with pytest.raises(
        SearchError, match=r"3 trials in a row died of the same cause .InternalError: cuDNN is out of order"
    ):
        run(store, faults={f"trial-{number}": "stumble" for number in range(1, 6)})
    status = [trial.record.status for trial in open_ledger_released(store).trials]
    assert status == ["finished", "failed", "failed", "running"]
    assert [trial.record.status for trial in run(store).trials][3:] == ["finished"] * 3


def open_ledger_released(store: Store) -> Ledger:
    ledger = open_ledger(store)
    ledger.parent.lock.release()
    return ledger


def test_a_trial_whose_folder_is_lost_is_trained_again_and_keeps_its_score(
    new_store: Callable[[str], Store], undisturbed: Facts
) -> None:
    store = new_store("lost")
    with pytest.raises(KeyboardInterrupt):
        run(store, work=Interrupted(store.project / "trained.txt"))
    ledger = open_ledger_released(store)
    committed = ledger.trials[0]
    assert (committed.record.status, committed.is_open) == ("finished", True)
    shutil.rmtree(store.work_folder / committed.run_id)
    assert facts(run(store)) == undisturbed


@dataclass(frozen=True)
class Interrupted(CurveWork):
    """Interrupts its search during the first upload."""

    def finish(self, run: Any, assignment: Any, outcome: Any, *, keep_model: bool) -> None:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class SlowlyStored(CurveWork):
    """Uploads trial 0 only after all trials have been trained."""

    def finish(self, run: Any, assignment: Any, outcome: Any, *, keep_model: bool) -> None:
        deadline = time.monotonic() + 240
        while assignment.key == "trial-0" and "trial-5 4" not in self.trained.read_text():
            assert time.monotonic() < deadline, "the other trials wait for this upload"
            time.sleep(0.1)
        super().finish(run, assignment, outcome, keep_model=keep_model)


def test_the_next_trials_do_not_wait_for_an_upload(new_store: Callable[[str], Store], undisturbed: Facts) -> None:
    store = new_store("slow")
    assert facts(run(store, work=SlowlyStored(store.project / "trained.txt"))) == undisturbed


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


@pytest.mark.parametrize(
    ("keep_models", "num_kept"),
    [
        pytest.param("all", 6, marks=pytest.mark.slow),
        pytest.param("best", 1, marks=pytest.mark.slow),
        ("top-2", 2),
    ],
)
def test_models_of_trials_that_are_no_longer_among_the_best_are_deleted(
    new_store: Callable[[str], Store], keep_models: str, num_kept: int
) -> None:
    store = new_store("models")
    ledger = run(store, keep_models=keep_models)
    ranked = sorted(ledger.trials, key=lambda trial: trial.record.score or 0)
    with_model = [
        trial.record.sequence
        for trial in ranked
        if store.client.search_logged_models([store.experiment_id], f"source_run_id = '{trial.run_id}'")
    ]
    assert with_model == [trial.record.sequence for trial in ranked[:num_kept]]
    assert len(list((store.project / "mlruns").rglob("w.bin"))) == num_kept
    marked = [trial.record.sequence for trial in ranked if trial.tags["model"] == "logged"]
    assert marked == with_model


@pytest.mark.slow
def test_ten_starts_without_progress_fail_the_trial(new_store: Callable[[str], Store]) -> None:
    store = new_store("starts")
    for _ in range(MAX_STARTS):
        with pytest.raises(KeyboardInterrupt):
            run(store, notes=Notes(cut_at=1))
    ledger = run(store)
    assert ledger.trials[0].record.status == "failed"
    assert ledger.trials[0].tags["status_reason"] == "started 10 times without finishing an epoch"
    assert all(trial.record.status == "finished" for trial in ledger.trials[1:])
