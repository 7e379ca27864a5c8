"""Which trials of an earlier search another one can be told before it begins."""

import math
from collections.abc import Iterable, Mapping

import keras_tuner

from fakeface_lab.config import Value
from fakeface_lab.errors import ConfigError
from fakeface_lab.search.search import Search
from fakeface_lab.search.suggest.oracles import BRACKET_PREFIX, is_value_of
from fakeface_lab.search.suggest.suggestion import TrialRecord
from fakeface_lab.search.suggest.template import PriorTrial, with_defaults

__all__ = ["find_prior", "prior_in"]

_EPOCHS = f"{BRACKET_PREFIX}epochs"


def find_prior(template: keras_tuner.Oracle, searches: Iterable[Search]) -> list[PriorTrial]:
    """Return the finished trials of earlier searches that lie in the space of a template.

    Raises:
        ConfigError: the template is a grid, a search has another objective, or none of its trials lies in the space.
    """
    found, objective = [], template.objective
    for search in searches:
        if isinstance(template, keras_tuner.oracles.GridSearchOracle):
            raise ConfigError(
                f"warm_start: a grid tries every combination, whatever search {search.name!r} has found; use another "
                f"oracle"
            )
        earlier = search.objective
        if (earlier.name, earlier.direction) != (objective.name, objective.direction):
            raise ConfigError(
                f"warm_start: search {search.name!r} has the objective {earlier.name} ({earlier.direction}), this one "
                f"{objective.name} ({objective.direction}); scores of different objectives cannot be compared"
            )
        records = [trial.record for trial in search.trials]
        usable = prior_in(template.hyperparameters, records)
        num_scored = sum(record.score is not None for record in records)
        if not usable:
            raise ConfigError(
                f"warm_start: none of the {num_scored} finished trials of search {search.name!r} lies in this "
                f"search's space; give another search, or leave it out"
            )
        found += usable
    return found


def prior_in(space: keras_tuner.HyperParameters, trials: Iterable[TrialRecord]) -> list[PriorTrial]:
    """Return the trials of an earlier search that a space has, each configuration once.

    A hyperparameter that only the earlier search has is left out; one that only the space has is taken to be at its
    default, as KerasTuner takes one that joins its space late. Of a Hyperband search only the trials with its largest
    number of epochs are returned, because scores after fewer epochs describe other trainings.
    """
    finished = [trial for trial in trials if trial.score is not None and math.isfinite(trial.score)]
    budget = max((_epochs(trial) for trial in finished), default=0)
    found: dict[str, PriorTrial] = {}
    for trial in finished:
        values = _values_in(space, trial.values)
        if values is not None and trial.score is not None and _epochs(trial) == budget:
            found.setdefault(repr(sorted(values.items())), PriorTrial(values, trial.score))
    return list(found.values())


def _epochs(trial: TrialRecord) -> int:
    return int(trial.bracket_values.get(_EPOCHS, 0))


def _values_in(space: keras_tuner.HyperParameters, values: Mapping[str, Value]) -> dict[str, Value] | None:
    """Return the values of the active hyperparameters; None if one is outside the space, or none is shared."""
    shared = {hp.name: values[hp.name] for hp in space.space if hp.name in values}
    complete = keras_tuner.HyperParameters()
    complete.values = with_defaults(space, shared)
    active = [hp for hp in space.space if complete.is_active(hp)]
    if not shared or not all(is_value_of(hp, complete.values[hp.name]) for hp in active):
        return None
    return {hp.name: complete.values[hp.name] for hp in active}
