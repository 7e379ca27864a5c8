"""Data sets whose seeds decide their order: told apart from others, and at any epoch as if iterated up to it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import keras_tuner as kerastuners
import numpy as np
import pytest
from keras_tuner.src.engine.hypermodel import get_hypermodel
from tensorflow.python.framework import config

from fakeface_lab.backend import keras, tf
from fakeface_lab.training.data_order import Pipeline, pipeline_of
from fakeface_lab.training.fit_arguments import bind_fit_arguments
from fakeface_lab.training.hypermodel import ModelRecipe, train_hypermodel
from fakeface_lab.training.outcome import Outcome

X = np.arange(24, dtype=np.float32).reshape(12, 2)
Y = X.sum(axis=1)


def source() -> Any:
    return tf.data.Dataset.from_tensor_slices((X, Y))


ORDERED: dict[str, Callable[[], Any]] = {
    "no shuffle": lambda: source().batch(4),
    "shuffled anew in each iteration": lambda: source().shuffle(12, seed=7).batch(4).prefetch(2),
    "shuffled once": lambda: source().shuffle(12, seed=7, reshuffle_each_iteration=False).batch(4),
    "cached": lambda: source().cache().shuffle(12, seed=7).batch(5),
    "two shuffles": lambda: source().shuffle(5, seed=0).batch(2).shuffle(3, seed=3),
    "mapped in parallel": lambda: (
        source().shuffle(12, seed=1).map(lambda x, y: (x / 2, y), num_parallel_calls=tf.data.AUTOTUNE).batch(4)
    ),
    "repeated": lambda: source().shuffle(12, seed=1).repeat(2).batch(4),
    "cached in the first order": lambda: source().shuffle(12, seed=7).cache().batch(5),
    "zipped": lambda: tf.data.Dataset.zip(source().shuffle(12, seed=1), source().shuffle(12, seed=2)),
    "interleaved": lambda: (
        tf.data.Dataset.range(4).interleave(lambda n: tf.data.Dataset.range(n), cycle_length=2).shuffle(4, seed=2)
    ),
}


def elements(dataset: Any) -> list[Any]:
    return [np.asarray(part).tolist() for element in dataset for part in keras.tree.flatten(element)]


@pytest.mark.parametrize("name", ORDERED)
def test_at_any_epoch_a_pipeline_is_the_data_set_iterated_up_to_it(name: str) -> None:
    tf.random.set_seed(4)
    dataset = ORDERED[name]()
    pipeline = pipeline_of(dataset)
    assert isinstance(pipeline, Pipeline)
    expected = [elements(dataset) for _ in range(4)]
    for epoch in (3, 0, 2):
        opened = cloudpickle.loads(cloudpickle.dumps(pipeline)).at_iteration(epoch)
        assert [elements(opened) for _ in range(epoch, 4)] == expected[epoch:]
    assert (expected[0] == expected[1]) == (name in ("no shuffle", "shuffled once", "cached in the first order"))


@pytest.fixture
def random_allowed() -> Iterator[None]:
    """TensorFlow refuses to make some of the data sets while its operations are deterministic."""
    was_deterministic = config.is_op_determinism_enabled()
    config.disable_op_determinism()
    yield
    if was_deterministic:
        config.enable_op_determinism()


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (lambda: source().shuffle(12).batch(4), "shuffle has no seed"),
        (lambda: source().map(lambda x, y: (x + tf.random.uniform(()), y)).batch(4), "contains RandomUniform"),
        (lambda: source().map(lambda x, y: (tf.numpy_function(abs, [x], x.dtype), y)), "PyFunc"),
        (lambda: tf.data.Dataset.from_generator(lambda: iter([1.0]), output_types=tf.float32), "PyFunc"),
        (lambda: source().flat_map(lambda *_: tf.data.Dataset.range(4).shuffle(4, seed=1)), "DummySeedGenerator"),
        (lambda: tf.data.Dataset.random(seed=4).take(3), "contains RandomDataset"),
        (
            lambda: source().map(lambda x, y: (x, y), num_parallel_calls=2, deterministic=False),
            "read with deterministic=False",
        ),
    ],
)
def test_what_its_seeds_do_not_decide_is_told_with_the_reason(
    dataset: Callable[[], Any], reason: str, random_allowed: None
) -> None:
    tf.random.set_seed(None)
    made = dataset()
    why = pipeline_of(made)
    assert isinstance(why, str)
    assert reason in why
    fit = bind_fit_arguments(kerastuners.HyperModel(), (made,), {})
    assert isinstance(fit.kwargs["x"], tf.data.Dataset)
    assert reason in str(fit.obstacle)
    assert not fit.can_resume


def test_the_digest_is_of_the_content_and_not_of_names() -> None:
    def made(rows: Any) -> Pipeline:
        found = pipeline_of(tf.data.Dataset.from_tensor_slices(rows).map(lambda x: x * 2).shuffle(4, seed=1))
        assert isinstance(found, Pipeline)
        return found

    first, again = made(X), made(X)
    assert first.graph != again.graph, "functions are numbered"
    assert first.digest == again.digest
    assert made(X + 1).digest != first.digest


class Numbered(keras.utils.PyDataset):
    """Batches in an order that its epoch decides."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = np.arange(12)

    def set_epoch(self, epoch: int) -> None:
        self.rows = np.random.default_rng(epoch).permutation(12)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        rows = self.rows[4 * index : 4 * index + 4]
        return X[rows], Y[rows]


class Killed(BaseException):
    """Not an Exception: no layer between handles it."""


class Listener:
    def __init__(self, last: int = 99) -> None:
        self.last, self.epochs = last, 0

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        if epoch > self.last:
            raise Killed

    def epoch_ended(self, record: Any) -> None:
        self.epochs += 1


def build(hp: kerastuners.HyperParameters) -> keras.Model:
    model = keras.Sequential([keras.layers.Dense(4, "relu"), keras.layers.Dropout(0.3), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")  # not built: it learns its input from the data
    return model


def train(folder: Path, data: Any, validation: Any, listener: Listener) -> Outcome:
    folder.mkdir(exist_ok=True)
    hypermodel = get_hypermodel(build)
    fit = bind_fit_arguments(hypermodel, (data,), {"validation_data": validation, "validation_freq": 2})
    recipe = ModelRecipe(hypermodel, kerastuners.HyperParameters(), {}, "float32", True, True)
    return train_hypermodel(
        recipe, fit, kerastuners.Objective("val_loss", "min"), {}, name="0", seed=3, epochs=6, passes_epochs=True,
        data_digest="", folder=folder, listener=listener,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("pipeline", 4),
        ("PyDataset", 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("pipeline", 1), ("pipeline", 3), ("PyDataset", 3), ("PyDataset", 4))
        ),
    ],
)
def test_killed_after_any_epoch_a_training_on_such_data_ends_bit_equal(
    kind: str, last: int, tmp_path: Path, deterministic: None
) -> None:
    data = source().shuffle(12, seed=7).batch(4) if kind == "pipeline" else Numbered()
    validation = source().shuffle(12, seed=5).batch(5)
    whole = train(tmp_path / "whole", data, validation, Listener())
    with pytest.raises(Killed):
        train(tmp_path / "cut", data, validation, Listener(last))
    resumed = Listener()
    cut = train(tmp_path / "cut", data, validation, resumed)
    assert resumed.epochs == 6 - last

    def measured(outcome: Outcome) -> list[dict[str, float]]:
        return [{k: v for k, v in record.metrics.items() if k != "epoch_secs"} for record in outcome.records]

    assert measured(cut) == measured(whole)
    assert len({record.metrics["loss"] for record in whole.records}) == 6
