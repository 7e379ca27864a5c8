"""What a template carries beside KerasTuner's settings: what trials have found, and trials of an earlier search.

The space of a search grows at the end of a trial that asked for new hyperparameters. A template keeps the space that
its search began with, and carries what was found since, by the event at which it was found. The space at any event is
then a function of the ledger.

Trials of an earlier search are a warm start. The Bayesian oracle learns from them, and so does a user's own oracle that
reads its finished trials. Random search and Hyperband do not try them again.

Non-public members used here: `_growth` and `_prior`, which `set_growth` and `set_prior` add to a template; `_exists` of
KerasTuner 1.4.8's HyperParameters.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras_tuner
from keras_tuner.engine import hyperparameters as kt_hyperparameters

from fakeface_lab.config import Value

__all__ = [
    "PriorTrial",
    "asks_for_defaults",
    "deserialized",
    "grown_space",
    "growth_of",
    "new_in",
    "prior_of",
    "set_growth",
    "set_prior",
    "with_defaults",
]


def set_growth(template: keras_tuner.Oracle, growth: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
    """Give a template what trials have found: serialized hyperparameters by the number of the event that ended one."""
    template._growth = {order: list(growth[order]) for order in sorted(growth)}


def growth_of(template: keras_tuner.Oracle) -> dict[int, list[Any]]:
    """Return the hyperparameters that trials have found, by the number of the event; in the order of the events."""
    return {order: deserialized(found) for order, found in getattr(template, "_growth", {}).items()}


def deserialized(found: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return hyperparameters as KerasTuner's objects."""
    # KerasTuner changes what it is given.
    return [kt_hyperparameters.deserialize(copy.deepcopy(one)) for one in found]


def grown_space(template: keras_tuner.Oracle, last_order: float = math.inf) -> keras_tuner.HyperParameters:
    """Return the space with what was found up to an event."""
    space = template.hyperparameters.copy()
    for order, found in growth_of(template).items():
        if order <= last_order:
            space.merge(found, overwrite=False)
    return space


def new_in(template: keras_tuner.Oracle, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return those of the serialized hyperparameters that the space, as it has grown, does not have yet."""
    space, new = grown_space(template), []
    for serialized, hp in zip(found, deserialized(found), strict=True):
        if not space._exists(hp.name, hp.conditions):
            space.merge([hp])
            new.append(serialized)
    return new


def with_defaults(space: keras_tuner.HyperParameters, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return a trial's values, and the defaults of hyperparameters that joined the space after its creation.

    KerasTuner would draw them from the operating system's entropy.
    """
    complete = keras_tuner.HyperParameters()
    complete.values = dict(values)
    for hp in space.space:
        if complete.is_active(hp):
            complete.values.setdefault(hp.name, hp.default)
    return dict(complete.values)


def asks_for_defaults(template: keras_tuner.Oracle) -> bool:
    """Return whether trial 0 has the default values; otherwise a search tries what KerasTuner's own tuner would."""
    return bool(getattr(template, "defaults_first", True))


@dataclass(frozen=True)
class PriorTrial:
    """A finished trial of an earlier search.

    Attributes:
        values: of all hyperparameters of this search that are active with them.
        score: of the same objective.
    """

    values: Mapping[str, Value]
    score: float


def set_prior(template: keras_tuner.Oracle, prior: Iterable[PriorTrial]) -> None:
    """Give a template the trials that its copies are told before their first question."""
    template._prior = tuple(prior)


def prior_of(template: keras_tuner.Oracle) -> tuple[PriorTrial, ...]:
    """Return what a template was given."""
    prior: tuple[PriorTrial, ...] = getattr(template, "_prior", ())
    return prior
