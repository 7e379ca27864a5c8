"""Trainings of any hypermodel: interrupted ones end bit-equal, and plain ones equal those of Keras."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import pytest
from keras_tuner.engine import hyperparameters as kt_hyperparameters
from keras_tuner.src.engine.hypermodel import get_hypermodel

from fakeface_lab.backend import keras
from fakeface_lab.errors import SearchError
from fakeface_lab.files import pickle_mapped, unpickle_mapped
from fakeface_lab.keras_tuner.hypermodel_work import HypermodelWork
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.training.epochs import EpochRecord
from fakeface_lab.training.fit_arguments import bind_fit_arguments
from fakeface_lab.training.hypermodel import ModelRecipe
from fakeface_lab.training.outcome import Outcome, read_outcome

RNG = np.random.default_rng(3)
X = RNG.normal(size=(50, 4)).astype(np.float32)
Y = (X[:, :2].sum(axis=1) > 0).astype(np.float32)
WEIGHTS = RNG.uniform(size=50).astype(np.float32)

ASSIGNMENT = Assignment("trial-0", {"units": 3}, epochs=4, seed=7)


def build(hp: keras_tuner.HyperParameters, run_eagerly: bool = True) -> keras.Model:
    layers = [keras.layers.Dense(hp.Choice("units", [3, 5])), keras.layers.Dropout(0.3), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Activation("sigmoid")])
    # It has a state, and a quicker step than Adam. Tracing a graph would take longer than so short a training.
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"], run_eagerly=run_eagerly)
    return model


def build_with_graph(hp: keras_tuner.HyperParameters) -> keras.Model:
    return build(hp, run_eagerly=False)


def build_without_input(hp: keras_tuner.HyperParameters) -> keras.Model:
    model = keras.Sequential([keras.layers.Dense(hp.Choice("units", [3, 5])), keras.layers.Dropout(0.3)])
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    model.compile("adam", "binary_crossentropy")
    return model


class Stopped(Exception):
    """Simulates a kill."""


class Heard:
    def __init__(self, stop_after: int = 0) -> None:
        self.records: list[EpochRecord] = []
        self._stop_after = stop_after

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        return

    def epoch_ended(self, record: EpochRecord) -> None:
        self.records.append(record)
        if record.epoch == self._stop_after:
            raise Stopped


def work(build_it: Any = build, *args: Any, objective: str = "val_loss", **kwargs: Any) -> HypermodelWork:
    hypermodel = get_hypermodel(build_it) if callable(build_it) else build_it
    space = keras_tuner.HyperParameters()
    build(space)
    fit = bind_fit_arguments(hypermodel, args or (X, Y), kwargs)
    recipe = ModelRecipe(hypermodel, space, {}, "float32")
    goal = keras_tuner.Objective(objective, "min")
    return HypermodelWork(recipe, goal, fit, True, 1, fit.dataset_facts())


def figures(outcome: Outcome) -> list[dict[str, float]]:
    return [{key: value for key, value in record.metrics.items() if key != "epoch_secs"} for record in outcome.records]


def weights(folder: Path) -> list[bytes]:
    model = keras.saving.load_model(next((folder / "model" / "data").glob("*.keras")))
    return [np.asarray(array).tobytes() for array in model.get_weights()]


def run(trained: HypermodelWork, folder: Path, *stops: int) -> tuple[Outcome, Heard]:
    folder.mkdir()
    for stop in stops:
        with pytest.raises(Stopped):
            trained(ASSIGNMENT, folder, Heard(stop))
    heard = Heard()
    return trained(ASSIGNMENT, folder, heard), heard


RESUMABLE: dict[str, dict[str, Any]] = {
    "split": {"validation_split": 0.2, "batch_size": 16},
    "weights": {"validation_data": (X, Y, WEIGHTS), "sample_weight": WEIGHTS, "batch_size": 17},
    "classes": {"validation_data": (X, Y), "class_weight": {0: 1.0, 1: 3.0}},
}


@pytest.mark.parametrize("kind", RESUMABLE)
def test_an_interrupted_trial_ends_bit_equal(kind: str, tmp_path: Path) -> None:
    trained = work(build_with_graph if kind == "split" else build, **RESUMABLE[kind])
    whole, _ = run(trained, tmp_path / "whole")
    resumed, heard = run(trained, tmp_path / "cut", 1, 3)
    assert [record.epoch for record in heard.records] == [4], "only the last epoch was left to do"
    assert figures(resumed) == figures(whole)
    assert resumed.kept_epoch == whole.kept_epoch
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_a_model_that_is_built_by_its_first_batch_resumes(tmp_path: Path) -> None:
    trained = work(build_without_input, validation_split=0.2)
    whole, _ = run(trained, tmp_path / "whole")
    resumed, _ = run(trained, tmp_path / "cut", 2)
    assert figures(resumed) == figures(whole)


class OwnStopping(keras.callbacks.EarlyStopping):
    """May remember more than Keras's class."""


def test_with_a_users_own_callback_a_trial_restarts_reports_no_epoch_twice_and_ends_the_same(tmp_path: Path) -> None:
    stopping = OwnStopping(monitor="loss", mode="max", patience=2, restore_best_weights=True)
    trained = work(
        validation_split=0.2, callbacks=[stopping, keras.callbacks.ReduceLROnPlateau(patience=0, min_delta=9)]
    )
    untouched = copy.deepcopy(stopping.__dict__)
    whole, _ = run(trained, tmp_path / "whole")
    assert len(whole.records) == 3, "stopped early"
    assert whole.records[-1].metrics["learning_rate"] < whole.records[0].metrics["learning_rate"]
    resumed, heard = run(trained, tmp_path / "cut", 1, 2)
    assert figures(resumed) == figures(whole)
    assert [record.epoch for record in heard.records] == [3]
    assert resumed.records[2] == heard.records[0]
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert stopping.__dict__ == untouched, "the user's own callbacks are only copied"


def test_kept_weights_are_those_of_the_kept_epoch_even_if_a_callback_restored_others(tmp_path: Path) -> None:
    # Restores the weights of the epoch with the highest loss.
    stopping = keras.callbacks.EarlyStopping(monitor="val_loss", mode="max", patience=1, restore_best_weights=True)
    outcome, _ = run(work(validation_data=(X, Y), callbacks=[stopping]), tmp_path / "run")
    model = keras.saving.load_model(tmp_path / "run" / "model" / "data" / "model.keras")
    model.compile(loss="binary_crossentropy")
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(outcome.kept_metrics()["val_loss"], abs=1e-6)


PLAIN: dict[str, dict[str, Any]] = {
    **RESUMABLE,
    "large batch": {"validation_split": 0.5, "batch_size": 64},
    "validation batches": {"validation_data": (X, Y), "validation_batch_size": 17},
}


@pytest.mark.parametrize("kind", PLAIN)
def test_unshuffled_training_equals_plain_fit(kind: str, tmp_path: Path) -> None:
    outcome, _ = run(work(**PLAIN[kind], shuffle=False), tmp_path / "run")
    keras.backend.clear_session()
    keras.utils.set_random_seed(7)
    hp = keras_tuner.HyperParameters()
    hp.values["units"] = 3
    expected = build(hp).fit(X, Y, shuffle=False, epochs=4, verbose=0, **PLAIN[kind]).history
    for name, values in expected.items():
        assert [record.metrics[name] for record in outcome.records] == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize("when", [2, [2, 3]])
def test_only_validated_epochs_can_be_kept(when: int | list[int], tmp_path: Path) -> None:
    trained = work(validation_data=(X, Y), validation_freq=when)
    outcome, _ = run(trained, tmp_path / "run")
    judged = {record.epoch: record.metrics["val_loss"] for record in outcome.records if "val_loss" in record.metrics}
    assert list(judged) == ([2, 4] if when == 2 else [2, 3])
    assert outcome.kept_epoch == min(judged, key=lambda epoch: judged[epoch])
    plain, _ = run(work(validation_data=(X, Y)), tmp_path / "plain")
    losses, plain_losses = ([record.metrics["loss"] for record in one.records] for one in (outcome, plain))
    assert losses == plain_losses


def test_a_misspelled_objective_is_refused_at_the_first_validated_epoch(tmp_path: Path) -> None:
    trained = work(objective="val_los", validation_data=(X, Y), validation_freq=2)
    with pytest.raises(SearchError, match=r"objective val_los: an epoch has .*; choose one of them, or give"):
        run(trained, tmp_path / "run")


def build_more(hp: keras_tuner.HyperParameters) -> keras.Model:
    hp.Choice("surprise", [1, 2])
    with hp.conditional_scope("surprise", [2]):
        hp.Int("depth", 1, 3)
    return build(hp)


@pytest.mark.parametrize("num_executions", [1, 2])
def test_a_hyperparameter_that_is_not_in_the_space_is_found(num_executions: int, tmp_path: Path) -> None:
    trained = replace(work(build_more, validation_split=0.2), num_executions=num_executions)
    outcome, _ = run(trained, tmp_path / "run")
    space = keras_tuner.HyperParameters()
    space.merge([kt_hyperparameters.deserialize(found) for found in copy.deepcopy(outcome.found)])
    assert [str(hp) for hp in space.space] == [
        "Choice(name: 'surprise', values: [1, 2], ordered: True, default: 1)",
        "Int(name: 'depth', min_value: 1, max_value: 3, step: 1, sampling: linear, default: 1)",
    ]
    assert outcome.found_values == {"surprise": 1}, "depth is not active"
    read = read_outcome(tmp_path / "run")
    assert read is not None
    assert (read.found, read.found_values) == (outcome.found, outcome.found_values)


def test_a_found_hyperparameter_has_its_default_if_the_oracle_does_not_tune_it(tmp_path: Path) -> None:
    trained = work(build_more, validation_split=0.2)
    trained = replace(trained, recipe=replace(trained.recipe, tune_new_entries=False))
    outcome, _ = run(trained, tmp_path / "run")
    assert (list(outcome.found), dict(outcome.found_values)) == ([], {})


def test_a_found_hyperparameter_that_the_oracle_does_not_allow_ends_the_search(tmp_path: Path) -> None:
    trained = work(build_more, validation_split=0.2)
    trained = replace(trained, recipe=replace(trained.recipe, allow_new_entries=False))
    message = (
        r"^hyperparameter surprise, depth: is not in the oracle's hyperparameters=, and allow_new_entries is False; "
        r"add it there$"
    )
    with pytest.raises(keras_tuner.errors.FatalRuntimeError, match=message):
        run(trained, tmp_path / "run")


def test_build_must_return_a_model(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"build\(hp\): returned NoneType; return a keras\.Model"):
        run(work(lambda hp: None, validation_split=0.2), tmp_path / "run")


def test_work_arrives_in_another_process_with_its_arrays_mapped(tmp_path: Path) -> None:
    large = RNG.normal(size=(20_000, 4)).astype(np.float32)
    arrived = unpickle_mapped(
        pickle_mapped(work(build, large, large[:, 0], validation_split=0.5), tmp_path, "work.pkl")
    )
    assert isinstance(arrived, HypermodelWork)
    assert arrived.fit.train is not None
    assert isinstance(arrived.fit.train[0], np.memmap)
    np.testing.assert_array_equal(arrived.fit.train[0], large[:10_000])
