"""A KerasTuner hypermodel: the model for given values, and one resumable training of it."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_tuner.engine import hyperparameters as kt_hyperparameters
from keras_tuner.src.engine import tuner_utils

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.errors import ModelError
from fakeface_lab.tracking.models import INPUT_PREFIX, package_model
from fakeface_lab.training.callback_state import CallbackStates, copy_callbacks, hparams_callbacks
from fakeface_lab.training.data_order import CountedDataset, sets_its_order
from fakeface_lab.training.epochs import Listener
from fakeface_lab.training.fit_arguments import FitArguments, has_own_fit
from fakeface_lab.training.outcome import (
    MODEL,
    Outcome,
    empty_artifacts,
    end_metrics,
    read_whole_outcome,
    write_layers,
    write_outcome,
)
from fakeface_lab.training.recorder import TrainingRecorder

__all__ = ["ModelRecipe", "build_variables", "found_in", "train_hypermodel"]


@dataclass(frozen=True)
class ModelRecipe:
    """Builds a model from hyperparameter values.

    Attributes:
        hypermodel: the user's.
        space: the hyperparameters that are known before the search.
        compile_args: `optimizer`, `loss` and `metrics` that replace those the hypermodel compiles with.
        dtype_policy: of the user's process; clearing the session between two models resets it.
        tune_new_entries: the oracle's; whether what a training asks for and the space does not have is part of its
            outcome. Otherwise it has its default.
        allow_new_entries: the oracle's; whether a training may ask for what the space does not have.
        max_model_size: largest number of parameters of a model that is trained, None for no limit.
    """

    hypermodel: keras_tuner.HyperModel
    space: keras_tuner.HyperParameters
    compile_args: Mapping[str, Any]
    dtype_policy: str
    tune_new_entries: bool = True
    allow_new_entries: bool = True
    max_model_size: int | None = None

    def hyperparameters(self, values: Mapping[str, Any]) -> keras_tuner.HyperParameters:
        """Return the values as the container that `HyperModel.build` and `fit` take."""
        hp = self.space.copy()
        hp.values = dict(values)
        return hp

    def build(self, hp: keras_tuner.HyperParameters, seed: int) -> keras.Model:
        """Return the untrained model; it does not depend on what this process has built before.

        Raises:
            FatalTypeError: KerasTuner's; the hypermodel returns something else.
        """
        # Otherwise automatic layer names count on from earlier models. It also resets dtype policy and seed, which are
        # therefore set after it. Memory is freed after each training, once: that takes 0.2 s.
        keras.backend.clear_session(free_memory=False)
        keras.config.set_dtype_policy(self.dtype_policy)
        keras.utils.set_random_seed(seed)
        model = self.hypermodel.build(hp)
        if not isinstance(model, keras.Model):
            raise keras_tuner.errors.FatalTypeError(f"build(hp): returned {type(model).__name__}; return a keras.Model")
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

    def found(self, hp: keras_tuner.HyperParameters) -> list[Any]:
        """Return the hyperparameters that a build or fit has asked for and that the space lacks, if they are tuned.

        Raises:
            FatalRuntimeError: KerasTuner's; the oracle does not allow them.
        """
        found = [new for new in hp.space if not self.space._exists(new.name, new.conditions)]
        if found and not self.allow_new_entries:
            raise keras_tuner.errors.FatalRuntimeError(
                f"hyperparameter {', '.join(new.name for new in found)}: is not in the oracle's hyperparameters=, and "
                f"allow_new_entries is False; add it there"
            )
        return found if self.tune_new_entries else []

    def digest(self, values: Mapping[str, Any], seed: int) -> str:
        """Return a digest of the model with these values; "" if it cannot be built or serialized."""
        try:
            model = self.build(self.hyperparameters(values), seed)
            # Without the weights, which follow from the architecture and the seed.
            return hashlib.sha256(model.to_json().encode()).hexdigest()[:16]
        except Exception:  # a subclass without `get_config`, or a build that fails: its trial reports that
            return ""


def build_variables(model: keras.Model, example: Any) -> None:
    """Give a model that learns its input from the data its variables, which a checkpoint or weights are read into."""
    if model.built:
        return
    if isinstance(model, keras.Sequential) and hasattr(example, "shape"):
        model.build((None, *example.shape[1:]))  # a call would fix the batch size too
    else:
        model(example)


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
    extra_callbacks: Sequence[Any] = (),
    has_checkpoints: bool | None = None,
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
        extra_callbacks: called after the user's; not copied.
        has_checkpoints: whether it can resume from an epoch. None: if the data and callbacks allow it.

    Raises:
        FatalRuntimeError: KerasTuner's; a hyperparameter is not in the space, and the oracle allows no other.
        FatalTypeError: KerasTuner's; the model is not a Keras model, or `fit` returns nothing that has the objective.
        ModelError: the model is too large.
        SearchError: an epoch lacks the objective.
    """
    finished = read_whole_outcome(folder)
    if finished is not None:
        return finished
    hp = recipe.hyperparameters(values)
    model = recipe.build(hp, seed)
    # For its errors, before hours of training; what it finds is taken after `fit`, which may ask for more.
    recipe.found(hp)
    recipe.require_small(model)
    own_fit = has_own_fit(recipe.hypermodel)
    callbacks = copy_callbacks(fit.callbacks, name, execution)
    states = CallbackStates(callbacks if fit.can_resume else ())
    # A `fit` of the user's own may return the objective instead of reporting it after each epoch.
    recorder = TrainingRecorder(
        # KerasTuner scores a trial by its best epoch, so these are the weights that the score describes.
        folder, listener, objective, keep="best",
        has_checkpoints=fit.can_resume if has_checkpoints is None else has_checkpoints,
        needs_objective=(lambda epoch: False) if own_fit else fit.is_validated, callback_states=states,
    )  # fmt: skip
    if fit.obstacle is None:
        build_variables(model, fit.example())
    done = recorder.restore(model)
    kwargs = fit.kwargs_at(done, seed)
    hparams = hparams_callbacks(callbacks, hp, name)
    callbacks += hparams
    callbacks.append(_telling(kwargs.get("x"), kwargs.get("validation_data")))
    if done:
        kwargs["initial_epoch"] = done
    if passes_epochs:
        kwargs["epochs"] = epochs
    if not own_fit:
        kwargs["verbose"] = 0
    # A checkpoint inherited from a trial with a longer budget leaves nothing to train.
    if done < epochs and not recorder.has_stopped:
        returned = recipe.hypermodel.fit(
            hp, model, *fit.args, **kwargs, callbacks=[*callbacks, *extra_callbacks, states, recorder]
        )
        if not recorder.has_objective:
            recorder.set_model(model)
            tuner_utils.validate_trial_results(returned, objective, "HyperModel.fit()")
            recorder.add(tuner_utils.convert_to_metrics_dict(returned, objective))
    else:
        for callback in hparams:  # a kill after the last epoch left the HPARAMS tab without the trial's end
            callback.on_train_begin()
            callback.on_train_end()
    recorder.load_kept_weights(model)
    metadata = {"objective": objective.name, "seed": seed, "data_digest": data_digest}
    found = found_in(recipe, hp)
    _write_artifacts(model, {**values, **found["found_values"]}, fit.example(), metadata, folder)
    records, kept_epoch = list(recorder.records), recorder.kept_epoch
    outcome = Outcome(records, kept_epoch, end_metrics(records, kept_epoch, model), **found)
    write_outcome(outcome, folder)
    return outcome


def _telling(train: Any, validation: Any) -> keras.callbacks.Callback:
    """Return the callback that tells the data which epoch or validation begins; Keras tells a PyDataset no number."""

    def begin_epoch(epoch: int, logs: Any) -> None:
        if sets_its_order(train):
            train.set_epoch(epoch)
        if isinstance(train, CountedDataset):
            train.begin()

    def begin_validation(logs: Any) -> None:
        if isinstance(validation, CountedDataset):
            validation.begin()

    return keras.callbacks.LambdaCallback(on_epoch_begin=begin_epoch, on_test_begin=begin_validation)


def found_in(recipe: ModelRecipe, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
    """Return `found` and `found_values` of the outcome of a training that was given `hp`.

    Raises:
        FatalRuntimeError: KerasTuner's; a hyperparameter is not in the space, and the oracle allows no other.
    """
    found = recipe.found(hp)
    # What KerasTuner registers is inactive until its conditions hold.
    values = {new.name: hp.values[new.name] for new in found if hp.is_active(new)}
    return {"found": [kt_hyperparameters.serialize(new) for new in found], "found_values": values}


def _write_artifacts(
    model: keras.Model,
    values: Mapping[str, Any],
    example: Any | None,
    metadata: dict[str, Any],
    folder: Path,
) -> None:
    """Write artifacts and packaged model."""
    artifacts = empty_artifacts(folder)
    (artifacts / "hyperparameters.json").write_text(json.dumps(dict(values), indent=2))
    write_layers(model, artifacts / "layers.txt")
    if isinstance(example, tuple):  # MLflow names the inputs of a model
        example = {f"{INPUT_PREFIX}{number}": array for number, array in enumerate(example)}
    package_model(model, folder / MODEL, example, metadata)
