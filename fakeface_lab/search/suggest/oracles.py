"""Facts about KerasTuner's oracles and spaces: how many trials they allow, seeds, and the values of trial 0.

A *template* is an oracle without trials, KerasTuner's or the user's. Only copies of it are asked; see `oracle_copy`.

Non-public members of KerasTuner 1.4.8 used here: `_seed_state` of every oracle; `_random_state` and `_make_gpr` of the
Bayesian one; `_get_size`, `_get_num_brackets` and `_get_num_rounds` of Hyperband.
"""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras_tuner
import numpy as np
from keras_tuner import oracles as kt_oracles
from keras_tuner.engine import hyperparameters as kt_hyperparameters

from fakeface_lab.config import Value
from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggest.template import asks_for_defaults, growth_of

__all__ = [
    "BRACKET_PREFIX",
    "PARENT",
    "default_values",
    "far_apart_seed",
    "first_values",
    "is_value_of",
    "num_configurations",
    "num_grid_combinations",
    "num_hyperband_trials",
    "num_initial_points",
    "num_trials_at_most",
    "refuse_repeated_choices",
    "reseeded",
    "searched_hyperparameters",
]


def num_grid_combinations(space: keras_tuner.HyperParameters) -> int:
    """Return how many trials a complete grid has: all combinations of the grid values and the defaults.

    A Float without a step, and an Int with log sampling and no step, have KerasTuner's 10 samples.
    """
    return int(_num_combinations(space, _grid_values))


def num_configurations(space: keras_tuner.HyperParameters) -> int | None:
    """Return how many different configurations a space has; None if a hyperparameter is continuous."""
    num = _num_combinations(space, _all_values)
    return None if math.isinf(num) else int(num)


def num_hyperband_trials(oracle: keras_tuner.Oracle) -> int | None:
    """Return how many trials Hyperband runs, a trial 0 of defaults included; None if its iterations are infinite.

    It runs fewer if the space has fewer configurations than the first rounds need.
    """
    if math.isinf(oracle.hyperband_iterations):
        return None
    per_iteration = sum(
        oracle._get_size(bracket, round_num)
        for bracket in range(oracle._get_num_brackets())
        for round_num in range(oracle._get_num_rounds(bracket))
    )
    return int(asks_for_defaults(oracle) + oracle.hyperband_iterations * per_iteration)


def num_initial_points(oracle: keras_tuner.oracles.BayesianOptimizationOracle) -> int:
    """Return how many trials must have ended before the Gaussian process is asked; KerasTuner's rule."""
    return int(oracle.num_initial_points or max(3 * len(oracle.hyperparameters.space), 3))


def num_trials_at_most(oracle: keras_tuner.Oracle) -> int | None:
    """Return how many trials a search with this template can have at most; None if nothing limits it.

    A space limits nothing if it is empty or has grown: the next trial may find more.
    """
    natural: int | None
    if isinstance(oracle, kt_oracles.HyperbandOracle):
        natural = num_hyperband_trials(oracle)
    elif growth_of(oracle) or not oracle.hyperparameters.space:
        natural = None
    elif isinstance(oracle, kt_oracles.GridSearchOracle):
        natural = num_grid_combinations(oracle.hyperparameters)
    elif isinstance(oracle, kt_oracles.RandomSearchOracle | kt_oracles.BayesianOptimizationOracle):
        natural = num_configurations(oracle.hyperparameters)
    else:
        natural = None  # another oracle may repeat a configuration on purpose
    limits = [limit for limit in (natural, oracle.max_trials) if limit]
    return min(limits, default=None)


def _num_combinations(space: keras_tuner.HyperParameters, values_of: Callable[[Any], Sequence[Value] | None]) -> float:
    """Return the product of the numbers of values, with a branch per value that other hyperparameters depend on.

    The count of the remaining hyperparameters depends on few of the values chosen so far, so it is cached by those.
    """
    remaining = [space.space[index:] for index in range(len(space.space) + 1)]
    needed = [{condition.name for hp in rest for condition in hp.conditions} for rest in remaining]

    @functools.cache
    def num_from(index: int, chosen: frozenset[tuple[str, Value]]) -> float:
        if index == len(space.space):
            return 1
        hp = space.space[index]
        rest = frozenset(pair for pair in chosen if pair[0] in needed[index + 1])
        if not all(condition.is_active(dict(chosen)) for condition in hp.conditions):
            return num_from(index + 1, rest)
        values = values_of(hp)
        if values is None:
            return math.inf
        if hp.name in needed[index + 1]:
            return sum(num_from(index + 1, rest | {(hp.name, value)}) for value in values)
        return len(values) * num_from(index + 1, rest)

    return num_from(0, frozenset())


def _grid_values(hp: Any) -> Sequence[Value]:
    return list(dict.fromkeys([hp.default, *hp.values]))


def _all_values(hp: Any) -> Sequence[Value] | None:
    """Return the values that can be drawn, and the default; None if the hyperparameter is continuous."""
    if isinstance(hp, kt_hyperparameters.Float) and hp.step is None:
        return None if hp.min_value < hp.max_value else [hp.min_value]
    if isinstance(hp, kt_hyperparameters.Int) and (hp.step is None or hp.sampling == "linear"):
        values = range(hp.min_value, hp.max_value + 1, hp.step or 1)
        return values if hp.default in values else [hp.default, *values]
    return _grid_values(hp)


def searched_hyperparameters(space: keras_tuner.HyperParameters) -> dict[str, bool]:
    """Return the hyperparameters with more than one value by name, and whether each depends on conditions."""
    found: dict[str, bool] = {}
    for hp in space.space:
        values = _all_values(hp)
        if values is None or len(values) > 1:
            found[hp.name] = found.get(hp.name, False) or bool(hp.conditions)
    return found


BRACKET_PREFIX = "tuner/"  # of Hyperband's own entries among the values of a trial
PARENT = "tuner/trial_id"

_GOLDEN_STEP = 2_654_435_769  # 2**32 divided by the golden ratio


def refuse_repeated_choices(space: keras_tuner.HyperParameters) -> None:
    """Raise SearchError if a choice lists a value twice: a grid over the space would never end."""
    for hp in space.space:
        values = hp.values if isinstance(hp, kt_hyperparameters.Choice) else []
        repeated = next((value for value in values if values.count(value) > 1), None)
        if repeated is not None:
            raise SearchError(f"search space: {hp.name} lists {repeated!r} twice; a grid needs each value once")


def far_apart_seed(seed: int, sequence: int = 0) -> int:
    """Return a seed in [1, 2**32) whose draws do not overlap with those of another sequence.

    KerasTuner draws from seed, seed + 1, seed + 2, ..., so neighbouring seeds would give the same values one trial
    later; 0 means a random seed. Multiples of 2**32 / golden ratio are evenly spaced (Knuth, The Art of Computer
    Programming 3, section 6.4): by more than 100,000 over 10,000 trials.
    """
    base = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return (base + sequence * _GOLDEN_STEP) % 2**32 or 1


def reseeded(oracle: keras_tuner.Oracle, seed: int) -> keras_tuner.Oracle:
    """Return a copy of an oracle with another seed (1 or larger); its effect is known for KerasTuner's own four only.

    Raises:
        SearchError: the oracle cannot be copied.
    """
    try:
        other = copy.deepcopy(oracle)
    except Exception as error:  # whatever a user's attribute raises when it is copied
        raise SearchError(
            f"oracle {type(oracle).__name__}: cannot be copied ({error}); keep open files, locks and connections out"
        ) from error
    other.seed = other._seed_state = seed
    if isinstance(other, kt_oracles.BayesianOptimizationOracle):
        other._random_state = np.random.RandomState(seed)
        other.gpr = other._make_gpr()
    return other


def default_values(space: keras_tuner.HyperParameters) -> dict[str, Value]:
    """Return the defaults of the hyperparameters that are active if all have their defaults."""
    defaults = keras_tuner.HyperParameters()
    defaults.merge(space.space)
    return dict(defaults.values)


def first_values(template: keras_tuner.Oracle) -> dict[str, Value]:
    """Return the values of trial 0: the defaults; with Hyperband also the full budget, in no bracket."""
    values = default_values(template.hyperparameters)
    if isinstance(template, kt_oracles.HyperbandOracle):
        full_budget = {"epochs": template.max_epochs, "initial_epoch": 0, "bracket": -1, "round": 0}
        values |= {BRACKET_PREFIX + name: value for name, value in full_budget.items()}
    return values


def is_value_of(hp: Any, value: Value) -> bool:
    """Return whether a value is the default of a hyperparameter, one of its choices, or within its range."""
    if value == hp.default:
        return True
    if isinstance(hp, kt_hyperparameters.Int | kt_hyperparameters.Float):
        return isinstance(value, int | float) and bool(hp.min_value <= value <= hp.max_value)
    return value in hp.values
