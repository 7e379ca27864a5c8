"""Arguments of `Tuner.search`: arrays and their order, everything else passed through, and the digest of the data."""

from collections.abc import Callable
from typing import Any

import keras_tuner
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakeface_lab.backend import keras, tf
from fakeface_lab.errors import ConfigError
from fakeface_lab.training.data_order import EpochOrder
from fakeface_lab.training.fit_arguments import bind_fit_arguments

HYPERMODEL = keras_tuner.HyperModel()

RNG = np.random.default_rng(3)
X = RNG.normal(size=(50, 4)).astype(np.float32)
Y = (X[:, :2].sum(axis=1) > 0).astype(np.float32)


def digest_of(*args: Any, **kwargs: Any) -> str:
    return bind_fit_arguments(HYPERMODEL, args, kwargs).dataset_facts()[1]


@given(num_rows=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_an_epoch_has_each_row_once_in_an_order_of_seed_and_epoch(
    num_rows: int, batch_size: int, seed: int, epoch: int
) -> None:
    rows = np.arange(num_rows)

    def seen(in_epoch: int, by_seed: int, visited: int = 0) -> list[int]:
        order = EpochOrder((rows, rows), batch_size, by_seed, shuffle=True)
        for earlier in range(visited):
            order.set_epoch(earlier)
        order.set_epoch(in_epoch)
        batches = [order[index] for index in range(len(order))]
        assert all((x == y).all() and 0 < len(x) <= batch_size for x, y in batches)
        return [int(row) for x, _ in batches for row in x]

    assert sorted(seen(epoch, seed)) == list(rows)
    assert seen(epoch, seed) == seen(epoch, seed, visited=3)
    if num_rows > 20:
        assert seen(epoch, seed) != seen(epoch + 1, seed)
        assert seen(epoch, seed) != seen(epoch, seed + 1)


def test_arrays_are_recognized_in_tensors_tables_and_nested_structures() -> None:
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    fit = bind_fit_arguments(HYPERMODEL, (table, table["a"]), {})
    assert fit.train is not None
    assert [(part.dtype, part.shape) for part in fit.train] == [("float32", (2, 2)), ("float32", (2, 1))]
    nested = {"left": tf.constant(X), "right": [X.astype(np.float64), X]}
    fit = bind_fit_arguments(HYPERMODEL, (nested, Y), {})
    assert fit.train is not None
    assert isinstance(fit.train[0]["right"], tuple)
    assert {array.dtype.name for array in keras.tree.flatten(fit.train)} == {"float32"}


@pytest.mark.parametrize("given_as", ["dataset", "steps"])
def test_data_that_are_not_all_arrays_are_passed_through(given_as: str) -> None:
    batches = tf.data.Dataset.from_generator(lambda: iter([(X, Y)]), output_types=(tf.float32, tf.float32))
    if given_as == "dataset":
        fit = bind_fit_arguments(HYPERMODEL, (batches,), {"epochs": 3})
        assert fit.kwargs["x"] is batches
    else:
        fit = bind_fit_arguments(HYPERMODEL, (X, Y), {"epochs": 3, "steps_per_epoch": 2})
        assert fit.kwargs["x"] is X
    assert fit.train is None
    assert not fit.can_resume
    assert fit.epochs == 3


def test_callbacks_are_taken_as_keras_takes_them() -> None:
    one, two = keras.callbacks.TerminateOnNaN(), keras.callbacks.EarlyStopping()
    assert bind_fit_arguments(HYPERMODEL, (X, Y), {}).callbacks == ()
    assert bind_fit_arguments(HYPERMODEL, (X, Y), {"callbacks": one}).callbacks == (one,)
    assert bind_fit_arguments(HYPERMODEL, (X, Y), {"callbacks": [one, [two]]}).callbacks == (one, two)
    fit = bind_fit_arguments(HYPERMODEL, (X, Y, 8, 3, 0, [two]), {})
    assert fit.callbacks == (two,)
    assert "callbacks" not in fit.kwargs
    assert fit.can_resume


def test_the_digest_covers_every_number() -> None:
    large = np.zeros((300, 400), dtype=np.float32)
    other = large.copy()
    other[-1, -1] = 1
    assert digest_of(large, large) != digest_of(other, large)
    assert digest_of(large, other) == digest_of(large.copy(), other.copy())


@pytest.mark.parametrize(
    "make",
    [
        lambda last: np.array(["".join(["a", "b"]), 1.5, None, last], dtype=object),
        lambda last: np.array(["2024-01-01", f"2024-01-0{last}"], dtype="datetime64[s]"),
        lambda last: pd.DataFrame({"word": ["x", f"y{last}"], "number": [1, 2]}),
        lambda last: pd.DataFrame({f"column {last}": ["x", "y"]}),
        lambda last: np.array([(1, 2.0), (3, last)], dtype=[("a", "i4"), ("b", "f8")]),
        lambda last: np.array(["x", f"y{last}"]),
    ],
    ids=["objects", "dates", "table", "columns", "structured", "text"],
)
def test_the_digest_covers_content_of_any_type(make: Callable[[int], Any]) -> None:
    first, again, other = (digest_of(X, Y, validation_data=(X, {"extra": make(last)})) for last in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_split_without_training_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"validation_split = 0\.99: leaves 0 of 50 rows"):
        bind_fit_arguments(HYPERMODEL, (X, Y), {"validation_split": 0.99})
