"""What a user's hypermodel may be: with its own fit or training loop, failing, too large, compiled by the tuner."""

from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import pytest
from keras_tuner import oracles

from fakeface_lab.backend import keras, tf
from tests.keras_tuner.tiny_tuner import FIT, X, Y, history, inline, random_oracle, runs_of, small

pytestmark = pytest.mark.usefixtures("project_with_tables")


class OwnBatchSize(keras_tuner.HyperModel):
    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        return small(hp)

    def fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        return model.fit(*args, batch_size=hp.Choice("batch_size", [8, 30]), **kwargs)


def test_hyperparameters_of_the_users_own_fit_are_searched(project: Path) -> None:
    tuner = inline(OwnBatchSize(), random_oracle(3))
    tuner.search(X, Y, epochs=1, validation_split=0.25, verbose=0)
    assert {run.data.params["batch_size"] for run in runs_of(tuner)} == {"8", "30"}


class OwnLoop(keras_tuner.HyperModel):
    """Trains a model that is not compiled, and returns the objective."""

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        return keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(hp.Choice("units", [2, 4])), keras.layers.Dense(1)]
        )

    def fit(self, hp: keras_tuner.HyperParameters, model: keras.Model, x: Any, y: Any, callbacks: Any = ()) -> float:
        optimizer = keras.optimizers.SGD(hp.Float("lr", 1e-3, 1e-1, sampling="log"))
        for callback in callbacks:
            callback.set_model(model)
        loss = float("nan")
        for epoch in range(2):
            with tf.GradientTape() as tape:
                error = tf.reduce_mean((model(x) - y[:, None]) ** 2)
            optimizer.apply(tape.gradient(error, model.trainable_variables), model.trainable_variables)
            loss = float(tf.reduce_mean((model(x) - y[:, None]) ** 2))
            for callback in callbacks:
                callback.on_epoch_end(epoch, logs={"my_loss": loss})
        return loss


@pytest.mark.parametrize("objective", [None, keras_tuner.Objective("my_loss", "min")], ids=["returned", "reported"])
def test_a_users_own_training_loop(objective: Any, project: Path) -> None:
    tuner = inline(OwnLoop(), random_oracle(2, objective))
    tuner.search(X, Y)
    for run in runs_of(tuner):
        curve = [value for _, value in history(run, "my_loss")]
        assert len(curve) == 2
        assert run.data.metrics["score"] == pytest.approx(min(curve))
        assert float(run.data.params["lr"]) > 0
    (model,) = tuner.get_best_models()
    assert float(np.mean((model(X)[:, 0] - Y) ** 2)) == pytest.approx(tuner.oracle.get_best_trials()[0].score)


def build_failing(hp: keras_tuner.HyperParameters) -> keras.Model:
    units = hp.Choice("units", [2, 4, 13])
    if units == 13:
        raise ValueError("thirteen units are too many\nand more words")
    return small(hp)


def test_a_failing_build_is_a_failed_trial(project: Path) -> None:
    tuner = inline(build_failing, oracles.GridSearchOracle("val_loss"))
    tuner.search(X, Y, **FIT)
    runs = runs_of(tuner)
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED", "FAILED"]
    assert runs[2].data.tags["status_reason"] == "ValueError: thirteen units are too many"
    assert len(tuner.get_best_hyperparameters(5)) == 2, "KerasTuner would fill up with the failed one"


def test_a_model_above_the_limit_is_a_failed_trial(project: Path) -> None:
    tuner = inline(small, oracles.GridSearchOracle("val_loss"), max_model_size=30)
    tuner.search(X, Y, **FIT)
    assert runs_of(tuner)[2].data.tags["status_reason"] == "oversized model: 79 parameters, max_model_size is 30"


@pytest.mark.slow
def test_compile_arguments_of_the_tuner_take_precedence(project: Path) -> None:
    tuner = inline(small, random_oracle(1), loss="mae", metrics=["mse"], optimizer=keras.optimizers.SGD(0.25))
    tuner.search(X, Y, **FIT)
    metrics = runs_of(tuner)[0].data.metrics
    assert {"val_mse", "mse"} < set(metrics)
    assert "accuracy" not in metrics
    assert metrics["learning_rate"] == 0.25
