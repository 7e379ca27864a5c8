"""Data whose order in an epoch depends on seeds and the number of the epoch alone, so that a training can resume.

Arrays are shuffled by `EpochOrder`, a PyDataset of the user's own sets its order in a method `set_epoch(epoch)`, and a
`tf.data.Dataset` becomes a `Pipeline`. A data set that shuffles anew in each iteration (`reshuffle_each_iteration`)
counts its iterations in memory that its copies share and a kill loses. A pipeline keeps its graph instead, and each
data set made from that counts for itself. As bytes it can also be sent to a worker process, which a data set cannot.

Non-public members of TensorFlow used here: `op_def_registry`, which knows the operations that keep a state, and
`_inputs`, which every data set has.
"""

import collections
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorflow.python.framework import op_def_registry

from fakeface_lab.backend import keras, tf
from fakeface_lab.training.outcome import epoch_order

__all__ = ["CountedDataset", "EpochOrder", "Pipeline", "pipeline_of", "sets_its_order"]

# These keep a state, but none that changes what comes out.
_HARMLESS = {
    "Assert", "CSVDatasetV2", "FixedLengthRecordDatasetV2", "RangeDataset", "TensorDataset", "TensorSliceDataset",
    "TextLineDataset", "TFRecordDataset", "TFRecordDatasetV2", "_Retval",
}  # fmt: skip

# To the older operation, which makes the count or the cache that it needs by itself: without the last input, a
# resource that all data sets of one graph would share.
_WITH_OWN_COUNT = {"ShuffleDatasetV3": "ShuffleDataset", "CacheDatasetV2": "CacheDataset"}

# Their iterations begin that of their input.
_EAGER = {
    "BatchDatasetV2", "FilterDataset", "MapDataset", "OptionsDataset", "ParallelBatchDataset", "ParallelMapDatasetV2",
    "PrefetchDataset",
}  # fmt: skip


class EpochOrder(keras.utils.PyDataset):
    """Batches of arrays; the order of each epoch depends only on seed and epoch."""

    def __init__(self, arrays: tuple[Any, ...], batch_size: int, seed: int, *, shuffle: bool) -> None:
        super().__init__()
        self._arrays, self._batch_size, self._seed, self._shuffle = arrays, batch_size, seed, shuffle
        self._num_rows = len(keras.tree.flatten(arrays)[0])
        self._rows: npt.NDArray[np.int64] = np.arange(self._num_rows)

    def set_epoch(self, epoch: int) -> None:
        """Use the order of this epoch, counted from 0."""
        if self._shuffle:
            self._rows = epoch_order(self._num_rows, self._seed, epoch)

    def __len__(self) -> int:
        return -(-self._num_rows // self._batch_size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        rows = self._rows[index * self._batch_size : (index + 1) * self._batch_size]
        batch: tuple[Any, ...] = keras.tree.map_structure(lambda array: array[rows], self._arrays)
        return batch


def sets_its_order(data: Any) -> bool:
    """Return whether the data set their own order for each epoch, by its number."""
    return isinstance(data, keras.utils.PyDataset) and hasattr(data, "set_epoch")


@dataclass(frozen=True)
class Pipeline:
    """A `tf.data` pipeline as the graph that produces it.

    Attributes:
        graph: a serialized `GraphDef`.
        element_spec: of its elements.
        digest: of its operations and constants; equal in every process, as the names in a graph are not.
        is_simple: whether it has one shuffle, whose count an iteration advances by beginning.
    """

    graph: bytes
    element_spec: Any
    digest: str
    is_simple: bool

    def at_iteration(self, number: int) -> Any:
        """Return the `tf.data.Dataset` after this number of iterations."""
        variant = tf.raw_ops.DatasetFromGraph(graph_def=self.graph)
        dataset = tf.data.experimental.from_variant(variant, self.element_spec)
        for _ in range(number):
            # A shuffle below another, below `repeat` or below a cache counts only what is read through.
            iteration = iter(dataset)
            if not self.is_simple:
                collections.deque(iteration, maxlen=0)
        return dataset

    def example(self) -> Any:
        """Return the inputs of the first batch, as tensors."""
        return keras.utils.unpack_x_y_sample_weight(next(iter(self.at_iteration(0))))[0]


class CountedDataset(tf.data.Dataset):
    """A pipeline's data set, each iteration of which is asked for by `begin`.

    Keras begins more of them: one to see a first batch, and one at the end of each epoch that it never reads.

    Args:
        pipeline: of the data set.
        num_before: iterations that an earlier process has made.
    """

    def __init__(self, pipeline: Pipeline, num_before: int) -> None:
        self._pipeline, self._dataset, self._is_due = pipeline, pipeline.at_iteration(num_before), False
        super().__init__(tf.data.experimental.to_variant(self._dataset))

    def begin(self) -> None:
        """Let the next iteration be one that counts."""
        self._is_due = True

    def __iter__(self) -> Any:
        # Another data set otherwise, whose iterations this one does not count.
        dataset = self._dataset if self._is_due else self._pipeline.at_iteration(0)
        self._is_due = False
        return iter(dataset)

    @property
    def element_spec(self) -> Any:
        """As of any data set."""
        return self._pipeline.element_spec

    def _inputs(self) -> list[Any]:
        return [self._dataset]


def pipeline_of(dataset: tf.data.Dataset) -> Pipeline | str:
    """Return a data set as a pipeline; or, if more than its own seeds decides what comes out, the reason as a text."""
    try:
        serialized = tf.raw_ops.DatasetToGraphV2(input_dataset=tf.data.experimental.to_variant(dataset))
    except tf.errors.OpError as err:
        return f"the graph of the data set cannot be written ({str(err).splitlines()[0]})"
    graph = tf.compat.v1.GraphDef.FromString(serialized.numpy())
    for node in graph.node:
        if node.op in _WITH_OWN_COUNT:
            node.op = _WITH_OWN_COUNT[node.op]
            del node.input[-1]
    kept = [node for node in graph.node if not _is_resource(node)]
    del graph.node[:]
    graph.node.extend(kept)
    reason = _obstacle(graph)
    if reason is not None:
        return reason
    digest = hashlib.sha256(str(dataset.element_spec).encode())
    for node in _nodes(graph):
        digest.update(node.op.encode())
        if "value" in node.attr:
            digest.update(node.attr["value"].tensor.SerializeToString(deterministic=True))
    serialized = graph.SerializeToString(deterministic=True)
    return Pipeline(serialized, dataset.element_spec, digest.hexdigest(), _is_simple(graph))


def _is_resource(node: Any) -> bool:
    return bool(node.op == "Const" and node.attr["dtype"].type == tf.resource.as_datatype_enum)


def _obstacle(graph: Any) -> str | None:
    """Return what else than seeds decides what comes out; None if nothing does."""
    constants = {node.name: node for node in graph.node if node.op == "Const"}
    for node in graph.node:
        if node.op == "ShuffleDataset":
            seeds = [tf.make_ndarray(constants[name].attr["value"].tensor) for name in node.input[2:4]]
            # Two zeros are TensorFlow's word for a random seed.
            if not any(seeds):
                return "the data set's shuffle has no seed"
        # Reading an attribute that is not there would add it to the graph.
        if "deterministic" in node.attr and node.attr["deterministic"].s == b"false":
            return "the data set is read with deterministic=False"
    operations = {node.op for node in _nodes(graph)} - _HARMLESS - set(_WITH_OWN_COUNT.values())
    changing = sorted(name for name in operations if (known := op_def_registry.get(name)) is None or known.is_stateful)
    return f"the data set contains {changing[0]}, whose results its seeds do not decide" if changing else None


def _is_simple(graph: Any) -> bool:
    operations: list[str] = [node.op for node in graph.node if "Dataset" in node.op]
    if "ShuffleDataset" not in operations:
        return True
    # Inputs come first in a graph: what follows the shuffle reads from it.
    following = operations[operations.index("ShuffleDataset") + 1 :]
    in_functions: set[str] = {node.op for function in graph.library.function for node in function.node_def}
    return set(following) <= _EAGER and "ShuffleDataset" not in in_functions


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph and of the functions that it maps."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def
