"""Epoch checkpoints: everything that a training needs to resume as if it had never stopped, in one file.

A checkpoint holds the model's variables (weights and the seed generators behind dropout), the optimizer's variables,
further arrays, and a JSON state. It is a zip of `.npy` members: no pickle, and each member has a checksum. It is
written from the variables themselves while the training stands still: a copy of the documented network's, to be
written beside the next epoch, takes 553 MB, and slows that epoch by more than the writing takes (docs/performance.md).
"""

import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fakeface_lab.backend import keras
from fakeface_lab.errors import ModelError

__all__ = [
    "CHECKPOINT",
    "inherit_checkpoint",
    "link_or_copy",
    "load_checkpoint",
    "load_weights",
    "read_state",
    "save_checkpoint",
    "save_weights",
]

CHECKPOINT = "epoch.ckpt"
_STATE_MEMBER = "state.json"


def save_checkpoint(
    path: Path, model: keras.Model, state: dict[str, Any], further: Sequence[npt.NDArray[Any]] = ()
) -> None:
    """Write model, optimizer, state and further arrays, replacing the file atomically.

    A killed write leaves the old file. Under another name, which `link_or_copy` gives it, it stays in any case.
    """
    # A custom training loop may do without a Keras optimizer.
    slots = getattr(getattr(model, "optimizer", None), "variables", [])
    _write(path, [*model.variables, *slots], state, further)


def save_weights(path: Path, model: keras.Model) -> None:
    """Write the model's variables without the optimizer's."""
    _write(path, model.variables, {})


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
    variables = [*model.variables, *model.optimizer.variables]
    with zipfile.ZipFile(path) as archive:
        num_arrays, num_further = _counts(archive.namelist())
        if num_arrays != len(variables):
            raise ModelError(f"{path}: holds another model ({num_arrays} arrays, not {len(variables)})")
        _assign(archive, variables, path)
        return [_read_array(archive, name) for name in _members(num_arrays, num_further)[num_arrays:]]


def load_weights(path: Path, model: keras.Model) -> None:
    """Restore the model's variables from a checkpoint or what `save_weights` wrote, a file found intact.

    Raises:
        ModelError: the weights belong to another model.
    """
    with zipfile.ZipFile(path) as archive:
        num_arrays, _ = _counts(archive.namelist())
        if num_arrays < len(model.variables):
            raise ModelError(f"{path}: holds another model ({num_arrays} arrays, not {len(model.variables)})")
        _assign(archive, model.variables, path)


def _write(
    path: Path, variables: Sequence[Any], state: dict[str, Any], further: Sequence[npt.NDArray[Any]] = ()
) -> None:
    partial = path.with_suffix(".partial")
    # One at a time, as those of a GPU are copied; `read_value` avoids a copy by TensorFlow.
    arrays = itertools.chain((np.asarray(variable.value.read_value()) for variable in variables), further)
    # No fsync: after a power failure the checksums expose a torn file, and the training restarts with the same result.
    # Not compressed: random float32 weights shrink to 93 %, in 35 times the time.
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, array in zip(_members(len(variables), len(further)), arrays, strict=True):
            # zipfile must know in advance that a member may exceed 2 GiB.
            with archive.open(name, "w", force_zip64=True) as member:
                _write_array(member, array)
        archive.writestr(_STATE_MEMBER, json.dumps(state))
    os.replace(partial, path)


def _members(num_arrays: int, num_further: int = 0) -> list[str]:
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


def _assign(archive: zipfile.ZipFile, variables: Sequence[Any], path: Path) -> None:
    """Give the variables the first arrays of a file."""
    for number, (name, variable) in enumerate(zip(_members(len(variables)), variables, strict=True)):
        array = _read_array(archive, name)
        if array.shape != tuple(variable.shape):
            raise ModelError(
                f"{path}: holds another model (array {number} is {array.shape}, not {tuple(variable.shape)})"
            )
        variable.assign(array)


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
        link_or_copy(path, folder / path.name)
    # Last: with it the folder can be resumed from.
    link_or_copy(parent_folder / CHECKPOINT, folder / CHECKPOINT)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a checkpoint another name too, which keeps its content: checkpoints are replaced as a whole."""
    partial_path = target.with_suffix(".partial")
    # A killed attempt may have left it, and `os.link` does not overwrite.
    partial_path.unlink(missing_ok=True)
    try:
        os.link(source, partial_path)
    except OSError:  # a file system without hard links
        shutil.copy2(source, partial_path)
    partial_path.replace(target)
