"""Sizes of spaces and searches, seeds far apart, and grids that would never end."""

import itertools

import keras_tuner
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_tuner import oracles as kt_oracles

from fakeface_lab.detector.space import build_oracle
from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggest.oracles import (
    far_apart_seed,
    num_configurations,
    num_grid_combinations,
    num_hyperband_trials,
    num_trials_at_most,
    reseeded,
)
from fakeface_lab.search.suggest.suggestion import suggest
from tests.search.suggest.simulated_search import configurations, plane, search, small_space, spec_of, wide_space

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*")


@pytest.mark.parametrize("kind", [kt_oracles.RandomSearchOracle, kt_oracles.BayesianOptimizationOracle])
def test_a_users_oracle_without_a_seed_resumes_with_the_recorded_one(kind: type[keras_tuner.Oracle]) -> None:
    first, second = (kind("val_loss", 6, hyperparameters=plane()) for _ in range(2))
    first.num_initial_points = second.num_initial_points = 3
    table = search(reseeded(first, 71))
    assert search(reseeded(second, 71), begun=table[:3]) == table


def test_a_grid_with_a_repeated_choice_is_refused() -> None:
    space = keras_tuner.HyperParameters()
    space.Choice("units", [32, 64, 32])
    with pytest.raises(SearchError, match="search space: units lists 32 twice; a grid needs each value once"):
        build_oracle(spec_of("grid", space=space))
    with pytest.raises(SearchError, match="units lists 32 twice"):
        suggest(kt_oracles.GridSearchOracle("val_loss", hyperparameters=space), [])


def test_grid_over_log_steps_keeps_integers() -> None:
    space = keras_tuner.HyperParameters()
    space.Int("batch_size", 2, 32, step=2, sampling="log", default=8)
    values = [trial.values["batch_size"] for trial in search(build_oracle(spec_of("grid", space=space)))]
    assert sorted(values) == [2, 4, 8, 16, 32]
    assert all(type(value) is int for value in values)


def odd_space() -> keras_tuner.HyperParameters:
    """Ranges whose sizes are easy to get wrong: off-grid defaults, no steps, a dependent hyperparameter."""
    space = keras_tuner.HyperParameters()
    space.Int("units", 10, 40, step=20, default=15)  # 10, 30 and the default 15
    space.Choice("kind", ["a", "b", "c"])
    with space.conditional_scope("kind", ["b", "c"]):
        space.Int("depth", 1, 4, sampling="log")  # 1, 2, 3, 4
    return space


def test_sizes_of_a_space_equal_the_number_of_trials_of_a_search() -> None:
    grid = search(build_oracle(spec_of("grid", space=odd_space())))
    assert num_grid_combinations(odd_space()) == len(grid) == len(set(configurations(grid))) == 3 * (1 + 2 * 4)
    drawn = search(build_oracle(spec_of("random", space=odd_space(), max_trials=None)))
    # The default 15 cannot be drawn: only trial 0 has it.
    assert len(drawn) == 2 * (1 + 2 * 4) + 1
    assert num_configurations(odd_space()) == 3 * (1 + 2 * 4)
    assert num_configurations(wide_space()) is None


def test_many_independent_conditions_are_counted_at_once() -> None:
    """Counting the branches of forty switches one by one would never end."""
    space = keras_tuner.HyperParameters()
    for index in range(40):
        space.Boolean(f"has_layer_{index}")
        with space.conditional_scope(f"has_layer_{index}", [True]):
            space.Choice(f"units_{index}", [16, 32, 64])
    assert num_configurations(space) == num_grid_combinations(space) == 4**40


@st.composite
def nested_spaces(draw: st.DrawFn) -> keras_tuner.HyperParameters:
    """Up to six hyperparameters with two or three values, conditions nested."""
    space = keras_tuner.HyperParameters()

    def fill(depth: int) -> None:
        for _ in range(draw(st.integers(1, 2)) if depth == 0 else 1):
            name = f"hp_{len(space.space)}"
            space.Choice(name, draw(st.sampled_from([[0, 1], [0, 1, 2]])))
            if depth < 2 and draw(st.booleans()):
                with space.conditional_scope(name, draw(st.sampled_from([[0], [1], [0, 1]]))):
                    fill(depth + 1)

    fill(0)
    return space


@settings(max_examples=50, deadline=None)
@given(nested_spaces())
def test_size_of_a_space_equals_the_number_of_its_configurations(space: keras_tuner.HyperParameters) -> None:
    found = set()
    for values in itertools.product(*(hp.values for hp in space.space)):
        space.values = dict(zip((hp.name for hp in space.space), values, strict=True))
        space.ensure_active_values()
        found.add(tuple(sorted(space.values.items())))
    assert num_configurations(space) == len(found)


@pytest.mark.parametrize(
    ("max_epochs", "factor", "iterations"), [(1, 3, 1), (4, 2, 1), (9, 3, 2), (10, 3, 1), (27, 3, 1)]
)
def test_hyperband_runs_as_many_trials_as_predicted(max_epochs: int, factor: int, iterations: int) -> None:
    spec = spec_of("hyperband", max_epochs=max_epochs, factor=factor, iterations=iterations)
    template = build_oracle(spec)
    assert num_hyperband_trials(template) == num_trials_at_most(template) == len(search(template))


def test_the_maximum_number_of_trials_of_a_search() -> None:
    assert num_trials_at_most(build_oracle(spec_of("grid"))) == 12
    assert num_trials_at_most(build_oracle(spec_of("grid", max_trials=5))) == 5
    assert num_trials_at_most(build_oracle(spec_of("random", space=small_space(), max_trials=50))) == 12
    assert num_trials_at_most(build_oracle(spec_of("bayesian"))) == 6
    assert num_trials_at_most(build_oracle(spec_of("random", max_trials=None))) is None
    endless = kt_oracles.HyperbandOracle("val_loss", hyperband_iterations=None, hyperparameters=small_space())
    assert num_hyperband_trials(endless) is None


def test_seeds_are_never_zero_and_far_apart() -> None:
    seeds = sorted(far_apart_seed(5, sequence) for sequence in range(10_000))
    assert seeds[0] > 0
    assert seeds[-1] < 2**32
    assert min(after - before for before, after in itertools.pairwise(seeds)) > 100_000
