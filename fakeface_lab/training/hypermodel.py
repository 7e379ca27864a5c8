"""A KerasTuner hypermodel: its complete search space, the model for given values, and one resumable training of it.

KerasTuner meets some hyperparameters only during a search: `units_2` when `layers` is 3, a batch size in
`HyperModel.fit`. Here the space of a search is fixed, so they are discovered before it begins: the model is built once
per choice and at both ends of each integer range, and a user's own `fit` is called up to the point where it would begin
to train.
"""

import copy
import hashlib
import io
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle
import numpy as np
from keras_tuner.engine import hyperparameters as kt_hyperparameters
from keras_tuner.src.engine import tuner_utils

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.errors import ModelError, SearchError
from fakeface_lab.tracking.models import INPUT_PREFIX, package_model
from fakeface_lab.training.callback_state import CallbackStates, copy_callbacks
from fakeface_lab.training.fit_arguments import EpochOrder, FitArguments, has_own_fit
from fakeface_lab.training.outcome import (
    MODEL,
    Outcome,
    curve_figures,
    empty_artifacts,
    end_metrics,
    read_whole_outcome,
    write_layers,
    write_outcome,
)
from fakeface_lab.training.recorder import Listener, TrainingRecorder

__all__ = ["ModelRecipe", "discover_in_build", "discover_in_fit", "explain_unpicklable", "train_hypermodel"]


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
            hp.ensure_active_values()
            with suppress(Exception):
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

    on_epoch_end = on_train_begin = on_epoch_begin


def discover_in_fit(
    oracle: keras_tuner.Oracle, hypermodel: keras_tuner.HyperModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Add to the oracle's space what the user's own `fit` asks for before it trains, at the default values."""

    def stop(*_: Any, **__: Any) -> NoReturn:
        raise _AboutToTrainError

    hp = oracle.get_space()
    with suppress(Exception, _AboutToTrainError):  # an error of the user's code is reported by the trials
        model = hypermodel.build(hp)
        # A training loop of the user's own begins with one of these.
        model.fit = model.call = model.train_on_batch = stop
        hypermodel.fit(hp, model, *args, **{**kwargs, "callbacks": [_Stopper()]})
    oracle.update_space(hp)


@dataclass(frozen=True)
class ModelRecipe:
    """Builds a model from hyperparameter values.

    Attributes:
        hypermodel: the user's.
        space: all hyperparameters that can appear.
        compile_args: `optimizer`, `loss` and `metrics` that replace those the hypermodel compiles with.
        dtype_policy: of the user's process; clearing the session between two models resets it.
        accepts_undeclared: whether a hyperparameter outside the space takes its default instead of failing the trial.
        max_model_size: largest number of parameters of a model that is trained, None for no limit.
    """

    hypermodel: keras_tuner.HyperModel
    space: keras_tuner.HyperParameters
    compile_args: Mapping[str, Any]
    dtype_policy: str
    accepts_undeclared: bool
    max_model_size: int | None = None

    def hyperparameters(self, values: Mapping[str, Any]) -> keras_tuner.HyperParameters:
        """Return the values as the container that `HyperModel.build` and `fit` take."""
        hp = self.space.copy()
        hp.values = dict(values)
        return hp

    def build(self, hp: keras_tuner.HyperParameters, seed: int) -> keras.Model:
        """Return the untrained model; it does not depend on what this process has built before.

        Raises:
            ModelError: the hypermodel returns something else.
        """
        # Otherwise automatic layer names count on from earlier models. It also resets dtype policy and seed, which are
        # therefore set after it.
        keras.backend.clear_session()
        keras.config.set_dtype_policy(self.dtype_policy)
        keras.utils.set_random_seed(seed)
        model = self.hypermodel.build(hp)
        if not isinstance(model, keras.Model):
            raise ModelError(f"build(hp): returned {type(model).__name__}; return a keras.Model")
        if self.compile_args:
            own = {"optimizer": getattr(model, "optimizer", None), "loss": getattr(model, "loss", None)}
            # A metric or optimizer has state: each model needs its own.
            kept = {key: value for key, value in own.items() if value is not None}
            model.compile(**kept | copy.deepcopy(dict(self.compile_args)))
        return model

    def require_small(self, model: keras.Model) -> None:
        """Raise ModelError if the model has more parameters than `max_model_size`."""
        size = model.count_params() if model.built else 0
        if self.max_model_size and size > self.max_model_size:
            raise ModelError(f"oversized model: {size:,} parameters, max_model_size is {self.max_model_size:,}")

    def require_declared(self, hp: keras_tuner.HyperParameters) -> None:
        """Raise SearchError if a build or fit asked for hyperparameters that are not in the space."""
        known = {known.name for known in self.space.space}
        unknown = [new.name for new in hp.space if new.name not in known]
        if unknown and not self.accepts_undeclared:
            raise SearchError(
                f"hyperparameter {', '.join(unknown)}: appears for some values only and is not in the search space; "
                f"declare it in HyperModel.declare_hyperparameters or in the oracle's hyperparameters="
            )

    def digest(self, values: Mapping[str, Any], seed: int) -> str:
        """Return a digest of the model with these values; "" if it cannot be built or serialized."""
        try:
            model = self.build(self.hyperparameters(values), seed)
            return hashlib.sha256(model.to_json().encode()).hexdigest()[:16]
        except Exception:  # a subclass without `get_config`, or a build that fails: its trial reports that
            return ""


def explain_unpicklable(recipe: ModelRecipe, fit: FitArguments) -> str | None:
    """Return which part cannot be sent to a worker process and why, None if all can."""
    parts = {"the hypermodel": recipe, "a callback": fit.callbacks, "what search() was given": (fit.args, fit.kwargs)}
    for name, part in parts.items():
        try:
            _ArrayFreePickler(io.BytesIO()).dump(part)
        except Exception as err:  # whatever the user's object raises
            # In Python 3.11 an f-string takes no backslash.
            return f"{name} ({str(err).partition(chr(10))[0]})"
    return None


class _ArrayFreePickler(cloudpickle.Pickler):
    """Leaves arrays out: they can always be pickled, and copying them takes time and memory."""

    def persistent_id(self, obj: object) -> str | None:
        return "array" if isinstance(obj, np.ndarray) and not obj.dtype.hasobject else None


def train_hypermodel(
    recipe: ModelRecipe,
    fit: FitArguments,
    objective: keras_tuner.Objective,
    values: Mapping[str, Any],
    *,
    name: str,
    execution: int = 0,
    seed: int,
    epochs: int,
    passes_epochs: bool,
    data_digest: str,
    folder: Path,
    listener: Listener,
) -> Outcome:
    """Train the model with these values, or resume from the checkpoint in `folder`; leave artifacts and model there.

    Args:
        recipe: builds the model.
        fit: the arguments of `HyperModel.fit`.
        objective: judges an epoch.
        values: hyperparameters by name.
        name: of the training; what callbacks write goes to `name/executionN` below their paths.
        execution: N, from 0, of several trainings with one name.
        seed: of initial weights, data order and dropout.
        epochs: the budget, counted from the first epoch.
        passes_epochs: whether the budget is passed to `fit`.
        data_digest: recorded with the model.
        folder: of the run; it exists.
        listener: is called after each step and epoch.

    Raises:
        ModelError: the model is too large, or is not a Keras model.
        SearchError: a hyperparameter is not in the space, or an epoch lacks the objective.
    """
    finished = read_whole_outcome(folder)
    if finished is not None:
        return finished
    hp = recipe.hyperparameters(values)
    model = recipe.build(hp, seed)
    recipe.require_declared(hp)
    recipe.require_small(model)
    own_fit = has_own_fit(recipe.hypermodel)
    callbacks = copy_callbacks(fit.callbacks, name, execution)
    states = CallbackStates(callbacks if fit.can_resume else ())
    # A `fit` of the user's own may return the objective instead of reporting it after each epoch.
    recorder = TrainingRecorder(
        folder, listener, objective, keep="best", has_checkpoints=fit.can_resume,
        needs_objective=(lambda epoch: False) if own_fit else fit.is_validated, callback_states=states,
    )  # fmt: skip
    kwargs = dict(fit.kwargs)
    if fit.train is not None:
        order = EpochOrder(fit.train, fit.batch_size, seed, shuffle=fit.shuffle)
        # `order` shuffles the rows; Keras would shuffle its batches, with a state that a restart loses.
        kwargs |= {"x": order, "shuffle": False}
        callbacks.append(_beginning(order))
        if not model.built:  # a checkpoint needs variables to restore
            model(fit.example())
    done = recorder.restore(model)
    if done:
        kwargs["initial_epoch"] = done
    if passes_epochs:
        kwargs["epochs"] = epochs
    if not own_fit:
        kwargs["verbose"] = 0
    # A checkpoint inherited from a trial with a longer budget leaves nothing to train.
    if done < epochs and not recorder.has_stopped:
        returned = recipe.hypermodel.fit(hp, model, *fit.args, **kwargs, callbacks=[*callbacks, states, recorder])
        if not recorder.has_objective:
            recorder.set_model(model)
            tuner_utils.validate_trial_results(returned, objective, "HyperModel.fit()")
            recorder.add(tuner_utils.convert_to_metrics_dict(returned, objective))
        recipe.require_declared(hp)
    recorder.load_kept_weights(model)
    metadata = {"objective": objective.name, "seed": seed, "data_digest": data_digest}
    return _write_outcome(model, recorder, values, fit.example(), metadata, folder)


def _beginning(order: EpochOrder) -> keras.callbacks.Callback:
    """Return the callback that tells `order` which epoch begins; `PyDataset.on_epoch_begin` is not told."""
    return keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: order.begin(epoch))


def _write_outcome(
    model: keras.Model,
    recorder: TrainingRecorder,
    values: Mapping[str, Any],
    example: Any | None,
    metadata: dict[str, Any],
    folder: Path,
) -> Outcome:
    """Write artifacts, packaged model and, last, the outcome."""
    artifacts, records = empty_artifacts(folder), recorder.records
    (artifacts / "hyperparameters.json").write_text(json.dumps(dict(values), indent=2))
    write_layers(model, artifacts / "layers.txt")
    names = dict.fromkeys(name for record in records for name in record.metrics)
    # With `validation_freq` some epochs have no validation metrics.
    history = {name: [record.metrics.get(name, math.nan) for record in records] for name in names}
    for name, figure in curve_figures(history, recorder.kept_epoch).items():
        figure.savefig(artifacts / f"curve_{name}.png", dpi=100)
    if isinstance(example, tuple):  # MLflow names the inputs of a model
        example = {f"{INPUT_PREFIX}{number}": array for number, array in enumerate(example)}
    package_model(model, folder / MODEL, example, metadata)
    outcome = Outcome(list(records), recorder.kept_epoch, end_metrics(records, recorder.kept_epoch, model))
    write_outcome(outcome, folder)
    return outcome
