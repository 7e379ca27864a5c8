"""What trials find, in the ledger: written with the end of the trial, once, and there again after any stop."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras_tuner
import pytest
from keras_tuner.engine import hyperparameters as kt_hyperparameters

from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.run.engine import Assignment, InlineEngine
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.tracking.store import Store
from fakeface_lab.training.epochs import Listener
from fakeface_lab.training.outcome import Outcome
from tests.search.curve_work import CurveWork, Notes, open_ledger, template


@pytest.fixture
def store(new_store: Callable[[str], Store]) -> Store:
    return new_store("growing")


ASKED_BY = {"b": "depth", "c": "width"}


def asked_by(kind: str) -> list[dict[str, Any]]:
    """Return, serialized, what a trial of this kind asks for."""
    space = keras_tuner.HyperParameters()
    space.Int(ASKED_BY[kind], 1, 4)
    return [kt_hyperparameters.serialize(hp) for hp in space.space]


class Finding(CurveWork):
    """A trial of kind `b` asks for a depth; one of `c` for a width, and returns a score that is not finite."""

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        outcome = super().__call__(assignment, folder, listener)
        kind = str(assignment.values["kind"])
        if kind in ASKED_BY:
            values = {ASKED_BY[kind]: assignment.values.get(ASKED_BY[kind], 1)}
            score = float("inf") if kind == "c" else None
            outcome = replace(outcome, found=asked_by(kind), found_values=values, score=score)
            (folder / "outcome.json").write_text(json.dumps(asdict(outcome)))
        return outcome


def run(store: Store, name: str, cut_at: int = -1) -> Ledger:
    ledger = open_ledger(store, name=name)
    work = Finding(store.project / "trained.txt")
    oracle = template("random", 7)
    oracle.max_consecutive_failed_trials = 99
    try:
        Trials(ledger, oracle, work, InlineEngine(work), Notes(cut_at), epochs=1, seed=3).run()
    finally:
        ledger.parent.lock.release()
    return ledger


def test_what_trials_find_is_in_the_write_that_ends_them(store: Store) -> None:
    ledger = run(store, "whole")
    expected = {}
    for kind, status in (("b", "finished"), ("c", "failed")):
        finder = next(trial.record for trial in ledger.trials if trial.record.values["kind"] == kind)
        assert (finder.status, finder.values[ASKED_BY[kind]]) == (status, 1)
        expected[finder.ended_order] = asked_by(kind)
        later = ledger.records[finder.sequence + 1 :]
        assert len({trial.values[ASKED_BY[kind]] for trial in later}) > 1
    assert ledger.growth == expected, "nothing is found twice"


def test_a_growing_search_that_is_stopped_again_and_again_is_the_same(store: Store) -> None:
    whole, num_stops = run(store, "whole").records, 0
    while True:
        try:
            stopped = run(store, "stopped", cut_at=6).records
            break
        except KeyboardInterrupt:
            num_stops += 1
    assert num_stops >= 3
    assert stopped == whole
