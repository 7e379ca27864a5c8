"""Searches with several trainings at a time, which end in an order that the test decides."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras_tuner
import pytest

from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.run import trials as trials_module
from fakeface_lab.search.run.engine import InlineEngine
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.search.suggest.suggestion import Wait, suggest
from fakeface_lab.tracking.store import Store
from tests.search.curve_work import CurveWork, Notes, open_ledger, template
from tests.search.run.curve_search import run
from tests.search.run.queued_engine import QueuedEngine


def run_two_at_a_time(
    ledger: Ledger, oracle: keras_tuner.Oracle, choose: Callable[[Trials, list[str]], Any]
) -> list[Mapping[str, Any]]:
    """Run a search whose engine has two slots; return the metrics of its trials' runs."""
    store = ledger.parent.store
    work = CurveWork(store.project / "trained.txt")
    engine = QueuedEngine(work, 2, lambda keys: choose(driver, keys))
    driver = Trials(ledger, oracle, work, engine, Notes(), epochs=4, seed=3)
    with ledger.driving():
        driver.run()
    ledger.parent.lock.release()
    return [store.client.get_run(trial.run_id).data.metrics for trial in ledger.trials]


def test_a_failure_while_a_suggestion_is_computed_does_not_end_the_search(
    local_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suggestion says that there is nothing until the last trial ends; it has failed when this is known."""

    def suggest_slowly(*args: Any) -> Any:
        time.sleep(0.5)
        return suggest(*args)

    monkeypatch.setattr(trials_module, "suggest", suggest_slowly)
    failed: list[str] = []

    def choose(driver: Trials, keys: list[str]) -> tuple[str, Literal["done", "failed"]] | None:
        if len(keys) == 1 and driver.is_suggesting and not failed:
            is_rung = len(driver.ledger.trials) > 4
            if not is_rung or not isinstance(suggest(driver._template, driver.ledger.records), Wait):
                return None
            for upload in driver.uploads._pending:  # one that is pending would keep the search alive
                upload.job.result()
            failed.extend(keys)
            return keys[0], "failed"
        # Trial 1 is the last of its rung.
        return min(keys, key=lambda key: key == "trial-1"), "done"

    ledger = open_ledger(local_store)
    run_two_at_a_time(ledger, template("hyperband"), choose)
    assert failed
    num_trials = len(ledger.trials)
    assert len(run(local_store, "hyperband").trials) == num_trials, "started again, it has nothing left to try"


class Repeating(keras_tuner.Oracle):
    """Suggests two configurations in turn."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        return {"status": "RUNNING", "values": {"x": 0.25 * (int(trial_id) % 2), "kind": "a"}}


@dataclass(frozen=True)
class NeverUploaded(CurveWork):
    """Its uploads hang, as with a store that does not answer."""

    def finish(self, run: Any, assignment: Any, outcome: Any, *, keep_model: bool) -> None:
        threading.Event().wait()


@dataclass
class CutAfterRepeat(Notes):
    """Interrupts the search after trial 2, which repeats trial 0."""

    def ended(self, trial: Any) -> None:
        if trial.record.sequence == 2:
            raise KeyboardInterrupt


def test_a_repeat_waits_for_the_upload_that_a_kill_has_interrupted(local_store: Store) -> None:
    objective = keras_tuner.Objective("val_loss", "min")
    space = template("random").hyperparameters
    oracle = Repeating(objective=objective, max_trials=4, hyperparameters=space, seed=1)
    work = NeverUploaded(local_store.project / "trained.txt")
    ledger = open_ledger(local_store)
    with pytest.raises(KeyboardInterrupt), ledger.driving():
        Trials(ledger, oracle, work, InlineEngine(work), CutAfterRepeat(), epochs=4, seed=3).run()

    def choose(driver: Trials, keys: Sequence[str]) -> tuple[str, Literal["done"]]:
        time.sleep(0.2)  # a worker that has to start first
        return keys[0], "done"

    metrics = run_two_at_a_time(open_ledger(local_store), oracle, choose)
    assert [set(metrics[repeat]) - {"score"} for repeat in (2, 3)] == [
        set(metrics[first]) - {"score"} for first in (0, 1)
    ]
    assert all("num_epochs" in one for one in metrics)
