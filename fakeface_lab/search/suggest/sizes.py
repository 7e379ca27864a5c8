"""How large a search space and a search are, for progress and for knowing when nothing is left.

Hyperband's rounds are asked from KerasTuner 1.4.8 itself, through members that are not public:
`_get_num_brackets`, `_get_num_rounds` and `_get_size`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras_tuner
from keras_tuner import oracles as kt_oracles
from keras_tuner.engine import hyperparameters as kt_hyperparameters

__all__ = [
    "Value",
    "Values",
    "num_configurations",
    "num_grid_combinations",
    "num_hyperband_trials",
    "num_trials_at_most",
]

Value = int | float | str | bool
Values = dict[str, Value]


def num_grid_combinations(space: keras_tuner.HyperParameters) -> int:
    """Return how many trials a complete grid has: all combinations of the grid values and the defaults.

    A Float without a step, and an Int with log sampling and no step, count with KerasTuner's 10 samples.
    """
    return int(_num_combinations(space, _grid_values))


def num_configurations(space: keras_tuner.HyperParameters) -> int | None:
    """Return how many different configurations a space has, or None if it has a continuous hyperparameter."""
    num = _num_combinations(space, _all_values)
    return None if math.isinf(num) else int(num)


def num_hyperband_trials(oracle: keras_tuner.Oracle) -> int | None:
    """Return how many trials Hyperband runs, trial 0 included; None if its iterations are endless.

    A space with fewer configurations than the first rounds ask for ends sooner.
    """
    if math.isinf(oracle.hyperband_iterations):
        return None
    per_iteration = sum(
        oracle._get_size(bracket, round_num)
        for bracket in range(oracle._get_num_brackets())
        for round_num in range(oracle._get_num_rounds(bracket))
    )
    return int(1 + oracle.hyperband_iterations * per_iteration)


def num_trials_at_most(oracle: keras_tuner.Oracle) -> int | None:
    """Return how many trials a search with this template can have at most; None if nothing limits it."""
    if isinstance(oracle, kt_oracles.HyperbandOracle):
        natural = num_hyperband_trials(oracle)
    elif isinstance(oracle, kt_oracles.GridSearchOracle):
        natural = num_grid_combinations(oracle.hyperparameters)
    elif isinstance(oracle, kt_oracles.RandomSearchOracle | kt_oracles.BayesianOptimizationOracle):
        natural = num_configurations(oracle.hyperparameters)
    else:
        natural = None  # another oracle may repeat a configuration on purpose
    limits = [limit for limit in (natural, oracle.max_trials) if limit]
    return min(limits, default=None)


def _num_combinations(space: keras_tuner.HyperParameters, values_of: Callable[[Any], Sequence[Value] | None]) -> float:
    """Multiply the numbers of values, and branch where another hyperparameter depends on the value.

    What is left to count depends on few of the values chosen before; equal rests are counted once.
    """
    needed = [{condition.name for hp in space.space[index:] for condition in hp.conditions}
              for index in range(len(space.space) + 1)]  # fmt: skip

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
    """Return the values that can be drawn and the default; None if they are uncountable."""
    if isinstance(hp, kt_hyperparameters.Float) and hp.step is None:
        return None if hp.min_value < hp.max_value else [hp.min_value]
    if isinstance(hp, kt_hyperparameters.Int) and (hp.step is None or hp.sampling == "linear"):
        values = range(hp.min_value, hp.max_value + 1, hp.step or 1)
        return values if hp.default in values else [hp.default, *values]
    return _grid_values(hp)
