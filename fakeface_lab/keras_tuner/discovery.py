"""Which hyperparameters a hypermodel has, found before a search begins.

KerasTuner meets some only during a search: `units_2` when `layers` is 3, a batch size in `HyperModel.fit`. Most are
discovered here: the model is built once per choice and at both ends of each integer range, and a user's own `fit` is
called up to the point where it would begin to train. What a training asks for besides is part of its outcome.
"""

import io
from contextlib import redirect_stdout, suppress
from typing import Any, NoReturn

from keras_tuner.engine import hyperparameters as kt_hyperparameters

from fakeface_lab.backend import keras, keras_tuner

__all__ = ["discover_in_build", "discover_in_fit"]


def discover_in_build(oracle: keras_tuner.Oracle, hypermodel: keras_tuner.HyperModel) -> None:
    """Add to the oracle's space what `build` asks for at values other than the defaults.

    A build that fails here is reported by the trial that repeats it.
    """
    tried: set[tuple[str, Any]] = set()
    while True:
        untried = [
            (hp.name, value)
            for hp in oracle.get_space().space
            for value in _values_to_try(hp)
            if (hp.name, value) not in tried
        ]
        if not untried:
            return
        for name, value in untried:
            tried.add((name, value))
            hp = oracle.get_space()
            hp.values[name] = value
            # The value may activate further hyperparameters, which need values too.
            hp.ensure_active_values()
            with suppress(Exception), _without_prints():
                hypermodel.build(hp)
            oracle.update_space(hp)


def _values_to_try(hp: Any) -> list[Any]:
    if isinstance(hp, kt_hyperparameters.Boolean):
        return [False, True]
    if isinstance(hp, kt_hyperparameters.Choice):
        return list(hp.values)
    return [hp.min_value, hp.max_value] if isinstance(hp, kt_hyperparameters.Int) else []


class _AboutToTrainError(BaseException):
    """Ends the probing call of `fit`; not an Exception, so that no handler in between catches it."""


class _Stopper(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        raise _AboutToTrainError

    # A training loop of the user's own may call any of them first.
    on_epoch_end = on_train_begin = on_epoch_begin


def _without_prints() -> redirect_stdout[io.StringIO]:
    """Return a context that drops what the user's code prints: the trial that runs it again shows it."""
    return redirect_stdout(io.StringIO())


def discover_in_fit(
    oracle: keras_tuner.Oracle, hypermodel: keras_tuner.HyperModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Add to the oracle's space what the user's own `fit` asks for before it trains, at the default values."""

    def stop(*_: Any, **__: Any) -> NoReturn:
        raise _AboutToTrainError

    hp = oracle.get_space()
    # An error of the user's code is reported by the trials.
    with suppress(Exception, _AboutToTrainError), _without_prints():
        model = hypermodel.build(hp)
        # A training loop of the user's own begins with one of these.
        model.fit = model.call = model.train_on_batch = stop
        hypermodel.fit(hp, model, *args, **{**kwargs, "callbacks": [_Stopper()]})
    oracle.update_space(hp)
