"""Finding every hyperparameter of a hypermodel before the search, because a search's space does not grow.

KerasTuner meets some only while it searches: `units_2` when `layers` is 3, a batch size in `HyperModel.fit`. Here the
model is built once for each choice and for both ends of each range of whole numbers, and a `fit` of the user's own is
called up to the point where it would begin to train.
"""

from contextlib import suppress
from typing import Any, NoReturn

from keras_tuner.engine import hyperparameters as kt_hyperparameters

from fakeface_lab.backend import keras, keras_tuner

__all__ = ["discover_in_build", "discover_in_fit"]


def discover_in_build(oracle: keras_tuner.Oracle, hypermodel: keras_tuner.HyperModel) -> None:
    """Add to the oracle's space what `build` asks for at other values than the defaults.

    A build that fails is left to the trial that will meet it.
    """
    tried: set[tuple[str, Any]] = set()
    while True:
        untried = [
            (hp.name, value)
            for hp in oracle.get_space().space
            for value in _telling_values(hp)
            if (hp.name, value) not in tried
        ]
        if not untried:
            return
        for name, value in untried:
            tried.add((name, value))
            hp = oracle.get_space()
            hp.values[name] = value
            hp.ensure_active_values()
            with suppress(Exception):
                hypermodel.build(hp)
            oracle.update_space(hp)


def _telling_values(hp: Any) -> list[Any]:
    if isinstance(hp, kt_hyperparameters.Boolean):
        return [False, True]
    if isinstance(hp, kt_hyperparameters.Choice):
        return list(hp.values)
    return [hp.min_value, hp.max_value] if isinstance(hp, kt_hyperparameters.Int) else []


class _AboutToTrainError(BaseException):
    """Ends the trial call of `fit`; not an Exception, so that nobody on the way handles it."""


class _Stopper(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        raise _AboutToTrainError

    on_epoch_end = on_train_begin = on_epoch_begin


def discover_in_fit(
    oracle: keras_tuner.Oracle, hypermodel: keras_tuner.HyperModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Add to the oracle's space what the user's own `fit` asks for before it trains, with all defaults."""

    def stop(*_: Any, **__: Any) -> NoReturn:
        raise _AboutToTrainError

    hp = oracle.get_space()
    with suppress(Exception, _AboutToTrainError):  # whatever is wrong with it, the trials will say
        model = hypermodel.build(hp)
        model.fit = model.call = model.train_on_batch = stop
        hypermodel.fit(hp, model, *args, **{**kwargs, "callbacks": [_Stopper()]})
    oracle.update_space(hp)
