"""Trials of an earlier search that an oracle is told before its first question: a warm start.

The Bayesian oracle learns from them, and so does a user's own oracle that reads its finished trials. Random search and
Hyperband do not try them again.

Non-public member used here: `_prior`, which `set_prior` adds to a template.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import keras_tuner

from fakeface_lab.config import Value

__all__ = ["PriorTrial", "prior_of", "set_prior"]


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
