"""What to try next, as a pure function of a search's settings and its recorded trials.

The ledger holds all state of a search, so a restart is not a special case. A copy of the oracle is given the ledger and
asked:

- Random, grid, Hyperband and any other KerasTuner oracle replay the recorded events in order; each answer must equal
  the recorded one, else the ledger belongs to another search. `replay` caches the copy.
- The Bayesian oracle is given all recorded trials at once, and a separate seed for each question; without a trial 0 of
  defaults it replays the events as well, to try what KerasTuner's own would.
"""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from operator import attrgetter

import keras_tuner
from keras_tuner import oracles as kt_oracles
from sklearn.exceptions import ConvergenceWarning

from fakeface_lab.config import Value
from fakeface_lab.search.suggest.oracle_copy import Answer, OracleCopy, is_kerastuners_own
from fakeface_lab.search.suggest.oracles import PARENT, far_apart_seed, first_values, is_value_of
from fakeface_lab.search.suggest.replay import (
    TrialRecord,
    ask_replayed,
    check_consistent,
    events_of,
    foreign_trial_error,
)
from fakeface_lab.search.suggest.template import asks_for_defaults, grown_space, growth_of, prior_of, with_defaults

__all__ = ["Exhausted", "Suggestion", "TrialRecord", "Wait", "failed_parent", "suggest"]


@dataclass(frozen=True)
class Suggestion:
    """The next trial.

    Attributes:
        values: hyperparameters by name.
        bracket_values: as in `TrialRecord`.
    """

    values: Mapping[str, Value]
    bracket_values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Wait:
    """Nothing can be suggested until a running trial ends."""


@dataclass(frozen=True)
class Exhausted:
    """No further trial will be suggested, unless a running one finds new hyperparameters."""


def suggest(template: keras_tuner.Oracle, trials: Sequence[TrialRecord]) -> Suggestion | Wait | Exhausted:
    """Return what to start next; equal arguments give equal answers, and no argument is changed.

    Trial 0 has the default values; with Hyperband it also has the full budget, and belongs to no bracket. A template
    with `defaults_first = False` has no such trial. With one trial at a time, an interrupted search resumes exactly as
    it would have continued. Suggestions of the Gaussian process are reproducible on one machine only: they depend on
    the linear algebra library.

    Args:
        template: an oracle without trials, whose suggestions depend only on its settings, its seed and the trials
            reported to it; `growth.set_growth` has told it what those trials have found, `prior.set_prior` those of a
            warm start.
        trials: all recorded trials, in any order.

    Raises:
        SearchError: the ledger contradicts itself or belongs to another search, or the template cannot be used.
    """
    ledger = sorted(trials, key=attrgetter("sequence"))
    if template.max_trials and len(ledger) >= template.max_trials:
        check_consistent(ledger)
        return Exhausted()
    bayesian = isinstance(template, kt_oracles.BayesianOptimizationOracle)
    # On few trials a Gaussian process reaches the bounds of its length scales, and is still usable. Warning
    # filters are global to the process, so they are not touched if nothing is fitted: other threads may ask.
    is_fitted = bayesian or not is_kerastuners_own(template)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning) if is_fitted else nullcontext():
        is_replayed = not (bayesian and asks_for_defaults(template))
        answer = ask_replayed(template, ledger) if is_replayed else _ask_bayesian(template, ledger)
    if answer.status == "RUNNING":
        return Suggestion(dict(answer.values), dict(answer.bracket_values))
    if answer.status == "IDLE" and any(trial.status == "running" for trial in ledger):
        return Wait()
    return Exhausted()


def failed_parent(bracket_values: Mapping[str, Value], trials: Sequence[TrialRecord]) -> int | None:
    """Return the sequence of the failed trial that a promoted one would resume; None if there is none.

    Such a promotion has no weights to start from: it is recorded as failed, and not trained.
    """
    parent = bracket_values.get(PARENT)
    if parent is not None and any(trial.sequence == parent and trial.status == "failed" for trial in trials):
        return int(parent)
    return None


def _ask_bayesian(template: keras_tuner.Oracle, ledger: Sequence[TrialRecord]) -> Answer:
    check_consistent(ledger)
    last_order = max((event.order for event in events_of(ledger, ledger)), default=0)
    space = grown_space(template, last_order)
    _check_in_space(template, ledger, space)
    values = {trial.sequence: with_defaults(space, trial.values) for trial in ledger}
    ended = [trial for trial in ledger if trial.status != "running"]
    running = [trial for trial in ledger if trial.status == "running"]
    worst_of = max if template.objective.direction == "min" else min
    worst = worst_of((trial.score for trial in ended if trial.score is not None), default=None)
    with OracleCopy(template, far_apart_seed(template.seed, len(ledger))) as oracle:
        oracle.grow(space.space)
        for trial in ended:
            oracle.put(trial.sequence, values[trial.sequence])
            # The Gaussian process needs a number to avoid: a failure counts as the worst score so far.
            oracle.tell(trial.sequence, worst if trial.status == "failed" else trial.score)
        if running:
            oracle.fit_before_guesses()
        for trial in running:
            oracle.put(trial.sequence, values[trial.sequence])
        if not ledger:
            return oracle.put(0, first_values(template))
        answer = oracle.ask(len(ledger))
        known = [*values.values(), *(trial.values for trial in prior_of(template))]
        return oracle.draw_new() if answer.values in known else answer


def _check_in_space(
    template: keras_tuner.Oracle, ledger: Sequence[TrialRecord], space: keras_tuner.HyperParameters
) -> None:
    """Raise SearchError for a trial outside this search's space: the Bayesian oracle itself would not notice it."""
    space, growth = space.copy(), growth_of(template)
    for trial in ledger:
        space.values = dict(trial.values)
        active = [hp for hp in space.space if space.is_active(hp)]
        later = {hp.name for order in growth if order > trial.created_order for hp in growth[order]}
        names = {hp.name for hp in active}
        if not names - later <= set(trial.values) <= names:
            raise foreign_trial_error(template, trial, f"the hyperparameters {', '.join(hp.name for hp in active)}")
        for hp in active:
            if hp.name in trial.values and not is_value_of(hp, trial.values[hp.name]):
                raise foreign_trial_error(template, trial, f"{hp} but the record has {trial.values[hp.name]}")
        if trial.sequence == 0 and not first_values(template).items() <= trial.values.items():
            raise foreign_trial_error(template, trial, "all defaults")
