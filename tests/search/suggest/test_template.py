"""A space that grows as KerasTuner's, and trials of an earlier search; both the same after a cut at every event."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import pytest
from keras_tuner.engine import trial as kt_trial

from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggest.oracles import num_trials_at_most
from fakeface_lab.search.suggest.suggestion import Suggestion, suggest
from fakeface_lab.search.suggest.template import PriorTrial, set_growth, set_prior
from tests.search.suggest.growing_search import (
    Algorithm,
    Work,
    all_at_once,
    begin,
    configurations,
    failing,
    grow,
    in_branches,
    in_scopes,
    kerastuners_own,
    oracle_of,
)
from tests.search.suggest.simulated_search import (
    cut,
    num_events,
    plane,
    score,
    search,
    shuffled,
    small_space,
    wide_space,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*")

ALGORITHMS: tuple[Algorithm, ...] = ("random", "grid", "bayesian", "hyperband")


@pytest.mark.parametrize(
    ("algorithm", "space", "work"),
    [
        *itertools.product(["random", "grid", "bayesian"], ["empty"], [all_at_once, in_scopes]),
        *itertools.product(ALGORITHMS, ["kind", "kind rate"], [in_scopes]),
        ("hyperband", "rate", all_at_once),
        ("random", "kind rate", in_branches),
        ("bayesian", "kind rate", in_branches),
        ("grid", "kind", in_branches),
    ],
)
def test_without_forced_defaults_the_trials_are_those_of_kerastuner(
    algorithm: Algorithm, space: str, work: Work, tmp_path: Path
) -> None:
    def made(**given: Any) -> keras_tuner.Oracle:
        names: Any = [] if space == "empty" else space.split()
        max_trials = 8 if algorithm == "bayesian" else 12
        return oracle_of(algorithm, begin(*names) if names else None, max_trials=max_trials, **given)

    own = kerastuners_own(made(), work, tmp_path)
    assert len(own) >= 8
    assert configurations(grow(made(defaults_first=False), work)) == own


@pytest.mark.parametrize(
    ("algorithm", "num_workers", "work"),
    [
        *itertools.product(ALGORITHMS, [3], [in_branches]),
        *itertools.product(["random", "grid", "hyperband"], [1], [in_scopes, in_branches]),
        pytest.param("bayesian", 1, in_scopes, marks=pytest.mark.slow),
        pytest.param("bayesian", 1, in_branches, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("defaults_first", [True, False])
def test_a_growing_search_cut_at_every_event_gives_the_same_table(
    algorithm: Algorithm, defaults_first: bool, num_workers: int, work: Work
) -> None:
    def made() -> keras_tuner.Oracle:
        max_trials = 7 if algorithm == "bayesian" else 12
        return oracle_of(algorithm, begin("kind"), defaults_first=defaults_first, max_trials=max_trials)

    work = failing(work)
    whole = grow(made(), work, num_workers=num_workers, pick=shuffled)
    assert {trial.status for trial in whole.table} == {"finished", "failed"}
    assert len(whole.growth) >= 2
    for num_kept in range(num_events(whole.table) + 1):
        continued = grow(made(), work, whole.cut(num_kept), num_workers, shuffled)
        assert continued == whole, f"cut after {num_kept} events"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_trial_0_of_an_empty_space_has_no_values_and_records_what_it_found(algorithm: Algorithm) -> None:
    ledger = grow(oracle_of(algorithm, max_trials=6), all_at_once)
    assert ledger.created[0] == {}
    assert ledger.table[0].values == {"units": 8, "rate": 0.01, "flip": False}
    assert list(ledger.growth) == [ledger.table[0].ended_order], "nothing is found twice"
    assert all(set(values) == {"units", "rate", "flip"} for values in ledger.created[1:])
    assert len({str(sorted(trial.values.items())) for trial in ledger.table}) > 5


@pytest.mark.parametrize("algorithm", ["grid", "hyperband", "bayesian"])
def test_what_an_earlier_trial_lacks_counts_as_its_default(algorithm: Algorithm) -> None:
    """KerasTuner's grid ends with a KeyError here, and its Hyperband draws another value in each process."""

    def late(hp: keras_tuner.HyperParameters) -> float:
        kind = hp.Choice("kind", ["b", "a"], default="a")
        return (0.1 if kind == "a" else 0.5) + (0.01 * hp.Int("depth", 1, 3) if kind == "b" else 0)

    space = keras_tuner.HyperParameters()
    space.Choice("kind", ["b", "a"], default="a")
    ledger = grow(oracle_of(algorithm, space, max_trials=7), late)
    joined = min(ledger.growth)
    later = [trial for trial in ledger.table if trial.created_order > joined]
    assert later
    assert all("depth" in trial.values for trial in later)
    for trial in later:
        parent = trial.bracket_values.get("tuner/trial_id")
        if parent is not None and "depth" not in ledger.table[int(parent)].values:
            assert trial.values["depth"] == 1
    if algorithm == "grid":
        assert [trial.values for trial in ledger.table[:3]] == [
            {"kind": "a"}, {"kind": "b", "depth": 1}, {"kind": "a", "depth": 2},
        ]  # fmt: skip


def test_what_another_trial_has_found_meanwhile_is_not_found_again() -> None:
    ledger = grow(oracle_of("random", begin("rate")), all_at_once, num_workers=2)
    assert ledger.table[1].created_order < (ledger.table[0].ended_order or 0)
    assert ledger.created[1].keys() == {"rate"}
    assert ledger.table[1].values.keys() == {"rate", "units", "flip"}
    assert list(ledger.growth) == [ledger.table[0].ended_order]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_value_that_no_trial_has_found_belongs_to_another_search(algorithm: Algorithm) -> None:
    ledger = grow(oracle_of(algorithm, begin("kind"), max_trials=5), in_branches).cut(8)
    table, template = ledger.table, oracle_of(algorithm, begin("kind"))
    set_growth(template, ledger.growth)
    assert isinstance(suggest(template, table), Suggestion)
    table[1] = replace(table[1], values={**table[1].values, "width": 3})
    with pytest.raises(SearchError, match="recorded trial 1 belongs to another search: "):
        suggest(template, table)


def test_a_space_that_is_empty_or_grows_limits_no_search() -> None:
    assert num_trials_at_most(oracle_of("grid", begin("kind", "rate"), max_trials=None)) == 6
    assert num_trials_at_most(oracle_of("grid", max_trials=None)) is None
    template = oracle_of("random", begin("kind", "rate"), max_trials=50)
    assert num_trials_at_most(template) == 6
    set_growth(template, grow(oracle_of("random", begin("kind", "rate")), in_branches).growth)
    assert num_trials_at_most(template) == 50
    assert num_trials_at_most(oracle_of("hyperband")) == 16
    assert num_trials_at_most(oracle_of("hyperband", defaults_first=False)) == 15


def test_a_grid_refuses_a_choice_that_repeats_a_value_when_it_is_found() -> None:
    def repeated(hp: keras_tuner.HyperParameters) -> float:
        return float(hp.Choice("rate", [1, 2, 1]))

    with pytest.raises(SearchError, match=r"search space: rate lists 1 twice; a grid needs each value once"):
        grow(oracle_of("grid"), repeated)


# Trials of an earlier search that an oracle is told before its first question.

DEFAULTS = {"units": 64, "rate": 0.001}
OBJECTIVE = keras_tuner.Objective("val_loss", "min")


def seeded(algorithm: str, space: keras_tuner.HyperParameters, **given: Any) -> keras_tuner.Oracle:
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
    found = search(told(seeded("random", small_space(), max_trials=100), ALL[:8]))
    assert found[0].values == DEFAULTS, "as a reference, tried or not"
    assert sorted((trial.values for trial in found[1:]), key=str) == sorted(ALL[8:], key=str)


def test_hyperband_does_not_begin_with_what_the_earlier_search_has_tried() -> None:
    found = search(told(seeded("hyperband", small_space(), max_epochs=4, factor=2), ALL[:8]))
    assert {tuple(trial.values.values()) for trial in found[1:]} == {tuple(values.values()) for values in ALL[8:]}


def test_the_gaussian_process_is_that_of_kerastuners_own_oracle_with_these_trials() -> None:
    points = [{"dropout": dropout, "units": units} for dropout in (0.0, 0.2, 0.4) for units in (32, 96)]
    template = told(seeded("bayesian", plane(), max_trials=3), points)
    template.defaults_first = False
    theirs = seeded("bayesian", plane(), max_trials=9)
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
        made = told(seeded(algorithm, space, **given), [{"dropout": 0.1 * number, "units": 64} for number in range(5)])
        made.defaults_first = defaults_first
        return made

    whole = search(template())
    for num_kept in range(0, 2 * len(whole), 1 + len(whole) // 4):
        assert search(template(), score, begun=cut(whole, num_kept)) == whole


def test_told_every_configuration_random_search_ends_after_the_defaults() -> None:
    assert [trial.values for trial in search(told(seeded("random", small_space(), max_trials=100), ALL))] == [DEFAULTS]
