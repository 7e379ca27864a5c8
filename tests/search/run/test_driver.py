"""The driver of a search: faults of trials and of the machine, trials that kill their process, and its own death."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_tuner
import pytest
from keras_tuner import oracles
from mlflow.tracking import MlflowClient

from fakeface_lab.backend import keras
from fakeface_lab.errors import SearchError
from fakeface_lab.keras_tuner.tuner import Tuner
from fakeface_lab.search.run.driver import MAX_STARTS
from fakeface_lab.tracking.store import Store
from tests.keras_tuner.tiny_tuner import FIT, X, Y, runs_of, small
from tests.search.curve_work import Notes
from tests.search.run.curve_search import Facts, facts, open_ledger_released, run


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


class Killer(keras_tuner.HyperModel):
    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        return small(hp)

    def fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        if hp.get("units") == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return model.fit(*args, **kwargs)


@pytest.mark.slow
def test_a_trial_that_kills_its_process_fails_and_the_search_continues(project_with_tables: Path) -> None:
    tuner = Tuner(oracles.GridSearchOracle("val_loss"), Killer(), threads=1)
    tuner.search(X, Y, **FIT)
    runs = runs_of(tuner)
    assert [run.info.status for run in runs] == ["FINISHED", "FAILED", "FINISHED"]
    assert runs[1].data.tags["num_deaths"] == "3"
    assert "signal 9" in runs[1].data.tags["status_reason"]


SCRIPT = """
import sys
import keras_tuner
import numpy as np
import fakeface_lab
from tests.keras_tuner import tiny_tuner

def build(hp):
    model = tiny_tuner.build(hp)
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    return model

x = np.tile(tiny_tuner.X, (100, 1))
y = np.tile(tiny_tuner.Y, 100)
oracle = keras_tuner.oracles.BayesianOptimizationOracle("val_loss", max_trials=4, num_initial_points=2, seed=5)
tuner = fakeface_lab.Tuner(oracle, build, threads=1)
tuner.search(x, y, epochs=4, batch_size=8, validation_split=0.2)
"""


def start(folder: Path) -> "subprocess.Popen[str]":
    script = folder / "script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen(
        [sys.executable, str(script)], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def recorded(folder: Path) -> list[tuple[dict[str, str], list[tuple[int, float]], str]]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.role = 'trial'")
    runs = sorted(runs, key=lambda run: int(run.data.tags["trial"]))
    curves = [client.get_metric_history(run.info.run_id, "val_loss") for run in runs]
    return [
        (run.data.params, [(point.step, point.value) for point in curve], run.data.tags.get("score", ""))
        for run, curve in zip(runs, curves, strict=True)
    ]


def epochs_done(folder: Path) -> int:
    return sum(len(curve) for _, curve, _ in recorded(folder))


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_a_killed_driver_resumes_and_ends_with_the_same_result(new_project: Callable[[str], Path]) -> None:
    cut, whole = new_project("cut"), new_project("whole")
    driver = start(cut)
    deadline = time.monotonic() + 100
    while epochs_done(cut) < 6 and time.monotonic() < deadline and driver.poll() is None:
        time.sleep(0.1)
    assert driver.poll() is None, driver.communicate()[1][-2000:]
    driver.kill()
    driver.communicate()
    before = epochs_done(cut)
    assert 6 <= before < 16, "killed in the middle of a trial"
    drivers = [start(cut), start(whole)]
    for process in drivers:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-2000:]
    assert recorded(cut) == recorded(whole)
    assert len(recorded(cut)) == 4
    for _, curve, score in recorded(cut):
        assert [step for step, _ in curve] == [1, 2, 3, 4]
        assert float(score) == min(value for _, value in curve)
