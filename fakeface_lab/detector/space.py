"""The search space: what the `[space]` table of a config file opens, and everything else fixed as documented."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fakeface_lab.backend import keras_tuner
from fakeface_lab.errors import ConfigError
from fakeface_lab.settings import Hyperparameters, Range, Value

__all__ = ["build_space", "to_hyperparameters"]


def build_space(space: Mapping[str, Range], fixed: Mapping[str, Value]) -> keras_tuner.HyperParameters:
    """Return KerasTuner's container: opened hyperparameters with their ranges, all others fixed.

    Opened ones have the documented (or otherwise fixed) value as their default, whether or not their range holds
    it: trial 0 is always that configuration. A stepped range of fractions becomes a choice of literals, because
    KerasTuner's stepped Float never yields its maximum, and its Gaussian process misreads it.

    Args:
        space: name to range, as the config file has it.
        fixed: value of every hyperparameter that is not opened; also the defaults of the opened ones.

    Raises:
        ConfigError: an unknown name, or a value that the model does not take.
    """
    unknown = sorted(set(space) - set(Hyperparameters.model_fields))
    if unknown:
        raise ConfigError(
            f"space.{unknown[0]}: unknown hyperparameter; there are {', '.join(Hyperparameters.model_fields)}"
        )
    hp = keras_tuner.HyperParameters()
    for name, value in fixed.items():
        if name in space:
            _check(name, space[name])
            _open(hp, name, space[name], value)
        else:
            hp.Fixed(name, value)
    return hp


def to_hyperparameters(values: Mapping[str, Any]) -> Hyperparameters:
    """Return the typed hyperparameters among KerasTuner's values."""
    return Hyperparameters(**{name: values[name] for name in Hyperparameters.model_fields if name in values})


def _check(name: str, given: Range) -> None:
    for value in given.grid() or (given.min, given.max):
        try:
            Hyperparameters(**{name: value})
        except ValidationError as err:
            allowed = err.errors()[0]["msg"].removeprefix("Input ")
            raise ConfigError(f"space.{name}: {value!r} {allowed}") from err


def _open(hp: keras_tuner.HyperParameters, name: str, given: Range, default: Value) -> None:
    kind = type(default)
    grid = given.grid()
    if grid is not None:
        values: list[Value] = [kind(value) for value in grid]
        if default not in values:
            values = sorted([*values, default]) if not isinstance(default, str) else [*values, default]
        hp.Choice(name, values, default=default, ordered=not isinstance(default, str))
        return
    assert given.min is not None  # `Range` has checked both
    assert given.max is not None
    low, high = min(given.min, float(default)), max(given.max, float(default))
    if kind is int:
        hp.Int(name, int(low), int(high), sampling=given.sampling, default=int(default))
    else:
        hp.Float(name, low, high, sampling=given.sampling, default=float(default))
