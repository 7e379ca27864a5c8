"""Trials of an earlier search that an oracle is told before its first question."""

from typing import Any

import keras_tuner
import numpy as np
import pytest
from keras_tuner.engine import trial as kt_trial

from fakeface_lab.search.suggest.prior import PriorTrial, set_prior
from fakeface_lab.search.suggest.suggestion import Suggestion, suggest
from tests.search.suggest.simulated_search import cut, plane, score, search, small_space, wide_space

DEFAULTS = {"units": 64, "rate": 0.001}
OBJECTIVE = keras_tuner.Objective("val_loss", "min")


def oracle(algorithm: str, space: keras_tuner.HyperParameters, **given: Any) -> keras_tuner.Oracle:
    kind = {"random": "RandomSearchOracle", "bayesian": "BayesianOptimizationOracle", "hyperband": "HyperbandOracle"}
    made: keras_tuner.Oracle = getattr(keras_tuner.oracles, kind[algorithm])(
        OBJECTIVE, hyperparameters=space, seed=5, **given
    )
    return made


def told(template: keras_tuner.Oracle, values: list[dict[str, Any]]) -> keras_tuner.Oracle:
    set_prior(template, [PriorTrial(one, score=0.1 * number) for number, one in enumerate(values)])
    return template


ALL = [{"units": units, "rate": rate} for units in (32, 64, 96, 128) for rate in (0.01, 0.001, 0.0001)]


def test_random_search_tries_what_the_earlier_one_has_not() -> None:
    found = search(told(oracle("random", small_space(), max_trials=100), ALL[:8]))
    assert found[0].values == DEFAULTS, "as a reference, tried or not"
    assert sorted((trial.values for trial in found[1:]), key=str) == sorted(ALL[8:], key=str)


def test_hyperband_does_not_begin_with_what_the_earlier_search_has_tried() -> None:
    found = search(told(oracle("hyperband", small_space(), max_epochs=4, factor=2), ALL[:8]))
    assert {tuple(trial.values.values()) for trial in found[1:]} == {tuple(values.values()) for values in ALL[8:]}


def test_the_gaussian_process_is_that_of_kerastuners_own_oracle_with_these_trials() -> None:
    points = [{"dropout": dropout, "units": units} for dropout in (0.0, 0.2, 0.4) for units in (32, 96)]
    template = told(oracle("bayesian", plane(), max_trials=3), points)
    template.defaults_first = False
    theirs = oracle("bayesian", plane(), max_trials=9)
    for number, values in enumerate(points):
        hp = theirs.get_space()
        hp.values = dict(values)
        trial = kt_trial.Trial(hp, str(number), "COMPLETED")
        trial.score = 0.1 * number
        theirs.trials[trial.trial_id] = trial
    theirs._random_state = np.random.RandomState(5)
    expected = theirs.populate_space("6")["values"]
    answer = suggest(template, [])
    assert isinstance(answer, Suggestion)
    assert answer.values == pytest.approx(expected)
    assert len(search(template)) == 3, "they do not count as trials of this search"


@pytest.mark.parametrize(
    ("algorithm", "given"),
    [
        ("random", {"max_trials": 6}),
        ("bayesian", {"max_trials": 3, "num_initial_points": 4}),
        ("hyperband", {"max_epochs": 4, "factor": 2}),
    ],
)
@pytest.mark.parametrize("defaults_first", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_resumed_after_any_event_a_search_is_the_same(
    algorithm: str, given: dict[str, Any], defaults_first: bool
) -> None:
    def template() -> keras_tuner.Oracle:
        space = plane() if algorithm == "bayesian" else wide_space()
        made = told(oracle(algorithm, space, **given), [{"dropout": 0.1 * number, "units": 64} for number in range(5)])
        made.defaults_first = defaults_first
        return made

    whole = search(template())
    for num_events in range(0, 2 * len(whole), 1 + len(whole) // 4):
        assert search(template(), score, begun=cut(whole, num_events)) == whole


def test_told_every_configuration_random_search_ends_after_the_defaults() -> None:
    assert [trial.values for trial in search(told(oracle("random", small_space(), max_trials=100), ALL))] == [DEFAULTS]
