"""Records of trials (`TrialRecord`), checks that they are consistent, and oracles that replay them.

A copy of an oracle replays the events of a ledger, then answers. It is cached: it is in the state of one that is about
to replay the creation of the trial it suggested, so the next question replays only new events. If another event
precedes that creation, the answer is taken back first. If the ledger does not continue that of the last question, or
the template's settings changed, a new copy replays everything: 1 to 2 s of processor time at 10,000 trials, where the
cached answer takes 2 ms (docs/search.md). Dropping the cache changes no answer.

Only KerasTuner's own oracles are cached. Another class may not support being asked ahead of the ledger, and a cache
would hide that it answers differently after a restart; so it replays the whole ledger for each question. So does the
Bayesian oracle, whose answers cannot be taken back.

What a trial has found joins the space of the copy at the trial's end. That changes the template's settings, so a new
copy replays everything.
"""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

import keras_tuner
from keras_tuner import oracles as kt_oracles

from fakeface_lab.config import Value
from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggest.oracle_copy import Answer, OracleCopy, is_kerastuners_own
from fakeface_lab.search.suggest.oracles import first_values
from fakeface_lab.search.suggest.template import asks_for_defaults, growth_of

__all__ = ["Event", "TrialRecord", "ask_replayed", "check_consistent", "events_of", "fault_of", "foreign_trial_error"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial as recorded in the ledger. Records are immutable: a change makes a new record.

    Attributes:
        sequence: position in the order of creation, from 0.
        values: active hyperparameters by name; once the trial has ended, also those that it has found.
        bracket_values: Hyperband's `tuner/epochs`, `tuner/initial_epoch`, `tuner/bracket`, `tuner/round`; for a
            promoted trial also `tuner/trial_id`, the sequence of the trial it resumes. Empty for other oracles.
        created_order: number of the creation event; creations and ends of all trials are numbered together.
        ended_order: number of the end event, None while the trial runs.
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


class Event(NamedTuple):
    """The creation or the end of a trial; events sort by their number."""

    order: int
    is_end: bool
    trial: TrialRecord


def events_of(created: Iterable[TrialRecord], ended: Iterable[TrialRecord]) -> list[Event]:
    """Return the creations of some trials and the ends of others, in order; running trials have no end."""
    events = [Event(trial.created_order, False, trial) for trial in created]
    events += [Event(trial.ended_order, True, trial) for trial in ended if trial.ended_order is not None]
    return sorted(events, key=lambda event: event.order)


def check_consistent(trials: Sequence[TrialRecord]) -> None:
    """Check records, given in the order of their sequence.

    Raises:
        SearchError: sequences or event numbers have gaps or repeats, or a record contradicts itself.
    """
    sequences = [trial.sequence for trial in trials]
    if sequences != list(range(len(trials))):
        raise SearchError(
            f"recorded trials: sequences {sequences} have gaps or repeats; restore the missing trials, or start the "
            "search again under another name"
        )
    orders = [event.order for event in events_of(trials, trials)]
    is_created_in_sequence = all(one.created_order < other.created_order for one, other in pairwise(trials))
    if not is_created_in_sequence or len(set(orders)) < len(orders):
        raise SearchError(
            "recorded trials: two events have the same number, or trials were not created in their sequence; "
            "start the search again under another name"
        )
    for trial in trials:
        fault = fault_of(trial)
        if fault:
            raise SearchError(
                f"recorded trial {trial.sequence}: {fault}; correct the record, or start the search again "
                "under another name"
            )


def fault_of(trial: TrialRecord) -> str | None:
    """Return the contradiction in one record as a clause, None if there is none."""
    if trial.ended_order is not None and trial.ended_order < trial.created_order:
        return f"ends at event {trial.ended_order}, before its creation at event {trial.created_order}"
    if (trial.status == "running") != (trial.ended_order is None):
        return f"is {trial.status}, but its end is event {trial.ended_order}"
    if (trial.status == "finished") != (trial.score is not None):
        return f"is {trial.status}, but its score is {trial.score}"
    # SQLite stores infinity as the largest finite number.
    if trial.score is not None and not abs(trial.score) < sys.float_info.max:
        return f"is finished, but its score {trial.score} is not finite"
    return None


def foreign_trial_error(template: keras_tuner.Oracle, trial: TrialRecord, expected: str) -> SearchError:
    """Return the error for a recorded trial that this search would not have created; `expected`: what it would."""
    return SearchError(
        f"recorded trial {trial.sequence} belongs to another search: {type(template).__name__} with seed "
        f"{template.seed} suggests {expected}; use the settings that the search began with, or another name"
    )


def ask_replayed(template: keras_tuner.Oracle, ledger: Sequence[TrialRecord]) -> Answer:
    """Return a template's answer after all events of a ledger, given in the order of their sequence.

    Raises:
        SearchError: the ledger contradicts itself or belongs to another search, or the template cannot be used.
    """
    settings = _settings(template)
    # Removed while in use: a second thread, and the next question after an error, start from scratch.
    replay = None if settings is None else _cached.pop(template, None)
    events = None if replay is None or replay.settings != settings else replay.new_events(ledger)
    if replay is None or events is None:
        check_consistent(ledger)
        replay, events = _Replay(template, settings), events_of(ledger, ledger)
    answer = replay.ask_after(template, ledger, events)
    if settings is not None:
        _cached[template] = replay
    return answer


class _Replay:
    """An oracle that has replayed the events of a ledger, and its answer after them."""

    def __init__(self, template: keras_tuner.Oracle, settings: str | None) -> None:
        self.settings = settings
        self._oracle = OracleCopy(template)
        self._ledger: Sequence[TrialRecord] = ()
        self._last_order = -math.inf
        self._answer: Answer | None = None
        self._growth = growth_of(template)
        # Their suggestions depend on no score and no end; the grid would even wait for ends.
        is_plain_random = settings is not None and isinstance(template, kt_oracles.RandomSearchOracle)
        self._ends_at_once = is_plain_random or isinstance(template, kt_oracles.GridSearchOracle)

    def new_events(self, ledger: Sequence[TrialRecord]) -> list[Event] | None:
        """Return the events since the last question; None if the ledger does not consistently continue its ledger."""
        num_known = len(self._ledger)
        pairs = zip(self._ledger, ledger, strict=False)
        changed = [(old, new) for old, new in pairs if old is not new and old != new]
        created, altered = ledger[num_known:], [new for _, new in changed]
        events = events_of(created, [*created, *altered])
        is_continued = (
            len(ledger) >= num_known
            and [trial.sequence for trial in created] == list(range(num_known, len(ledger)))
            and all(replace(new, status="running", ended_order=None, score=None) == old for old, new in changed)
            and all(fault_of(trial) is None for trial in [*created, *altered])
            and all(one.created_order < other.created_order for one, other in pairwise(created))
            and all(one < other for one, other in pairwise([self._last_order, *(event.order for event in events)]))
        )
        return events if is_continued else None

    def ask_after(self, template: keras_tuner.Oracle, ledger: Sequence[TrialRecord], events: Sequence[Event]) -> Answer:
        """Replay the events that lead to a ledger, and return the answer after them."""
        with self._oracle:
            for order, is_end, trial in events:
                if not is_end:
                    self._create(template, trial)
                if is_end != self._ends_at_once:
                    self._end(template, trial)
                if is_end and self._growth:
                    self._oracle.learn(trial.sequence, trial.values, self._growth.get(order, []))
            if any(trial.status == "running" for trial in ledger) and self._asks_gaussian_process(template):
                self._oracle.fit_before_guesses()
            answer = self._ask(template, len(ledger))
        self._ledger = ledger
        self._last_order = events[-1].order if events else self._last_order
        return answer

    def _create(self, template: keras_tuner.Oracle, trial: TrialRecord) -> None:
        """Replay a creation.

        Raises:
            SearchError: this search would not have created the trial at this point.
        """
        values = self._values_when_created(trial)
        if self._asks_gaussian_process(template):  # its answer differs on another machine, and takes most of the time
            self._oracle.skip_gaussian_process()
            self._oracle.put(trial.sequence, values)
        else:
            _check_same(template, trial, values, self._ask(template, trial.sequence))
        self._answer = None

    def _asks_gaussian_process(self, template: keras_tuner.Oracle) -> bool:
        return isinstance(template, kt_oracles.BayesianOptimizationOracle) and self._oracle.asks_gaussian_process()

    def _values_when_created(self, trial: TrialRecord) -> Mapping[str, Value]:
        """Return a trial's values without those that it has found."""
        ended = trial.created_order if trial.ended_order is None else trial.ended_order
        orders = [order for order in self._growth if trial.created_order < order <= ended]
        found = {hp.name for order in orders for hp in self._growth[order]}
        if not found:
            return trial.values
        known = self._oracle.active_names(trial.values)
        return {name: value for name, value in trial.values.items() if name in known or name not in found}

    def _ask(self, template: keras_tuner.Oracle, sequence: int) -> Answer:
        if self._answer is None:
            # The grid starts at the defaults by itself, and must have placed the first trial to continue from it.
            is_grid = isinstance(template, kt_oracles.GridSearchOracle)
            is_given = sequence == 0 and asks_for_defaults(template) and not is_grid
            self._answer = (
                self._oracle.put(sequence, first_values(template)) if is_given else self._oracle.ask(sequence)
            )
        return self._answer

    def _end(self, template: keras_tuner.Oracle, trial: TrialRecord) -> None:
        if self._answer is not None:
            self._oracle.take_back()
            self._answer = None
        score = trial.score
        if trial.status == "failed" and isinstance(template, kt_oracles.HyperbandOracle):
            # It only ranks, and never promotes from an incomplete round: a failure counts as the worst score.
            score = math.inf if template.objective.direction == "min" else -math.inf
        self._oracle.tell(trial.sequence, score)


# Weak: a replay goes when the template of its search does.
_cached: WeakKeyDictionary[keras_tuner.Oracle, _Replay] = WeakKeyDictionary()


def _settings(template: keras_tuner.Oracle) -> str | None:
    """Return everything that the answers of an oracle that is cached depend on; None for one that is not."""
    if not is_kerastuners_own(template) or isinstance(template, kt_oracles.BayesianOptimizationOracle):
        return None
    space, objective = template.hyperparameters.get_config(), vars(template.objective)
    return repr({**vars(template), "hyperparameters": space, "objective": objective})


def _check_same(template: keras_tuner.Oracle, trial: TrialRecord, values: Mapping[str, Value], answer: Answer) -> None:
    """Raise SearchError if this search would not have created the trial with these values at this point."""
    if answer.status != "RUNNING":
        raise foreign_trial_error(template, trial, "no further trial")
    suggested = {**answer.values, **answer.bracket_values}
    recorded = {**values, **trial.bracket_values}
    differing = [name for name in {**recorded, **suggested} if recorded.get(name) != suggested.get(name)]
    if differing:
        expected = ", ".join(f"{name}={suggested.get(name)}" for name in differing)
        found = ", ".join(f"{name}={recorded.get(name)}" for name in differing)
        raise foreign_trial_error(template, trial, f"{expected} but the record has {found}")
