"""A copied oracle suggests what KerasTuner alone would, and one of the user's own works as well."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras_tuner
import pytest
from keras_tuner import oracles as kt_oracles
from keras_tuner.src.engine.oracle import LOCKS, THREADS

from fakeface_lab.detector.space import build_oracle
from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggest.oracles import num_configurations
from fakeface_lab.search.suggest.suggestion import Suggestion, TrialRecord, suggest
from fakeface_lab.settings import Algorithm
from tests.search.suggest.simulated_search import (
    ALGORITHMS,
    configurations,
    cut,
    ended,
    kerastuner_alone,
    num_events,
    score_or_fail,
    search,
    shuffled,
    small_space,
    spec_of,
    wide_space,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*")


def test_random_equals_a_long_lived_oracle_after_the_defaults(tmp_path: Path) -> None:
    template = build_oracle(spec_of("random", max_trials=12))
    alone = kerastuner_alone(build_oracle(spec_of("random", max_trials=None)), tmp_path, 11)
    assert [dict(trial.values) for trial in search(template)[1:]] == alone


@pytest.mark.parametrize("num_workers", [1, 3])
def test_grid_equals_a_long_lived_oracle(tmp_path: Path, num_workers: int) -> None:
    alone = kerastuner_alone(build_oracle(spec_of("grid")), tmp_path)
    table = search(build_oracle(spec_of("grid")), score_or_fail, num_workers=num_workers)
    assert sorted(configurations(table)) == sorted(tuple(sorted(values.items())) for values in alone)
    assert [dict(trial.values) for trial in table] == alone


def test_hyperband_equals_a_long_lived_oracle_after_the_defaults(tmp_path: Path) -> None:
    alone = kerastuner_alone(build_oracle(spec_of("hyperband")), tmp_path)
    for values in alone:
        if "tuner/trial_id" in values:
            values["tuner/trial_id"] = int(values["tuner/trial_id"]) + 1  # here trial 0 has the defaults
    table = search(build_oracle(spec_of("hyperband")))
    assert [dict(trial.values) | dict(trial.bracket_values) for trial in table[1:]] == alone


def test_inactive_hyperparameters_have_no_value() -> None:
    for algorithm in ALGORITHMS:
        space = keras_tuner.HyperParameters()
        space.Choice("kind", ["plain", "deep"])
        with space.conditional_scope("kind", ["deep"]):
            space.Int("depth", 2, 4)
        spec = spec_of(algorithm, space=space, max_trials=None if algorithm == "grid" else 4)
        table = search(build_oracle(spec))
        assert dict(table[0].values) == {"kind": "plain"}
        assert all(("depth" in trial.values) == (trial.values["kind"] == "deep") for trial in table)
        if algorithm != "hyperband":
            assert len(set(configurations(table))) == num_configurations(space) == 4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_values_are_plain_python(algorithm: Algorithm) -> None:
    for trial in search(build_oracle(spec_of(algorithm))):
        for value in [*trial.values.values(), *trial.bracket_values.values()]:
            assert type(value) in (int, float, str, bool)


def test_a_promotion_has_the_values_of_its_parent_and_resumes_where_it_ended() -> None:
    table = search(build_oracle(spec_of("hyperband")), num_workers=3, pick=shuffled)
    promoted = [trial for trial in table if "tuner/trial_id" in trial.bracket_values]
    assert promoted
    for trial in promoted:
        parent = table[int(trial.bracket_values["tuner/trial_id"])]
        assert trial.values == parent.values
        assert trial.bracket_values["tuner/initial_epoch"] == parent.bracket_values["tuner/epochs"]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_hyperband_ends_when_a_small_space_has_no_more_for_its_rounds(num_workers: int) -> None:
    spec = spec_of("hyperband", space=small_space(), max_epochs=9, factor=3)
    table = search(build_oracle(spec), score_or_fail, num_workers=num_workers)
    begun = [trial for trial in table if trial.bracket_values["tuner/round"] == 0]
    assert len(begun) == len(set(configurations(begun))) == 12


def test_bayesian_assumes_a_poor_score_for_a_running_trial() -> None:
    """Without a fit to the known scores its guess would be about 1, the best of all."""
    space = keras_tuner.HyperParameters()
    space.Float("x", 0.0, 1.0, default=0.5)
    template = build_oracle(spec_of("bayesian", space=space, max_trials=9, num_initial_points=4))
    table = search(template, lambda trial: 1000 + (float(trial.values["x"]) - 0.8) ** 2)[:8]
    running = replace(table[7], values={"x": 0.05}, status="running", ended_order=None, score=None)
    answer = suggest(template, [*table[:7], running])
    assert isinstance(answer, Suggestion)
    assert float(answer.values["x"]) > 0.4


class Countdown(keras_tuner.Oracle):
    """A user's oracle: descends from the largest number of units, one step after each end of a trial."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        if self.ongoing_trials:
            return {"status": "IDLE"}
        units = 128 - 32 * (len(self.trials) - 1)
        if units < 32:
            return {"status": "STOPPED"}
        return {"status": "RUNNING", "values": {"units": units, "rate": 0.01}}


def users_oracles() -> list[keras_tuner.Oracle]:
    objective = keras_tuner.Objective("f1", "max")
    return [
        kt_oracles.RandomSearchOracle(objective, max_trials=6, seed=5, hyperparameters=wide_space()),
        kt_oracles.GridSearchOracle(objective, hyperparameters=small_space()),
        kt_oracles.BayesianOptimizationOracle(objective, 5, 3, seed=5, hyperparameters=wide_space()),
        kt_oracles.HyperbandOracle(objective, 4, 2, seed=5, hyperparameters=wide_space()),
        Countdown(["val_loss", objective], hyperparameters=small_space()),
    ]


@pytest.mark.parametrize("index", range(5))
def test_a_users_oracle_resumes_from_every_event(index: int) -> None:
    whole = search(users_oracles()[index], score_or_fail, num_workers=2, pick=shuffled)
    assert len(whole) > 4
    for num_kept in range(0, num_events(whole) + 1, 3):
        again = users_oracles()[index]
        assert search(again, score_or_fail, cut(whole, num_kept), 2, shuffled) == whole


def test_an_error_in_a_users_oracle_reaches_the_user_and_holds_no_lock() -> None:
    class Broken(keras_tuner.Oracle):
        def populate_space(self, trial_id: str) -> dict[str, Any]:
            raise RuntimeError("out of ideas")

    template = Broken("val_loss", hyperparameters=small_space())
    table = [ended(TrialRecord(0, {"units": 64, "rate": 0.001}, {}, 0, None, "running", None), 1, 0.5)]
    num_locks = len(LOCKS), len(THREADS)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of ideas"):
            suggest(template, table)
    assert (len(LOCKS), len(THREADS)) == num_locks


def test_an_oracle_with_trials_is_refused(tmp_path: Path) -> None:
    oracle = users_oracles()[0]
    kerastuner_alone(oracle, tmp_path, 2)
    with pytest.raises(SearchError, match=r"RandomSearchOracle: already holds 2 trials, .*; pass a new oracle"):
        suggest(oracle, [])


def test_an_oracle_that_cannot_be_copied_is_refused() -> None:
    oracle = users_oracles()[0]
    oracle.guard = threading.Lock()
    with pytest.raises(SearchError, match=r"RandomSearchOracle: cannot be copied .*; keep open files, locks"):
        suggest(oracle, [])
