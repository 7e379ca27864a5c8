"""The trials of a search as its ledger records them, and the order of what happened to them."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import keras_tuner

from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggest.sizes import Value

__all__ = ["Event", "TrialRecord", "another_search", "check_consistent", "events_of", "fault_of"]


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
