"""Normalizes the arguments of `Tuner.search` so that a trial replays in the same data order, and digests the data.

Keras shuffles arrays with a state that a restart loses. Here arrays reach `fit` in an order that is a pure function of
seed and epoch, and so do data sets whose seeds decide their order (`data_order`). Anything else (other data sets,
generators, the arguments of a custom `HyperModel.fit`) is passed through.
"""

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fakeface_lab.backend import keras, keras_tuner, tf
from fakeface_lab.errors import ConfigError
from fakeface_lab.training.callback_state import have_known_state, require_copyable
from fakeface_lab.training.data_order import CountedDataset, EpochOrder, Pipeline, pipeline_of, sets_its_order

__all__ = ["FitArguments", "array_facts", "bind_fit_arguments", "has_own_fit", "pass_through"]

_DEFAULT_BATCH_SIZE = 32  # Keras's
_NUMERIC_KINDS = "biufc"


@dataclass(frozen=True)
class FitArguments:
    """The arguments of `HyperModel.fit`, without those that the search sets itself.

    Attributes:
        args: positional arguments; empty unless `HyperModel.fit` is overridden.
        kwargs: keyword arguments.
        train: (x, y, sample_weight) as arrays, as far as given; None if the data are not all arrays.
        shuffle: whether `train` is shuffled in each epoch.
        batch_size: of `train`.
        callbacks: the user's, copied for each trial.
        epochs: the user's budget, None if not given.
        obstacle: why a training on these data cannot resume from an epoch; None if it can.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    train: tuple[Any, ...] | None
    shuffle: bool
    batch_size: int
    callbacks: tuple[Any, ...]
    epochs: int | None
    obstacle: str | None = None

    @property
    def can_resume(self) -> bool:
        """Whether a training can resume from an epoch's checkpoint and end as if it had never stopped.

        A callback that is not one of Keras's own may remember what no checkpoint holds.
        """
        return self.obstacle is None and have_known_state(self.callbacks)

    def kwargs_at(self, epoch: int, seed: int) -> dict[str, Any]:
        """Return the keyword arguments for a training that begins at an epoch, counted from 0."""
        kwargs = dict(self.kwargs)
        if self.train is not None:
            kwargs["x"] = EpochOrder(self.train, self.batch_size, seed, shuffle=self.shuffle)
        if sets_its_order(kwargs.get("x")):
            # Keras would shuffle its batches, with a state that a restart loses.
            kwargs["shuffle"] = False
        validated = sum(self.is_validated(before) for before in range(1, epoch + 1))
        for name, num_before in (("x", epoch), ("validation_data", validated)):
            if isinstance(kwargs.get(name), Pipeline):
                kwargs[name] = CountedDataset(kwargs[name], num_before)
        return kwargs

    def is_validated(self, epoch: int) -> bool:
        """Return whether `fit` validates after an epoch, counted from 1."""
        when = self.kwargs.get("validation_freq", 1)
        return epoch % when == 0 if isinstance(when, int) else epoch in when

    def example(self) -> Any | None:
        """Return one row of the model's input with its batch dimension; None if the input is not arrays."""
        if self.train is not None:
            return keras.tree.map_structure(lambda array: array[:1], self.train[0])
        given = self.kwargs.get("x", self.args[0] if self.args else None)
        if isinstance(given, Pipeline):
            given = given.example()
        elif sets_its_order(given):
            given = keras.utils.unpack_x_y_sample_weight(given[0])[0]
        try:
            return keras.tree.map_structure(lambda array: array[:1], _to_arrays(given))
        except _NotArraysError:
            return None

    def dataset_facts(self) -> tuple[str, str, dict[str, str]]:
        """Return name, digest and shapes of the data; the digest covers every number of arrays, else only specs."""
        digest, shapes = array_facts({"train": self.train, "args": list(self.args), **self.kwargs})
        return ("arrays" if self.train is not None else "data", digest, shapes)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that are numbers, texts or dictionaries, by name: part of a search's identity."""
        plain = {key: value for key, value in self.kwargs.items() if isinstance(value, (int, float, str, bool, dict))}
        # Arrays are in the digest of the data.
        plain = {key: value for key, value in plain.items() if not _has_array(value) and key != "verbose"}
        # By class: the text of a callback usually holds its address in memory, which differs in the next process.
        names = [type(callback).__name__ for callback in self.callbacks]
        own = {"batch_size": self.batch_size, "shuffle": self.shuffle} if self.train is not None else {}
        return {**plain, **own, "callbacks": names}


def array_facts(tree: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the digest of nested arrays and tables, and the shape of each by name; of data sets only the specs."""
    hashed, shapes = hashlib.sha256(), {}
    for name, leaf in _leaves(tree):
        if isinstance(leaf, (np.ndarray, pd.DataFrame, pd.Series)):
            dtypes = " ".join(map(str, leaf.dtypes)) if isinstance(leaf, pd.DataFrame) else str(leaf.dtype)
            shapes[name] = f"{dtypes} {leaf.shape}"
            # The shape as well: the same bytes in rows of another length are other data.
            hashed.update(f"{name} {shapes[name]}".encode())
            hashed.update(_content(leaf))
        elif hasattr(leaf, "element_spec"):
            shapes[name] = str(leaf.element_spec)
            hashed.update(f"{name} {shapes[name]} {getattr(leaf, 'digest', '')}".strip().encode())
    return hashed.hexdigest(), shapes


def pass_through(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> FitArguments:
    """Return arguments that a user's own `run_trial` is passed as they are."""
    why = "run_trial is overridden"
    return FitArguments(args, kwargs, None, False, _DEFAULT_BATCH_SIZE, (), kwargs.get("epochs"), why)


class _NotArraysError(Exception):
    """The data are not all arrays."""


def has_own_fit(hypermodel: keras_tuner.HyperModel) -> bool:
    """Return whether the user has overridden `HyperModel.fit`."""
    # A bound method is a new object at each access, its function is not.
    return getattr(hypermodel.fit, "__func__", hypermodel.fit) is not keras_tuner.HyperModel.fit


def bind_fit_arguments(
    hypermodel: keras_tuner.HyperModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> FitArguments:
    """Return the arguments of `search`, with its arrays recognized.

    Raises:
        ConfigError: `fit` does not take an argument, or the search sets it itself.
        FatalValueError: a callback cannot be copied.
    """
    named = dict(kwargs)
    if "initial_epoch" in named:
        raise ConfigError("initial_epoch: the search counts the epochs of a trial from its first; leave it out")
    if has_own_fit(hypermodel):
        callbacks = _pop_callbacks(named)
        epochs = named.pop("epochs", None)
        why = "HyperModel.fit is overridden"
        return FitArguments(args, _as_numpy(named), None, False, _DEFAULT_BATCH_SIZE, callbacks, epochs, why)
    try:
        # None stands for `self`.
        bound = inspect.signature(keras.Model.fit).bind_partial(None, *args, **named)
    except TypeError as err:
        raise ConfigError(f"search(): {err}; it takes what keras.Model.fit takes") from err
    named = dict(list(bound.arguments.items())[1:])
    callbacks = _pop_callbacks(named)
    unordered = _recognize_pipelines(named)
    named.pop("verbose", None)
    epochs = named.pop("epochs", None)
    batch_size = named.get("batch_size") or _DEFAULT_BATCH_SIZE
    shuffle = named.get("shuffle", True)
    given = tuple(named.get(name) for name in ("x", "y", "sample_weight"))
    try:
        # An epoch is then not one pass over the rows, or (`shuffle="batch"`) not in an order of single rows.
        if named.get("steps_per_epoch") is not None or not isinstance(shuffle, bool):
            raise _NotArraysError
        last = max(index for index, value in enumerate(given) if value is not None)
        train = tuple(None if value is None else _to_arrays(value) for value in given[: last + 1])
        if train[0] is None or (len(train) == 3 and train[1] is None):
            raise _NotArraysError
    # A ValueError is `max` of nothing: no data was given at all.
    except (_NotArraysError, ValueError):
        obstacle = unordered or _obstacle(named)
        return FitArguments((), named, None, False, batch_size, callbacks, epochs, obstacle)
    rest = {
        key: value for key, value in named.items() if key not in ("x", "y", "sample_weight", "batch_size", "shuffle")
    }
    # Keras's default too, but it cannot see the batch size of an `EpochOrder`.
    rest["validation_batch_size"] = rest.get("validation_batch_size") or batch_size
    train, rest["validation_data"] = _split(train, rest.pop("validation_split", 0.0), rest.get("validation_data"))
    return FitArguments((), rest, train, shuffle, batch_size, callbacks, epochs)


def _recognize_pipelines(named: dict[str, Any]) -> str | None:
    """Replace data sets whose seeds decide their order by pipelines; return why another one is none."""
    unordered: str | None = None
    for name in ("x", "validation_data"):
        if isinstance(named.get(name), tf.data.Dataset):
            found = pipeline_of(named[name])
            if isinstance(found, Pipeline):
                named[name] = found
            else:
                unordered = found
    return unordered


def _obstacle(named: Mapping[str, Any]) -> str | None:
    """Return why a training on data that are not all arrays cannot resume from an epoch; None if it can."""
    for name in ("steps_per_epoch", "validation_steps"):
        if named.get(name) is not None:
            return f"{name} is given, so an epoch begins where the previous one ended"
    if isinstance(named.get("x"), Pipeline) and named.get("class_weight") is not None:
        return "class_weight is given, for which Keras wraps the data set; put sample weights into it instead"
    if isinstance(named.get("x"), Pipeline) or sets_its_order(named.get("x")):
        return None
    return "the order of the data is not known (a PyDataset can set it in a method set_epoch(epoch))"


def _pop_callbacks(named: dict[str, Any]) -> tuple[Any, ...]:
    """Take the callbacks out of the arguments: one, a list, or lists in a list, as Keras takes them."""
    callbacks = tuple(keras.tree.flatten(named.pop("callbacks", None) or ()))
    require_copyable(callbacks)
    return callbacks


def _split(train: tuple[Any, ...], fraction: float, given: Any) -> tuple[tuple[Any, ...], Any]:
    """Return training and validation data; the split takes the last rows for validation, as Keras does."""
    if given is not None:
        return train, _as_numpy(given)
    if not fraction:
        return train, None
    num_rows = len(keras.tree.flatten(train)[0])
    # The training rows are rounded down, as in Keras: 0.25 of 10 rows leaves 7 to train on, not 8.
    first = int(num_rows * (1.0 - fraction))
    if not 0 < first < num_rows:
        raise ConfigError(
            f"validation_split = {fraction}: leaves {first} of {num_rows} rows to train on; give another fraction"
        )
    return (
        keras.tree.map_structure(lambda array: array[:first], train),
        keras.tree.map_structure(lambda array: array[first:], train),
    )


def _as_numpy(value: Any) -> Any:
    """Return `value` with tensors and tables as arrays, which worker processes can map, and the rest unchanged."""
    if isinstance(value, dict):
        return {key: _as_numpy(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_as_numpy(part) for part in value)
    try:
        return _to_arrays(value)
    except _NotArraysError:
        return value


def _to_arrays(value: Any) -> Any:
    """Return nested arrays as `fit` converts them: lists to tuples, floats to Keras's float type."""
    if isinstance(value, dict):
        return {key: _to_arrays(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_to_arrays(part) for part in value)
    if not hasattr(value, "__array__") or not hasattr(value, "shape"):
        raise _NotArraysError
    try:
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
    except Exception as err:  # a ragged or symbolic tensor
        raise _NotArraysError from err
    if array.dtype.kind not in _NUMERIC_KINDS or array.ndim == 0:
        raise _NotArraysError
    # `fit` converts arrays, but not the batches of a `PyDataset`: float64 would reach the training step as it is.
    if array.dtype.kind == "f" and array.dtype != keras.config.floatx():
        array = array.astype(keras.config.floatx())
    # Keras takes a column of a table (pandas.Series) as (num_rows, 1).
    return array[:, None] if type(value).__name__ == "Series" else array


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaves(value[key], f"{name}.{key}".strip("."))
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{name}.{index}".strip("."))
    else:
        yield name, value


def _content(table: npt.NDArray[Any] | pd.DataFrame | pd.Series) -> bytes | memoryview:
    """Return bytes that represent the content: the bytes of an array of objects would be memory addresses."""
    if isinstance(table, (pd.DataFrame, pd.Series)):
        # Without the index, which `fit` never sees.
        names = list(table.columns) if isinstance(table, pd.DataFrame) else [table.name]
        return repr(names).encode() + pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes()
    if table.dtype.hasobject:
        return pd.util.hash_array(table.ravel(), categorize=False).tobytes()
    return np.ascontiguousarray(table).reshape(-1).view(np.uint8).data


def _has_array(value: Any) -> bool:
    return any(isinstance(leaf, np.ndarray) for _, leaf in _leaves(value))
