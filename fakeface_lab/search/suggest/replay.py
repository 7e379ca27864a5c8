"""Oracles that go through the events of a ledger, and are kept as a cache until the next question.

An oracle that was asked after a ledger is in the state of one that is about to replay the creation of what it
answered. So the next question has to replay only what is new. Where anything else comes before that creation, the
answer is taken back first; where the ledger is not that of the last question with more events at its end, or the
template's settings changed, a new copy replays all of it. Dropping the cache changes no answer.

Only KerasTuner's own oracles are kept. Whether another class can be asked ahead of the ledger is unknown, and keeping
it would hide that it answers differently after a restart: it replays the whole ledger for each question.
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

from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggest.oracle_copy import Answer, OracleCopy, is_kerastuners_own
from fakeface_lab.search.suggest.oracles import Value, first_values

__all__ = ["Event", "TrialRecord", "another_search", "ask_replayed", "check_consistent", "events_of", "fault_of"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the ledger knows it. A record is never altered in place: what changes is a new record.

    Attributes:
        sequence: place in the order of creation, from 0.
        values: hyperparameters by name, only active ones.
        bracket_values: Hyperband's `tuner/epochs`, `tuner/initial_epoch`, `tuner/bracket`, `tuner/round`;
            for a promoted trial `tuner/trial_id`, the sequence of the trial it continues. Else empty.
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


class Event(NamedTuple):
    """The creation or the end of a trial; events sort by their number."""

    order: int
    is_end: bool
    trial: TrialRecord


def events_of(created: Iterable[TrialRecord], ended: Iterable[TrialRecord]) -> list[Event]:
    """Return the creations of some trials and the ends of some, in order; trials that run have no end."""
    events = [Event(trial.created_order, False, trial) for trial in created]
    events += [Event(trial.ended_order, True, trial) for trial in ended if trial.ended_order is not None]
    return sorted(events, key=lambda event: event.order)


def check_consistent(trials: Sequence[TrialRecord]) -> None:
    """Refuse a ledger that contradicts itself; `trials` are in the order of their sequence.

    Raises:
        SearchError: sequences or event numbers have gaps or repeats, or a record is impossible by itself.
    """
    sequences = [trial.sequence for trial in trials]
    if sequences != list(range(len(trials))):
        raise SearchError(
            f"recorded trials: sequences {sequences} have gaps or repeats; "
            "restore the missing trials, or start the search again under another name"
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
    """Return what is wrong with one record as a clause, None if it is possible."""
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


def another_search(template: keras_tuner.Oracle, trial: TrialRecord, expected: str) -> SearchError:
    """Return the error about a trial that this search would not have created; `expected` is what it would."""
    return SearchError(
        f"recorded trial {trial.sequence} belongs to another search: {type(template).__name__} with seed "
        f"{template.seed} suggests {expected}; go on with the settings it was begun with, or use another name"
    )


def ask_replayed(template: keras_tuner.Oracle, ledger: Sequence[TrialRecord]) -> Answer:
    """Return what a template answers after all events of a ledger.

    Args:
        template: see `suggestion.suggest`.
        ledger: all trials in the order of their sequence.

    Raises:
        SearchError: the ledger contradicts itself or belongs to another search, or the template cannot be used.
    """
    settings = _settings(template)
    # Taken out while in use: a second thread starts afresh, and so does the question after an error.
    replay = None if settings is None else _kept.pop(template, None)
    events = None if replay is None or replay.settings != settings else replay.new_events(ledger)
    if replay is None or events is None:
        check_consistent(ledger)
        replay, events = _Replay(template, settings), events_of(ledger, ledger)
    answer = replay.ask_after(template, ledger, events)
    if settings is not None:
        _kept[template] = replay
    return answer


class _Replay:
    """An oracle that has gone through the events of a ledger, and what it answered then."""

    def __init__(self, template: keras_tuner.Oracle, settings: str | None) -> None:
        self.settings = settings
        self._oracle = OracleCopy(template)
        self._ledger: Sequence[TrialRecord] = ()
        self._last_order = -math.inf
        self._answer: Answer | None = None
        # No score and no end changes what these suggest; the grid would even wait for ends.
        is_plain_random = settings is not None and isinstance(template, kt_oracles.RandomSearchOracle)
        self._ends_at_once = is_plain_random or isinstance(template, kt_oracles.GridSearchOracle)

    def new_events(self, ledger: Sequence[TrialRecord]) -> list[Event] | None:
        """Return the events since the last question; None if the ledger is not a consistent continuation."""
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
        """Go through the events that lead to a ledger, and return the answer to the question after them."""
        with self._oracle:
            for _, is_end, trial in events:
                if not is_end:
                    _check_same(template, trial, self._ask(template, trial.sequence))
                    self._answer = None
                if is_end != self._ends_at_once:
                    self._end(template, trial)
            answer = self._ask(template, len(ledger))
        self._ledger = ledger
        self._last_order = events[-1].order if events else self._last_order
        return answer

    def _ask(self, template: keras_tuner.Oracle, sequence: int) -> Answer:
        if self._answer is None:
            # The grid starts at the defaults by itself, and counts on from a first trial that it has placed.
            is_given = sequence == 0 and not isinstance(template, kt_oracles.GridSearchOracle)
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
            # It only ranks, and a round with a missing score would never promote: a failure is the worst.
            score = math.inf if template.objective.direction == "min" else -math.inf
        self._oracle.tell(trial.sequence, score)


# Templates of searches that are gone take their replays with them.
_kept: WeakKeyDictionary[keras_tuner.Oracle, _Replay] = WeakKeyDictionary()


def _settings(template: keras_tuner.Oracle) -> str | None:
    """Return all that the answers of one of KerasTuner's own oracles depend on; None for another class."""
    if not is_kerastuners_own(template):
        return None
    space, objective = template.hyperparameters.get_config(), vars(template.objective)
    return repr({**vars(template), "hyperparameters": space, "objective": objective})


def _check_same(template: keras_tuner.Oracle, trial: TrialRecord, answer: Answer) -> None:
    """Refuse a trial that this search would not have created at this point."""
    if answer.status != "RUNNING":
        raise another_search(template, trial, "no further trial")
    suggested = {**answer.values, **answer.bracket_values}
    recorded = {**trial.values, **trial.bracket_values}
    differing = [name for name in {**recorded, **suggested} if recorded.get(name) != suggested.get(name)]
    if differing:
        expected = ", ".join(f"{name}={suggested.get(name)}" for name in differing)
        found = ", ".join(f"{name}={recorded.get(name)}" for name in differing)
        raise another_search(template, trial, f"{expected} where it has {found}")
