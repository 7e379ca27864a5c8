"""Epoch checkpoints: everything that a training needs to resume as if it had never stopped, in one file.

A checkpoint holds the model's variables (weights and the seed generators behind dropout), the optimizer's variables,
further arrays, and a JSON state. It is a zip of `.npy` members: no pickle, and each member has a checksum. It is
written by a `BackgroundWriter` from a `Snapshot` while the training continues.
"""

import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fakeface_lab.backend import keras
from fakeface_lab.errors import ModelError

__all__ = [
    "CHECKPOINT",
    "BackgroundWriter",
    "Snapshot",
    "inherit_checkpoint",
    "keep_memory",
    "load_checkpoint",
    "load_weights",
    "read_state",
    "save_checkpoint",
    "save_weights",
]

CHECKPOINT = "epoch.ckpt"
_STATE_MEMBER = "state.json"
_ALIGNED_BYTES = 64
# In a worker process, the memory of the last training's snapshot; None in others, which give it back to the system.
_kept_memory: list[npt.NDArray[np.uint8]] | None = None


@dataclass
class Snapshot:
    """Copies of all variables at one moment, in memory that the next `take` reuses.

    Attributes:
        weights: values of the model's variables.
        slots: values of the optimizer's variables.
    """

    weights: list[npt.NDArray[Any]] = field(default_factory=list)
    slots: list[npt.NDArray[Any]] = field(default_factory=list)
    _memory: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    def take(self, model: keras.Model) -> "Snapshot":
        """Copy the variables of `model` and return the snapshot.

        Of the documented network it takes 553 MB and 0.03 s (docs/search.md), in which the training stands still.
        """
        # A custom training loop may do without a Keras optimizer.
        slots = getattr(getattr(model, "optimizer", None), "variables", [])
        # `read_value` avoids a copy by TensorFlow.
        values = [np.asarray(variable.value.read_value()) for variable in [*model.variables, *slots]]
        copies = self._buffers(values)
        for buffer, value in zip(copies, values, strict=True):
            np.copyto(buffer, value)
        self.weights, self.slots = copies[: len(model.variables)], copies[len(model.variables) :]
        return self

    def restore_weights(self, model: keras.Model) -> None:
        """Give the variables of `model` the values that they had."""
        for variable, value in zip(model.variables, self.weights, strict=True):
            # Mostly nothing has changed, and comparing takes a quarter of the time (docs/search.md).
            if not np.array_equal(np.asarray(variable.value.read_value()), value):
                variable.assign(value)

    def release(self) -> None:
        """Forget the values; a worker process keeps the memory for the snapshot of its next training."""
        self.weights, self.slots = [], []
        if _kept_memory is not None and self._memory.size:
            _kept_memory[:] = [self._memory]
        self._memory = np.empty(0, np.uint8)

    def _buffers(self, values: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Return arrays of the shapes and dtypes of `values`, in C order, so that they can be written as they are."""
        ends = list(itertools.accumulate(-(-value.nbytes // _ALIGNED_BYTES) * _ALIGNED_BYTES for value in values))
        num_bytes = ends[-1] if ends else 0
        if not self._memory.size and _kept_memory:
            self._memory = _kept_memory.pop()
        # For the documented network, new pages would take longer than the copying.
        if len(self._memory) < num_bytes:
            self._memory = np.empty(num_bytes, np.uint8)
        return [
            self._memory[begin : begin + value.nbytes].view(value.dtype).reshape(value.shape)
            for begin, value in zip([0, *ends], values, strict=False)
        ]


def keep_memory() -> None:
    """Let this process, which does nothing but train, keep the memory of a snapshot for its next training."""
    global _kept_memory
    _kept_memory = []


class BackgroundWriter:
    """Does one write at a time on its own thread, and reports its completion on the training's thread.

    A checkpoint of the documented network takes 0.41 s to write (docs/search.md).
    """

    def __init__(self) -> None:
        # Its thread is not a daemon, unlike those of `tracking.writer`: an exit waits half a second for a checkpoint,
        # not minutes for an upload.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[Future[None], Callable[[], None]] | None = None

    def submit(self, write: Callable[[], None], report: Callable[[], None]) -> None:
        """Start `write`, after a `flush` of the previous one; a later `poll` or `flush` calls `report`."""
        self._pending = self._executor.submit(write), report

    def poll(self) -> None:
        """Report the pending write if it has completed; raises what the write raised."""
        if self._pending is not None and self._pending[0].done():
            self.flush()

    def flush(self) -> None:
        """Wait for the pending write and report it; raises what the write raised."""
        if self._pending is not None:
            (write, report), self._pending = self._pending, None
            write.result()
            report()

    def wait(self) -> None:
        """Wait for the pending write, whatever becomes of it, and report nothing."""
        if self._pending is not None:
            (write, _), self._pending = self._pending, None
            wait([write])


def save_checkpoint(
    path: Path, snapshot: Snapshot, state: dict[str, Any], further: Sequence[npt.NDArray[Any]] = ()
) -> None:
    """Write model, optimizer, state and further arrays, replacing the file atomically.

    A killed write leaves the old file.
    """
    _write(path, [*snapshot.weights, *snapshot.slots], state, further)


def save_weights(path: Path, snapshot: Snapshot) -> None:
    """Write the model's variables without the optimizer's."""
    _write(path, snapshot.weights, {})


def read_state(path: Path) -> dict[str, Any] | None:
    """Return the state of a checkpoint, empty for a weights file; None if the file is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            state: dict[str, Any] = json.loads(archive.read(_STATE_MEMBER))
            names = archive.namelist()  # the zip's central directory has no checksum
            is_whole = names == [*_members(*_counts(names)), _STATE_MEMBER] and archive.testzip() is None
            return state if is_whole else None
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile):
        # Everything that zipfile raises for flipped bits: in a header they look like encryption or a newer zip version.
        return None


def load_checkpoint(path: Path, model: keras.Model) -> list[npt.NDArray[Any]]:
    """Restore model and optimizer from a file that `read_state` has found intact, and return its further arrays.

    Raises:
        ModelError: the checkpoint belongs to another model.
    """
    # A compiled model creates the optimizer's slots at its first step; restoring needs them now.
    model.optimizer.build(model.trainable_variables)
    return _load(path, [*model.variables, *model.optimizer.variables])


def load_weights(path: Path, model: keras.Model) -> None:
    """Restore what `save_weights` wrote, from a file that `read_state` has found intact.

    Raises:
        ModelError: the weights belong to another model.
    """
    _load(path, model.variables)


def _write(
    path: Path,
    arrays: Sequence[npt.NDArray[Any]],
    state: dict[str, Any],
    further: Sequence[npt.NDArray[Any]] = (),
) -> None:
    partial = path.with_suffix(".partial")
    # No fsync: after a power failure the checksums expose a torn file, and the training restarts with the same result.
    # Not compressed: random float32 weights shrink to 93 %, in 35 times the time.
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, array in zip(_members(len(arrays), len(further)), [*arrays, *further], strict=True):
            # zipfile must know in advance that a member may exceed 2 GiB.
            with archive.open(name, "w", force_zip64=True) as member:
                _write_array(member, array)
        archive.writestr(_STATE_MEMBER, json.dumps(state))
    os.replace(partial, path)


def _members(num_arrays: int, num_further: int) -> list[str]:
    """Return the names of the arrays of variables, then those of further arrays."""
    # By position, because automatic layer names depend on how many models the process has built before.
    variables = [f"{number:04d}.npy" for number in range(num_arrays)]
    return variables + [f"further-{number:04d}.npy" for number in range(num_further)]


def _counts(names: Sequence[str]) -> tuple[int, int]:
    """Return the number of arrays of variables and that of further arrays."""
    num_further = sum(name.startswith("further-") for name in names)
    return len(names) - 1 - num_further, num_further


def _write_array(member: IO[bytes], array: npt.NDArray[Any]) -> None:
    """Write an array in the format of `np.save`, which would copy it in chunks into anything but a plain file."""
    # Version 1.0, whose headers hold up to 64 KiB: that of a plain array takes 128 bytes.
    np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
    # `reshape` because a scalar, such as the optimizer's step count, cannot be viewed as bytes. Nothing is copied.
    member.write(array.reshape(-1).view(np.uint8).data)


def _load(path: Path, variables: list[Any]) -> list[npt.NDArray[Any]]:
    with zipfile.ZipFile(path) as archive:
        num_arrays, num_further = _counts(archive.namelist())
        if num_arrays != len(variables):
            raise ModelError(f"{path}: holds another model ({num_arrays} arrays, not {len(variables)})")
        names = _members(num_arrays, num_further)
        for number, variable in enumerate(variables):
            array = _read_array(archive, names[number])
            if array.shape != tuple(variable.shape):
                raise ModelError(
                    f"{path}: holds another model (array {number} is {array.shape}, not {tuple(variable.shape)})"
                )
            variable.assign(array)
        return [_read_array(archive, name) for name in names[num_arrays:]]


def _read_array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(name) as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def inherit_checkpoint(parent_folder: Path, folder: Path) -> None:
    """Give a promoted trial its parent's checkpoint if it has none of its own.

    If the parent's is missing (another machine, a cleaned disk), it starts at its first epoch, with the same result.
    """
    if (folder / CHECKPOINT).exists() or not (parent_folder / CHECKPOINT).exists():
        return
    for path in sorted(parent_folder.glob("kept-*.weights")):
        _link_or_copy(path, folder / path.name)
    # Last: with it the folder can be resumed from.
    _link_or_copy(parent_folder / CHECKPOINT, folder / CHECKPOINT)


def _link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, which is safe because checkpoints are replaced as a whole and never modified in place."""
    partial_path = target.with_suffix(".partial")
    # A killed attempt may have left it, and `os.link` does not overwrite.
    partial_path.unlink(missing_ok=True)
    try:
        os.link(source, partial_path)
    except OSError:  # a file system without hard links
        shutil.copy2(source, partial_path)
    partial_path.replace(target)
