"""A copy of an oracle that is given trials and asked for the next one; `suggestion` and `replay` decide which trials.

Non-public members of KerasTuner 1.4.8 used here: `_save_trial`, `_max_collisions`, `_check_consecutive_failures`,
`_random_values`, `_record_values`, `_compute_values_hash`, `_tried_so_far` and `_id_to_hash` of every oracle; its
module's `LOCKS` and `THREADS`; `_hps` and `_space` of HyperParameters; `_populate_next` of the grid;
`_vectorize_trials`, `_random_state` and `_nonfixed_space` of the Bayesian oracle; `_seed_state`, `_brackets`,
`_current_bracket` and `_current_iteration` of Hyperband.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import keras_tuner
import numpy as np
from keras_tuner import oracles as kt_oracles
from keras_tuner.engine import hyperparameters as kt_hyperparameters
from keras_tuner.engine import trial as kt_trial
from keras_tuner.src.engine.oracle import LOCKS, THREADS

from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggest import oracles
from fakeface_lab.search.suggest.oracles import BRACKET_PREFIX, PARENT
from fakeface_lab.search.suggest.template import asks_for_defaults, prior_of, with_defaults

__all__ = ["Answer", "OracleCopy", "is_kerastuners_own"]

_DRAWS_PER_CONFIGURATION = 20  # a last untried configuration is then missed with a probability of exp(-20)
_MAX_CONFIGURATIONS_TO_EXHAUST = 1_000  # a larger space is not searched down to its last configuration
_NUM_STARTS = 50  # of the search for the optimum of KerasTuner's acquisition function
_KERASTUNERS_OWN = (
    kt_oracles.RandomSearchOracle,
    kt_oracles.GridSearchOracle,
    kt_oracles.BayesianOptimizationOracle,
    kt_oracles.HyperbandOracle,
)


class Answer(NamedTuple):
    """An oracle's answer: RUNNING with the values to try, IDLE (ask again after a trial ends) or STOPPED.

    KerasTuner's own entries are separate from the hyperparameters, as in `TrialRecord`.
    """

    status: str
    values: dict[str, Any]
    bracket_values: dict[str, Any]


def is_kerastuners_own(oracle: keras_tuner.Oracle) -> bool:
    """Return whether an oracle is one of KerasTuner's four, unmodified: no subclass, no method replaced."""
    return type(oracle) in _KERASTUNERS_OWN and not any(map(callable, vars(oracle).values()))


class OracleCopy:
    """A copy of a template, entered as a context manager whenever it is used.

    It writes nothing to disk, prints nothing, never retries, never stops because of failures, and its space grows only
    by `grow` and `learn`. Trials are named by their sequence. A creation or an end takes constant time, apart from what
    a user's own oracle or the Gaussian process does.
    """

    def __init__(self, template: keras_tuner.Oracle, seed: int | None = None):
        """Copy `template`, with another `seed` if one is given.

        Raises:
            SearchError: the template already has trials, cannot be copied, or is a grid that would never end.
        """
        if template.trials:
            raise SearchError(
                f"oracle {type(template).__name__}: already holds {len(template.trials)} trials, but a search keeps "
                "its trials in the tracking store; pass a new oracle"
            )
        self._oracle = oracles.reseeded(template, template.seed if seed is None else seed)
        self._oracle.verbose = 0  # before any trial: its display cannot end a trial whose start it did not show
        self._oracle.tune_new_entries = self._oracle.allow_new_entries = False
        self._oracle.max_retries_per_trial = 0
        self._oracle.max_consecutive_failed_trials = sys.maxsize
        self._oracle._check_consecutive_failures = lambda: None  # reads all trials at each end
        self._oracle.save = lambda: None
        self._oracle._save_trial = lambda trial: None
        self._oracle.score_trial = self._set_score
        self._is_kerastuners_own = is_kerastuners_own(template)
        if self._is_kerastuners_own:  # a user's own oracle may change the hyperparameters of its copy
            self._oracle.hyperparameters = _SharedSpace(self._oracle.hyperparameters)
        self._has_kerastuners_limits = not asks_for_defaults(template)
        self._note_space()
        self._trials: dict[int, Any] = {}
        self._scores: dict[str, float] = {}
        self._asked = -1
        self._before: dict[str, Any] = {}
        self._tell_prior(template)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # These two module-level dictionaries would keep every oracle alive until the program ends.
        LOCKS.pop(self._oracle, None)
        THREADS.pop(self._oracle, None)

    def put(self, sequence: int, values: Mapping[str, Any]) -> Answer:
        """Create a trial with the given values instead of the oracle's own suggestion."""
        self._oracle.populate_space = lambda trial_id: {"status": "RUNNING", "values": dict(values)}
        try:
            return self.ask(sequence)
        finally:
            del self._oracle.populate_space  # uncovers the method of the class

    def ask(self, sequence: int) -> Answer:
        """Return the oracle's next suggestion, which becomes one of its running trials."""
        self._asked, self._before = sequence, _changed_by_question(self._oracle)
        trial = self._oracle.create_trial(str(sequence))
        if trial.status == "RUNNING":
            self._trials[sequence] = trial
        return self._answer(trial.status, trial.hyperparameters.values)

    def grow(self, found: Sequence[Any]) -> None:
        """Add hyperparameters to the space, except those that it has.

        Raises:
            SearchError: the grid would never end.
        """
        space = self._oracle.hyperparameters
        if self._is_kerastuners_own:
            # Earlier trials keep their own space: KerasTuner would draw values for what has joined it since.
            grown = keras_tuner.HyperParameters.from_config(space.get_config())
            space = self._oracle.hyperparameters = _SharedSpace(grown)
        space.merge(found, overwrite=False)
        self._note_space()

    def learn(self, sequence: int, values: Mapping[str, Any], found: Sequence[Any]) -> None:
        """Note, after `tell`, what a trial has found and the values that it ended with.

        Raises:
            SearchError: the grid would never end.
        """
        oracle = self._oracle
        trial = oracle.trials[oracle.start_order[sequence]]
        own = {name: value for name, value in trial.hyperparameters.values.items() if name.startswith(BRACKET_PREFIX)}
        trial.hyperparameters.values = {**values, **own}
        recorded_before = oracle._id_to_hash[trial.trial_id]
        oracle._record_values(trial)
        if found:
            self.grow(found)
        is_grid = isinstance(oracle, kt_oracles.GridSearchOracle)
        is_changed = found or oracle._id_to_hash[trial.trial_id] != recorded_before
        if is_grid and is_changed and trial.trial_id not in oracle._populate_next:
            oracle._populate_next.append(trial.trial_id)  # other combinations follow it now
        # Grid and Hyperband continue from the values of earlier trials.
        for earlier in oracle.trials.values() if found else [trial]:
            earlier.hyperparameters.values = with_defaults(oracle.hyperparameters, earlier.hyperparameters.values)

    def active_names(self, values: Mapping[str, Any]) -> set[str]:
        """Return the names of the hyperparameters in the space that are active with these values."""
        space = keras_tuner.HyperParameters()
        space.values = dict(values)
        return {hp.name for hp in self._oracle.hyperparameters.space if space.is_active(hp)}

    def take_back(self) -> None:
        """Undo the last `ask`; only for KerasTuner's own Hyperband."""
        for name, value in self._before.items():
            setattr(self._oracle, name, value)
        trial = self._trials.pop(self._asked, None)
        if trial is not None:
            del self._oracle.trials[trial.trial_id], self._oracle.ongoing_trials[str(self._asked)]
            self._oracle.start_order.pop()
            self._oracle._tried_so_far.remove(self._oracle._id_to_hash.pop(trial.trial_id))

    def tell(self, sequence: int, score: float | None) -> None:
        """End a trial with its score (may be infinite), or as failed if there is none."""
        trial = self._trials.pop(sequence)
        trial.status = "FAILED" if score is None else "COMPLETED"
        if score is not None:
            self._scores[trial.trial_id] = score
        self._oracle.end_trial(trial)

    def draw_new(self) -> Answer:
        """Return random values that no trial has; STOPPED if there are none left."""
        values = self._oracle._random_values()
        return self._answer("STOPPED", {}) if values is None else self._answer("RUNNING", values)

    def asks_gaussian_process(self) -> bool:
        """Return whether a Bayesian oracle has enough trials to ask its Gaussian process; before, it draws."""
        num_completed = sum(trial.status == "COMPLETED" for trial in self._oracle.trials.values())
        return bool(num_completed >= oracles.num_initial_points(self._oracle))

    def skip_gaussian_process(self) -> None:
        """Make the random draws of one question to the Gaussian process, without the question."""
        self._oracle._random_state.uniform(size=(_NUM_STARTS, len(self._oracle._nonfixed_space())))

    def fit_before_guesses(self) -> None:
        """Fit the Gaussian process to the known scores before it guesses those of running trials.

        KerasTuner's own oracle computes vectors only right before it uses them, so the fit is deferred until then.
        """
        oracle, vectorize = self._oracle, self._oracle._vectorize_trials

        def fit() -> tuple[Any, Any]:
            trials, running = oracle.trials, set(oracle.ongoing_trials.values())
            oracle.trials = {key: trial for key, trial in trials.items() if trial not in running}
            vectors, scores = vectorize()
            oracle.trials = trials
            if len(scores):
                oracle.gpr.fit(vectors, scores)
            return vectors, scores

        def fit_and_vectorize() -> tuple[Any, Any]:
            vectors, scores = fit()
            trials = oracle.trials
            oracle.trials = {trial.trial_id: trial for trial in oracle.ongoing_trials.values()}
            running, guesses = vectorize()
            oracle.trials = trials
            return np.concatenate([vectors, running]), np.concatenate([scores, guesses])

        if self._is_kerastuners_own:
            oracle._vectorize_trials = fit_and_vectorize
        else:
            fit()

    def _tell_prior(self, template: keras_tuner.Oracle) -> None:
        """Tell the trials of a warm start, apart from those of this search."""
        oracle, prior = self._oracle, prior_of(template)
        oracle._tried_so_far.update(oracle._compute_values_hash(trial.values) for trial in prior)
        # Random search asks no score; Hyperband numbers its promotions by the trials that it has.
        if isinstance(oracle, kt_oracles.RandomSearchOracle | kt_oracles.HyperbandOracle):
            return
        for number, known in enumerate(prior):
            hp = oracle.get_space()
            hp.values = dict(known.values)
            trial = kt_trial.Trial(hp, f"prior-{number}", kt_trial.TrialStatus.COMPLETED)
            trial.score, trial.best_step = known.score, 0
            oracle.trials[trial.trial_id] = trial
        if oracle.max_trials:
            oracle.max_trials += len(prior)  # it counts the trials that it has

    def _note_space(self) -> None:
        """Work out what depends on the space."""
        space = self._oracle.hyperparameters
        if isinstance(self._oracle, kt_oracles.GridSearchOracle):
            oracles.refuse_repeated_choices(space)
        self._ints = {hp.name for hp in space.space if isinstance(hp, kt_hyperparameters.Int)}
        if not self._has_kerastuners_limits:
            num = min(oracles.num_configurations(space) or sys.maxsize, _MAX_CONFIGURATIONS_TO_EXHAUST)
            self._oracle._max_collisions = _DRAWS_PER_CONFIGURATION * num

    def _set_score(self, trial: Any) -> None:
        trial.score = self._scores[trial.trial_id]
        trial.best_step = 0

    def _answer(self, status: str, values: Mapping[str, Any]) -> Answer:
        """Return plain Python values: the Gaussian process yields NumPy floats, the grid floats for some Ints."""
        plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
        declared = {name: int(value) if name in self._ints else value for name, value in plain.items()}
        own = {name: value for name, value in declared.items() if name.startswith(BRACKET_PREFIX)}
        if PARENT in own:
            own[PARENT] = int(own[PARENT])  # KerasTuner pads the number with zeros
        return Answer(status, {name: value for name, value in declared.items() if name not in own}, own)


class _SharedSpace(keras_tuner.HyperParameters):
    """A space whose copies share its hyperparameters: KerasTuner copies it per trial, and changes none of them."""

    def __init__(self, space: keras_tuner.HyperParameters) -> None:
        super().__init__()
        self._hps, self._space, self.values = space._hps, space._space, dict(space.values)

    def copy(self) -> Self:
        return type(self)(self)


def _changed_by_question(oracle: keras_tuner.Oracle) -> dict[str, Any]:
    """Return what `ask` changes in Hyperband apart from creating the trial, for `take_back`."""
    if type(oracle) is not kt_oracles.HyperbandOracle:
        return {}
    brackets = [{**bracket, "rounds": [list(members) for members in bracket["rounds"]]} for bracket in oracle._brackets]
    return {
        "_seed_state": oracle._seed_state,
        "_brackets": brackets,
        "_current_bracket": oracle._current_bracket,
        "_current_iteration": oracle._current_iteration,
    }
