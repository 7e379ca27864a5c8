"""Uploads hold up no trial, survive an interruption, and models that are no longer among the best are deleted."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from fakeface_lab.search.run import driver as driver_module
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.tracking.store import Store
from tests.search.curve_work import CurveWork, Notes, open_ledger, template
from tests.search.run.curve_search import Facts, facts, open_ledger_released, run
from tests.search.run.queued_engine import QueuedEngine


@dataclass(frozen=True)
class Interrupted(CurveWork):
    """Interrupts its search during the first upload."""

    def finish(self, run: Any, assignment: Any, outcome: Any, *, keep_model: bool) -> None:
        raise KeyboardInterrupt


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


@dataclass(frozen=True)
class StoredBesideTheNext(CurveWork):
    """Uploads a trial only after the next one has been trained."""

    def finish(self, run: Any, assignment: Any, outcome: Any, *, keep_model: bool) -> None:
        deadline = time.monotonic() + 60
        number = int(assignment.key.removeprefix("trial-"))
        while number < 5 and f"trial-{number + 1} 4" not in self.trained.read_text():
            assert time.monotonic() < deadline, "the next trial waits for this upload"
            time.sleep(0.01)
        super().finish(run, assignment, outcome, keep_model=keep_model)


def test_a_driver_with_one_worker_waits_for_no_upload_before_the_next_trial(
    new_store: Callable[[str], Store], undisturbed: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "_POLL_SECS", 3600.0)
    store = new_store("beside")
    ledger, work = open_ledger(store), StoredBesideTheNext(store.project / "trained.txt")

    def choose(keys: list[str]) -> tuple[str, Literal["done"]] | None:
        # Trial 0 ends when its own beginning is stored, so that nothing else is uploaded.
        return None if keys == ["trial-0"] and trials.uploads._pending else (keys[0], "done")

    trials = Trials(ledger, template("random"), work, QueuedEngine(work, 1, choose), Notes(), epochs=4, seed=3)
    with ledger.driving():
        trials.run()
    assert facts(ledger) == undisturbed


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
