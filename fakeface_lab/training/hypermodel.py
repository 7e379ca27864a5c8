"""A KerasTuner hypermodel: its whole search space, its model from given values, and one resumable training of it.

KerasTuner meets some hyperparameters only while it searches: `units_2` when `layers` is 3, a batch size in
`HyperModel.fit`. The space of a search here does not grow, so they are found before it begins: the model is built once
for each choice and for both ends of each range of whole numbers, and a user's own `fit` is called up to the point where
it would begin to train.
"""

import copy
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from keras_tuner.engine import hyperparameters as kt_hyperparameters
from keras_tuner.src.engine import tuner_utils

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.errors import ModelError, SearchError
from fakeface_lab.training.fit_arguments import EpochOrder, FitArguments, has_own_fit
from fakeface_lab.training.recorder import Listener, TrainingRecorder

__all__ = ["ModelRecipe", "discover_in_build", "discover_in_fit", "train_hypermodel"]


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


@dataclass(frozen=True)
class ModelRecipe:
    """How a model is made from values.

    Attributes:
        hypermodel: the user's.
        space: all hyperparameters that can appear.
        compile_args: replace what the hypermodel compiles with (`optimizer`, `loss`, `metrics`).
        dtype_policy: of the user's process; Keras forgets it between two models.
        accepts_undeclared: whether a hyperparameter outside the space takes its default, instead of failing.
    """

    hypermodel: keras_tuner.HyperModel
    space: keras_tuner.HyperParameters
    compile_args: Mapping[str, Any]
    dtype_policy: str
    accepts_undeclared: bool

    def hyperparameters(self, values: Mapping[str, Any]) -> keras_tuner.HyperParameters:
        """Return the container that `build` and `fit` of the hypermodel are given."""
        hp = self.space.copy()
        hp.values = dict(values)
        return hp

    def build(self, hp: keras_tuner.HyperParameters, seed: int) -> keras.Model:
        """Return the untrained model, whatever this process has built before.

        Raises:
            ModelError: the hypermodel returns something else.
        """
        keras.backend.clear_session()
        keras.config.set_dtype_policy(self.dtype_policy)
        keras.utils.set_random_seed(seed)
        model = self.hypermodel.build(hp)
        if not isinstance(model, keras.Model):
            raise ModelError(f"build(hp): returned {type(model).__name__}; return a keras.Model")
        if self.compile_args:
            own = {"optimizer": getattr(model, "optimizer", None), "loss": getattr(model, "loss", None)}
            # A metric or optimizer has state: each model needs its own.
            model.compile(**{key: value for key, value in own.items() if value is not None}
                          | copy.deepcopy(dict(self.compile_args)))  # fmt: skip
        return model

    def require_declared(self, hp: keras_tuner.HyperParameters) -> None:
        """Refuse hyperparameters that appeared in a trial and that no trial was ever given a value for."""
        known = {known.name for known in self.space.space}
        unknown = [new.name for new in hp.space if new.name not in known]
        if unknown and not self.accepts_undeclared:
            raise SearchError(
                f"hyperparameter {', '.join(unknown)}: appears for some values only and is not in the search space; "
                f"declare it in HyperModel.declare_hyperparameters or in the oracle's hyperparameters="
            )

    def digest(self, values: Mapping[str, Any], seed: int) -> str:
        """Return a digest of the model that has these values; empty if it cannot be described."""
        try:
            model = self.build(self.hyperparameters(values), seed)
            return hashlib.sha256(model.to_json().encode()).hexdigest()[:16]
        except Exception:  # a subclass without a description, or a build that fails: its trial will tell
            return ""


def train_hypermodel(
    recipe: ModelRecipe,
    fit: FitArguments,
    objective: keras_tuner.Objective,
    values: Mapping[str, Any],
    *,
    seed: int,
    epochs: int,
    passes_epochs: bool,
    max_model_size: int | None,
    folder: Path,
    listener: Listener,
) -> tuple[keras.Model, TrainingRecorder]:
    """Train the model that has these values, or resume from the checkpoint in `folder`; it ends with its kept weights.

    Args:
        recipe: makes the model.
        fit: what `HyperModel.fit` is given.
        objective: judges an epoch.
        values: hyperparameters by name.
        seed: of initial weights, data order and dropout.
        epochs: the budget, all epochs from the first one on.
        passes_epochs: whether `fit` is told the budget.
        max_model_size: most parameters of a model, None for no limit.
        folder: of the run; it exists.
        listener: is told about each step and epoch.

    Raises:
        ModelError: the model is too large, or is not a Keras model.
        SearchError: a hyperparameter is not in the space, or an epoch lacks the objective.
    """
    hp = recipe.hyperparameters(values)
    model = recipe.build(hp, seed)
    recipe.require_declared(hp)
    size = model.count_params() if model.built else 0
    if max_model_size and size > max_model_size:
        raise ModelError(f"oversized model: {size:,} parameters, max_model_size is {max_model_size:,}")
    own_fit = has_own_fit(recipe.hypermodel)
    recorder = TrainingRecorder(
        folder, listener, objective, keep="best", has_checkpoints=fit.can_resume,
        needs_objective=(lambda epoch: False) if own_fit else fit.is_validated,
    )  # fmt: skip
    kwargs = dict(fit.kwargs)
    callbacks = copy.deepcopy(list(fit.callbacks))
    if fit.train is not None:
        order = EpochOrder(fit.train, fit.batch_size, seed, shuffle=fit.shuffle)
        kwargs |= {"x": order, "shuffle": False}
        callbacks.append(keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: order.begin(epoch)))
        if not model.built:  # weights before a checkpoint can be put into them
            model(fit.example())
    done = recorder.restore(model)
    if done:
        kwargs["initial_epoch"] = done
    if passes_epochs:
        kwargs["epochs"] = epochs
    if not own_fit:
        kwargs["verbose"] = 0
    # What is left of an inherited longer budget is nothing.
    if done < epochs:
        returned = recipe.hypermodel.fit(hp, model, *fit.args, **kwargs, callbacks=[*callbacks, recorder])
        if not recorder.has_objective:
            recorder.set_model(model)
            tuner_utils.validate_trial_results(returned, objective, "HyperModel.fit()")
            recorder.add(tuner_utils.convert_to_metrics_dict(returned, objective))
        recipe.require_declared(hp)
    recorder.load_kept_weights(model)
    return model, recorder
