"""The oracle of a search, from the settings of `tune`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import keras_tuner
from keras_tuner import oracles as kt_oracles

from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggest.oracles import far_apart_seed, refuse_repeated_choices
from fakeface_lab.training.objective import VAL_LOSS, Objective

__all__ = ["Algorithm", "OracleSpec", "build_oracle"]


Algorithm = Literal["random", "grid", "bayesian", "hyperband"]


@dataclass(frozen=True)
class OracleSpec:
    """Settings of one of the four named algorithms; `build_oracle` makes the template from them.

    Attributes:
        algorithm: random, grid, bayesian or hyperband.
        space: hyperparameters with ranges and defaults; trial 0 is all defaults.
        objective: the metric that is the score.
        seed: 0 or larger; equal seeds suggest equally. The grid needs none.
        max_trials: most trials to start, trial 0 included; None for no limit.
        num_initial_points: Bayesian: ended trials before the Gaussian process; None for 3 per dimension.
        alpha: Bayesian: expected noise, added to the diagonal of the kernel matrix.
        beta: Bayesian: weight of exploration against exploitation.
        max_epochs: Hyperband: the full budget of one trial, in epochs.
        factor: Hyperband: how much fewer trials and more epochs each round has than the one before.
        iterations: Hyperband: how often all brackets are run.
    """

    algorithm: Algorithm
    space: keras_tuner.HyperParameters
    objective: Objective = VAL_LOSS
    seed: int = 0
    max_trials: int | None = None
    num_initial_points: int | None = None
    alpha: float = 1e-4
    beta: float = 2.6
    max_epochs: int | None = None
    factor: int = 3
    iterations: int = 1


def build_oracle(spec: OracleSpec) -> keras_tuner.Oracle:
    """Return the template of a named algorithm.

    Raises:
        SearchError: the algorithm is unknown, the seed is negative, Hyperband's settings are missing or too
            small, or a choice in a grid lists a value twice (KerasTuner's grid would never end).
    """
    if spec.seed < 0:
        raise SearchError(f"search seed: {spec.seed} is negative; give 0 or a larger integer")
    shared = {
        "objective": keras_tuner.Objective(spec.objective.name, spec.objective.direction),
        "hyperparameters": spec.space,
        "seed": far_apart_seed(spec.seed),
    }
    match spec.algorithm:
        case "random":
            return kt_oracles.RandomSearchOracle(max_trials=spec.max_trials, **shared)
        case "grid":
            refuse_repeated_choices(spec.space)
            return kt_oracles.GridSearchOracle(max_trials=spec.max_trials, **shared)
        case "bayesian":
            return kt_oracles.BayesianOptimizationOracle(
                max_trials=spec.max_trials,
                num_initial_points=spec.num_initial_points,
                alpha=spec.alpha,
                beta=spec.beta,
                **shared,
            )
        case "hyperband":
            return _build_hyperband(spec, shared)
    raise SearchError(
        f"search algorithm: {spec.algorithm!r} is unknown; choose one of {', '.join(get_args(Algorithm))}"
    )


def _build_hyperband(spec: OracleSpec, shared: Mapping[str, Any]) -> keras_tuner.Oracle:
    if spec.max_epochs is None or spec.max_epochs < 1 or spec.iterations < 1 or spec.factor < 2:
        raise SearchError(
            f"hyperband: max_epochs {spec.max_epochs}, factor {spec.factor}, iterations {spec.iterations}; "
            "give max_epochs of at least 1, a factor of at least 2 and at least 1 iteration"
        )
    oracle = kt_oracles.HyperbandOracle(
        max_epochs=spec.max_epochs, factor=spec.factor, hyperband_iterations=spec.iterations, **shared
    )
    oracle.max_trials = spec.max_trials  # no argument of its constructor, yet obeyed by every oracle
    return oracle
