"""KerasTuner's oracles as this project uses them: built from a spec, copied, asked once, dropped.

A *template* is an oracle that has no trials: one of ours (`build_oracle`) or the user's own. It is never
asked itself. `EphemeralOracle` copies it, is fed what the ledger knows, answers once and leaves nothing
behind. What to feed, and in which order, is decided in `suggestion`; nothing here knows the ledger.

Members of KerasTuner 1.4.8 that are not public and that are used here: `_save_trial`, `_seed_state`,
`_max_collisions`, `_random_values`, and the module's `LOCKS` and `THREADS`, for each oracle; `_random_state`,
`_make_gpr` and `_vectorize_trials` for the Bayesian one.
"""

import copy
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, get_args

import keras_tuner
import numpy as np
from keras_tuner import oracles as kt_oracles
from keras_tuner.engine import hyperparameters as kt_hyperparameters
from keras_tuner.src.engine.oracle import LOCKS, THREADS
from sklearn.exceptions import ConvergenceWarning

from fakeface_lab.errors import SearchError
from fakeface_lab.search.counts import Value, Values, num_configurations

__all__ = [
    "Algorithm",
    "Answer",
    "EphemeralOracle",
    "OracleSpec",
    "build_oracle",
    "default_values",
    "far_apart_seed",
    "is_value_of",
    "reseeded",
]

Algorithm = Literal["random", "grid", "bayesian", "hyperband"]

_GOLDEN_STEP = 2_654_435_769  # 2**32 divided by the golden ratio: multiples of it keep apart from each other
_DRAWS_PER_CONFIGURATION = 20  # a configuration left over is then missed with a chance of exp(-20)
_MAX_CONFIGURATIONS_TO_EXHAUST = 1_000  # a larger space is not searched to its last configuration


@dataclass(frozen=True)
class OracleSpec:
    """Settings of one of the four named algorithms; `build_oracle` makes the template from them.

    Attributes:
        algorithm: random, grid, bayesian or hyperband.
        space: hyperparameters with ranges and defaults; trial 0 is all defaults.
        objective: name of the metric that is the score.
        direction: whether a lower (min) or a higher (max) score is better.
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
    objective: str = "val_loss"
    direction: Literal["min", "max"] = "min"
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
        "objective": keras_tuner.Objective(spec.objective, spec.direction),
        "hyperparameters": spec.space,
        "seed": far_apart_seed(spec.seed),
    }
    match spec.algorithm:
        case "random":
            return kt_oracles.RandomSearchOracle(max_trials=spec.max_trials, **shared)
        case "grid":
            _refuse_repeated_choices(spec.space)
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


def _refuse_repeated_choices(space: keras_tuner.HyperParameters) -> None:
    for hp in space.space:
        values = hp.values if isinstance(hp, kt_hyperparameters.Choice) else []
        repeated = next((value for value in values if values.count(value) > 1), None)
        if repeated is not None:
            raise SearchError(f"search space: {hp.name} lists {repeated!r} twice; a grid needs each value once")


def far_apart_seed(seed: int, sequence: int = 0) -> int:
    """Return a seed in [1, 2**32) whose random draws share nothing with those of another sequence.

    KerasTuner draws from seed, seed + 1, seed + 2, ... and takes a seed of 0 for "any", so that neighbouring
    seeds would give the same values one trial later. Multiples of 2**32 / golden ratio stay evenly apart
    (Knuth, The Art of Computer Programming 3, section 6.4): by more than 100,000 over 10,000 trials.
    """
    base = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return (base + sequence * _GOLDEN_STEP) % 2**32 or 1


def reseeded(oracle: keras_tuner.Oracle, seed: int) -> keras_tuner.Oracle:
    """Return a copy of an oracle that draws from another seed (1 or larger), e.g. the recorded one.

    Only what KerasTuner's own four oracles make of a seed is replaced.

    Raises:
        SearchError: the oracle cannot be copied.
    """
    try:
        other = copy.deepcopy(oracle)
    except Exception as error:  # whatever a user's attribute raises when it is copied
        raise SearchError(
            f"oracle {type(oracle).__name__}: cannot be copied ({error}); "
            "keep open files, locks and connections out of it"
        ) from error
    other.seed = other._seed_state = seed
    if isinstance(other, kt_oracles.BayesianOptimizationOracle):
        other._random_state = np.random.RandomState(seed)
        other.gpr = other._make_gpr()
    return other


class Answer(NamedTuple):
    """What an oracle said: RUNNING with the values to try, IDLE (ask again after an end) or STOPPED."""

    status: str
    values: dict[str, Any]


class EphemeralOracle:
    """A copy of a template that is fed, asked once and forgotten; a context manager.

    It writes nothing to disk, prints nothing, never retries, never gives up over failures, and takes up no
    hyperparameters that the template does not have. Trials are named by their sequence number.
    """

    def __init__(self, template: keras_tuner.Oracle, seed: int | None = None):
        """Copy `template`, with another `seed` if one is given.

        Raises:
            SearchError: the template already has trials, cannot be copied, or is a grid that would never end.
        """
        if isinstance(template, kt_oracles.GridSearchOracle):
            _refuse_repeated_choices(template.hyperparameters)
        if template.trials:
            raise SearchError(
                f"oracle {type(template).__name__}: already holds {len(template.trials)} trials, but a "
                "search keeps its trials in the tracking store; pass a new oracle"
            )
        self._oracle = reseeded(template, template.seed if seed is None else seed)
        self._oracle.verbose = 0  # before any trial: its display knows no trial begun in silence
        self._oracle.tune_new_entries = self._oracle.allow_new_entries = False
        self._oracle.max_retries_per_trial = 0
        self._oracle.max_consecutive_failed_trials = sys.maxsize
        self._oracle._max_collisions = _num_draws_before_exhausted(self._oracle.hyperparameters)
        self._oracle.save = lambda: None
        self._oracle._save_trial = lambda trial: None
        self._oracle.score_trial = self._set_score
        self._trials: dict[int, Any] = {}
        self._scores: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # These two module dictionaries would keep every oracle alive for as long as the program runs.
        LOCKS.pop(self._oracle, None)
        THREADS.pop(self._oracle, None)

    def put(self, sequence: int, values: Mapping[str, Any]) -> Answer:
        """Create a trial with the given values, whatever the oracle itself would suggest."""
        self._oracle.populate_space = lambda trial_id: {"status": "RUNNING", "values": dict(values)}
        try:
            return self.ask(sequence)
        finally:
            del self._oracle.populate_space  # uncovers the method of the class

    def ask(self, sequence: int) -> Answer:
        """Return the oracle's next suggestion, which is from then on a running trial of it."""
        with warnings.catch_warnings():
            # On few trials the kernel's length scales run into their bounds; the fit is still usable.
            warnings.simplefilter("ignore", ConvergenceWarning)
            trial = self._oracle.create_trial(str(sequence))
        if trial.status == "RUNNING":
            self._trials[sequence] = trial
        return Answer(trial.status, self._as_declared(trial.hyperparameters.values))

    def tell(self, sequence: int, score: float | None) -> None:
        """End a trial with its score (infinite allowed), or as failed if there is none."""
        trial = self._trials[sequence]
        trial.status = "FAILED" if score is None else "COMPLETED"
        if score is not None:
            self._scores[trial.trial_id] = score
        self._oracle.end_trial(trial)

    def fit_to_scores(self) -> None:
        """Fit the Gaussian process to the trials told so far, for the guesses it makes about running ones."""
        vectors, scores = self._oracle._vectorize_trials()
        if len(scores):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                self._oracle.gpr.fit(vectors, scores)

    def draw_new(self) -> Answer:
        """Return random values that no trial has, or STOPPED if there are none left."""
        values = self._oracle._random_values()
        return Answer("STOPPED", {}) if values is None else Answer("RUNNING", self._as_declared(values))

    def _set_score(self, trial: Any) -> None:
        trial.score = self._scores[trial.trial_id]
        trial.best_step = 0

    def _as_declared(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return plain values: the Gaussian process yields NumPy floats, the grid some floats for an Int."""
        ints = {hp.name for hp in self._oracle.hyperparameters.space if isinstance(hp, kt_hyperparameters.Int)}
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
        return {name: int(value) if name in ints else value for name, value in plain.items()}


def default_values(space: keras_tuner.HyperParameters) -> Values:
    """Return the default of every hyperparameter that is active when all have their defaults."""
    defaults = keras_tuner.HyperParameters()
    defaults.merge(space.space)
    return dict(defaults.values)


def is_value_of(hp: Any, value: Value) -> bool:
    """Return whether a value is the default of a hyperparameter, one of its choices, or in its range."""
    if value == hp.default:
        return True
    if isinstance(hp, kt_hyperparameters.Int | kt_hyperparameters.Float):
        return isinstance(value, int | float) and bool(hp.min_value <= value <= hp.max_value)
    return value in hp.values


def _num_draws_before_exhausted(space: keras_tuner.HyperParameters) -> int:
    num = num_configurations(space)
    return _DRAWS_PER_CONFIGURATION * min(num or sys.maxsize, _MAX_CONFIGURATIONS_TO_EXHAUST)
