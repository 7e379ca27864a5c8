"""What is suggested: as KerasTuner alone does, defaults first, nothing twice, nothing missing, by its seed."""

import itertools
from dataclasses import replace
from pathlib import Path

import keras_tuner
import pytest

from fakeface_lab.detector.space import build_oracle
from fakeface_lab.search.suggest.oracles import (
    far_apart_seed,
    num_configurations,
    num_grid_combinations,
    num_trials_at_most,
)
from fakeface_lab.search.suggest.suggestion import Exhausted, Suggestion, suggest
from fakeface_lab.settings import Algorithm
from tests.search.suggest.simulated_search import (
    ALGORITHMS,
    configurations,
    kerastuner_alone,
    newest,
    score_or_fail,
    search,
    small_space,
    spec_of,
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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_trial_zero_has_all_defaults(algorithm: Algorithm) -> None:
    spec = spec_of(algorithm)
    first = suggest(build_oracle(spec), [])
    assert isinstance(first, Suggestion)
    assert first.values == {hp.name: hp.default for hp in spec.space.space}
    full_budget = {"tuner/epochs": 4, "tuner/initial_epoch": 0, "tuner/bracket": -1, "tuner/round": 0}
    assert first.bracket_values == (full_budget if algorithm == "hyperband" else {})


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


@pytest.mark.parametrize("num_workers", [1, 3])
def test_grid_is_complete(num_workers: int) -> None:
    spec = spec_of("grid")
    table = search(build_oracle(spec), score_or_fail, num_workers=num_workers, pick=newest)
    expected = {(("rate", rate), ("units", units)) for rate in (0.01, 0.001, 0.0001) for units in (32, 64, 96, 128)}
    assert len(table) == len(expected) == num_grid_combinations(spec.space)
    assert set(configurations(table)) == expected


@pytest.mark.parametrize("algorithm", ["random", "bayesian"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_small_space_is_tried_completely_without_repeats(algorithm: Algorithm, seed: int) -> None:
    spec = spec_of(algorithm, space=small_space(), seed=seed, max_trials=50)
    table = search(build_oracle(spec), score_or_fail)
    assert len(set(configurations(table))) == len(table) == num_configurations(spec.space) == 12
    assert suggest(build_oracle(spec), table) == Exhausted()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_trial_limit_holds_and_can_be_raised(algorithm: Algorithm) -> None:
    table = search(build_oracle(spec_of(algorithm, max_trials=4)))
    assert len(table) == 4
    assert suggest(build_oracle(spec_of(algorithm, max_trials=4)), table) == Exhausted()
    assert isinstance(suggest(build_oracle(spec_of(algorithm, max_trials=3)), table), Exhausted)
    assert search(build_oracle(spec_of(algorithm, max_trials=10)), begun=table)[:4] == table


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_search_with_only_failures_continues(algorithm: Algorithm) -> None:
    table = search(build_oracle(spec_of(algorithm, max_trials=8)), lambda trial: None)
    assert [trial.status for trial in table] == ["failed"] * 8


@pytest.mark.parametrize("algorithm", ["random", "grid"])
def test_any_number_of_trials_can_run_at_the_same_time(algorithm: Algorithm) -> None:
    """KerasTuner's own grid continues only after a trial has ended."""
    table = search(build_oracle(spec_of(algorithm)), num_workers=100)
    assert all(trial.created_order == trial.sequence for trial in table)
    assert len(table) == num_trials_at_most(build_oracle(spec_of(algorithm)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_values_are_plain_python(algorithm: Algorithm) -> None:
    for trial in search(build_oracle(spec_of(algorithm))):
        for value in [*trial.values.values(), *trial.bracket_values.values()]:
            assert type(value) in (int, float, str, bool)


@pytest.mark.parametrize("algorithm", ["random", "bayesian", "hyperband"])
def test_seed_zero_is_an_ordinary_seed(algorithm: Algorithm) -> None:
    tables = {seed: search(build_oracle(spec_of(algorithm, seed=seed, max_trials=5))) for seed in (0, 1)}
    assert search(build_oracle(spec_of(algorithm, seed=0, max_trials=5))) == tables[0]
    shared = set(configurations(tables[0])) & set(configurations(tables[1]))
    assert shared == {configurations(tables[0])[0]}, "only trial 0 is common to both"


def test_each_bayesian_question_has_its_own_seed() -> None:
    template = build_oracle(spec_of("bayesian"))
    first, second = search(build_oracle(spec_of("bayesian", max_trials=2)))
    forged = replace(second, values={"dropout": 0.125, "units": 96})
    answer = suggest(template, [first, forged])
    assert isinstance(answer, Suggestion)
    assert answer.values["dropout"] != second.values["dropout"]


def test_seeds_are_never_zero_and_far_apart() -> None:
    seeds = sorted(far_apart_seed(5, sequence) for sequence in range(10_000))
    assert seeds[0] > 0
    assert seeds[-1] < 2**32
    assert min(after - before for before, after in itertools.pairwise(seeds)) > 100_000
