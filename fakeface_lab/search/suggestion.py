"""What to try next, as a pure function of a search's settings and its recorded trials.

The ledger is the only memory of a search. Each question builds a fresh copy of the oracle, feeds it the
ledger, asks once and drops it, so that starting again is no special case. This file owns the records, and
what an oracle is told and in which order; the oracles are in `oracles`, the ledger and the loop elsewhere.

- Random, grid, Hyperband and any other KerasTuner oracle go through the events again in their order; each
  answer must equal the recorded one, else the ledger belongs to another search.
- The Bayesian oracle is given the recorded trials at once, and a seed of its own for each question.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import keras_tuner
from keras_tuner import oracles as kt_oracles

from fakeface_lab.errors import SearchError
from fakeface_lab.search.counts import Value
from fakeface_lab.search.oracles import (
    Answer,
    EphemeralOracle,
    default_values,
    far_apart_seed,
    is_value_of,
)

__all__ = ["Exhausted", "Suggestion", "TrialRecord", "Wait", "failed_parent", "suggest"]

_BRACKET_PREFIX = "tuner/"
_PARENT = "tuner/trial_id"


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the ledger knows it.

    Attributes:
        sequence: place in the order of creation, from 0.
        values: hyperparameters by name, only active ones.
        bracket_values: Hyperband's `tuner/epochs`, `tuner/initial_epoch`, `tuner/bracket`, `tuner/round`;
            for a promoted trial `tuner/trial_id`, the sequence of the trial it goes on from. Else empty.
        created_order: event number of the creation; one count over the creations and ends of all trials.
        ended_order: event number of the end, None while it runs.
        status: running, finished (has a finite score) or failed.
        score: value of the objective, None unless finished.
    """

    sequence: int
    values: Mapping[str, Value]
    bracket_values: Mapping[str, Value]
    created_order: int
    ended_order: int | None
    status: Literal["running", "finished", "failed"]
    score: float | None


@dataclass(frozen=True)
class Suggestion:
    """The next trial. With a `failed_parent` it is to be recorded as failed at once, and not trained.

    Attributes:
        values: hyperparameters by name.
        bracket_values: as in `TrialRecord`.
        failed_parent: sequence of the failed trial whose weights this promotion would go on from, or None.
    """

    values: Mapping[str, Value]
    bracket_values: Mapping[str, Value] = field(default_factory=dict)
    failed_parent: int | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing to start until one of the running trials has ended."""


@dataclass(frozen=True)
class Exhausted:
    """No trial will be suggested any more; running ones may still end.

    Attributes:
        reason: why, as a clause for the user.
    """

    reason: str


def suggest(template: keras_tuner.Oracle, trials: Sequence[TrialRecord]) -> Suggestion | Wait | Exhausted:
    """Return what to start next; equal arguments give equal answers, and no argument is changed.

    Trial 0 has all defaults, for Hyperband the full budget too, and belongs to no bracket.

    Args:
        template: an oracle without trials, from `oracles.build_oracle` or the user's own, whose suggestions
            depend on nothing but its settings, its seed and the trials it has been told of.
        trials: all recorded trials, in any order.

    Returns:
        With one trial at a time, a search that was cut anywhere goes on exactly as it would have. What the
        Gaussian process suggests is repeatable on one machine only: it depends on the linear algebra library.

    Raises:
        SearchError: the ledger contradicts itself or belongs to another search, or the template cannot be
            used.
    """
    ledger = sorted(trials, key=lambda trial: trial.sequence)
    _check_consistent(ledger)
    if template.max_trials and len(ledger) >= template.max_trials:
        return Exhausted(f"all {template.max_trials} trials have been started")
    bayesian = isinstance(template, kt_oracles.BayesianOptimizationOracle)
    answer = _ask_bayesian(template, ledger) if bayesian else _ask_replayed(template, ledger)
    if answer.status == "RUNNING":
        values, bracket_values = _split(answer.values)
        return Suggestion(values, bracket_values, failed_parent(bracket_values, ledger))
    if answer.status == "IDLE" and any(trial.status == "running" for trial in ledger):
        return Wait()
    return Exhausted(f"{type(template).__name__} has nothing new to try")


def _ask_replayed(template: keras_tuner.Oracle, ledger: Sequence[TrialRecord]) -> Answer:
    # The grid reads no score, but goes on from a trial only once it has ended.
    ends_at_once = isinstance(template, kt_oracles.GridSearchOracle)
    with EphemeralOracle(template) as oracle:
        for is_end, trial in _events(ledger):
            if not is_end:
                _check_same(template, trial, _next(oracle, template, trial.sequence))
            if is_end != ends_at_once:
                oracle.tell(trial.sequence, _told_score(template, trial, ledger))
        return _next(oracle, template, len(ledger))


def _ask_bayesian(template: keras_tuner.Oracle, ledger: Sequence[TrialRecord]) -> Answer:
    ended = [trial for trial in ledger if trial.status != "running"]
    running = [trial for trial in ledger if trial.status == "running"]
    for trial in ledger:
        _check_in_space(template, trial)
    with EphemeralOracle(template, far_apart_seed(template.seed, len(ledger))) as oracle:
        for trial in ended:
            oracle.put(trial.sequence, trial.values)
            oracle.tell(trial.sequence, _told_score(template, trial, ledger))
        if running:
            oracle.fit_to_scores()
        for trial in running:
            oracle.put(trial.sequence, trial.values)
        answer = _next(oracle, template, len(ledger))
        is_repeated = any(dict(trial.values) == answer.values for trial in ledger)
        return oracle.draw_new() if is_repeated else answer


def _next(oracle: EphemeralOracle, template: keras_tuner.Oracle, sequence: int) -> Answer:
    # The grid starts at the defaults by itself, and counts on from a first trial that it has placed.
    if sequence > 0 or isinstance(template, kt_oracles.GridSearchOracle):
        return oracle.ask(sequence)
    return oracle.put(sequence, _first_values(template))


def _first_values(template: keras_tuner.Oracle) -> dict[str, Value]:
    values = default_values(template.hyperparameters)
    if _is_hyperband(template):
        full_budget = {"epochs": template.max_epochs, "initial_epoch": 0, "bracket": -1, "round": 0}
        values |= {_BRACKET_PREFIX + name: value for name, value in full_budget.items()}
    return values


def _told_score(template: keras_tuner.Oracle, trial: TrialRecord, ledger: Sequence[TrialRecord]) -> float | None:
    """Return what an oracle is told; None for failed. The ledger keeps the truth.

    Hyperband only ranks, and a round with a missing score would never promote: a failure is the worst.
    The Gaussian process needs a number to stay away from: a failure is as bad as the worst score so far.
    """
    if trial.status != "failed":
        return trial.score
    sign = 1 if template.objective.direction == "min" else -1
    if _is_hyperband(template):
        return sign * math.inf
    if isinstance(template, kt_oracles.BayesianOptimizationOracle):
        scores = [other.score for other in ledger if other.score is not None]
        return sign * max(sign * score for score in scores) if scores else None
    return None


def failed_parent(bracket_values: Mapping[str, Value], trials: Sequence[TrialRecord]) -> int | None:
    """Return the sequence of the failed trial that a promoted one goes on from; None if there is none.

    Such a promotion has no weights to begin with: it is recorded as failed, and not trained.
    """
    parent = bracket_values.get(_PARENT)
    failed = {trial.sequence for trial in trials if trial.status == "failed"}
    return int(parent) if parent is not None and parent in failed else None


def _split(values: Mapping[str, Any]) -> tuple[dict[str, Value], dict[str, Value]]:
    """Separate hyperparameters from KerasTuner's own entries, and name a parent by its sequence."""
    own = {name: value for name, value in values.items() if name.startswith(_BRACKET_PREFIX)}
    if _PARENT in own:
        own[_PARENT] = int(own[_PARENT])  # KerasTuner pads the number with zeros
    return {name: value for name, value in values.items() if name not in own}, own


def _events(ledger: Sequence[TrialRecord]) -> Iterator[tuple[bool, TrialRecord]]:
    """Yield (is an end, trial) for every creation and end, in their order."""
    created = [(trial.created_order, False, trial) for trial in ledger]
    ended = [(trial.ended_order, True, trial) for trial in ledger if trial.ended_order is not None]
    for _, is_end, trial in sorted([*created, *ended], key=lambda event: event[0]):
        yield is_end, trial


def _is_hyperband(template: keras_tuner.Oracle) -> bool:
    return isinstance(template, kt_oracles.HyperbandOracle)


def _check_consistent(ledger: Sequence[TrialRecord]) -> None:
    if [trial.sequence for trial in ledger] != list(range(len(ledger))):
        raise SearchError(
            f"recorded trials: sequences {[trial.sequence for trial in ledger]} have gaps or repeats; "
            "restore the missing trials, or start the search again under another name"
        )
    orders = [trial.created_order for trial in ledger]
    events = orders + [trial.ended_order for trial in ledger if trial.ended_order is not None]
    if orders != sorted(orders) or len(set(events)) < len(events):
        raise SearchError(
            "recorded trials: two events have the same number, or trials were not created in their sequence; "
            "start the search again under another name"
        )
    for trial in ledger:
        fault = _fault(trial)
        if fault:
            raise SearchError(
                f"recorded trial {trial.sequence}: {fault}; correct the record, or start the search again "
                "under another name"
            )


def _fault(trial: TrialRecord) -> str | None:
    """Say what is wrong with one record, if anything."""
    if trial.ended_order is not None and trial.ended_order < trial.created_order:
        return f"ends at event {trial.ended_order}, before its creation at event {trial.created_order}"
    if (trial.status == "running") != (trial.ended_order is None):
        return f"is {trial.status}, but its end is event {trial.ended_order}"
    if (trial.status == "finished") != (trial.score is not None):
        return f"is {trial.status}, but its score is {trial.score}"
    # SQLite keeps an infinite number as the largest finite one.
    if trial.score is not None and not abs(trial.score) < sys.float_info.max:
        return f"is finished, but its score {trial.score} is not finite"
    return None


def _check_same(template: keras_tuner.Oracle, trial: TrialRecord, answer: Answer) -> None:
    """Refuse a trial that this search would not have created at this point."""
    if answer.status != "RUNNING":
        raise _another_search(template, trial, "no further trial")
    suggested: dict[str, Value] = {}
    for part in _split(answer.values):
        suggested |= part
    recorded = {**trial.values, **trial.bracket_values}
    differing = [name for name in {**recorded, **suggested} if recorded.get(name) != suggested.get(name)]
    if differing:
        expected = ", ".join(f"{name}={suggested.get(name)}" for name in differing)
        found = ", ".join(f"{name}={recorded.get(name)}" for name in differing)
        raise _another_search(template, trial, f"{expected} where it has {found}")


def _check_in_space(template: keras_tuner.Oracle, trial: TrialRecord) -> None:
    """Refuse a trial that the space of this search cannot contain, as its values are not asked for again."""
    space = template.hyperparameters.copy()
    space.values = dict(trial.values)
    active = [hp for hp in space.space if space.is_active(hp)]
    if {hp.name for hp in active} != set(trial.values):
        raise _another_search(template, trial, f"the hyperparameters {', '.join(hp.name for hp in active)}")
    for hp in active:
        if not is_value_of(hp, trial.values[hp.name]):
            raise _another_search(template, trial, f"{hp} where it has {trial.values[hp.name]}")
    if trial.sequence == 0 and dict(trial.values) != _first_values(template):
        raise _another_search(template, trial, "all defaults")


def _another_search(template: keras_tuner.Oracle, trial: TrialRecord, expected: str) -> SearchError:
    return SearchError(
        f"recorded trial {trial.sequence} belongs to another search: {type(template).__name__} with seed "
        f"{template.seed} suggests {expected}; go on with the settings it was begun with, or use another name"
    )
