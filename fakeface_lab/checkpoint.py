"""Epoch checkpoints: everything that a training needs to go on as if it had never stopped, in one file.

A checkpoint holds the model's variables (weights and the seed generators behind dropout), the optimizer's variables,
and a JSON state. It is a zip of `.npy` members: no pickle, and each member carries a checksum.
"""

import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fakeface_lab.backend import keras
from fakeface_lab.errors import ModelError

__all__ = ["load_checkpoint", "load_weights", "read_state", "save_checkpoint", "save_weights"]

_STATE_MEMBER = "state.json"


def save_checkpoint(path: Path, model: keras.Model, state: dict[str, Any]) -> None:
    """Write model, optimizer and state, replacing the file in one step: a killed write leaves the old one."""
    _write(path, [*model.variables, *model.optimizer.variables], state)


def save_weights(path: Path, model: keras.Model) -> None:
    """Write the model's variables without the optimizer's."""
    _write(path, model.variables, {})


def read_state(path: Path) -> dict[str, Any] | None:
    """Return the state of a checkpoint, empty for a weights file; None where there is none or it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            state: dict[str, Any] = json.loads(archive.read(_STATE_MEMBER))
            return state if archive.testzip() is None else None
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile):
        # All that zipfile raises for flipped bits: in a header they look like encryption or a later zip version.
        return None


def load_checkpoint(path: Path, model: keras.Model) -> None:
    """Restore model and optimizer from a file that `read_state` found whole.

    Raises:
        ModelError: the checkpoint belongs to another model.
    """
    # A compiled model makes the optimizer's slots at its first step; restoring needs them now.
    model.optimizer.build(model.trainable_variables)
    _load(path, [*model.variables, *model.optimizer.variables])


def load_weights(path: Path, model: keras.Model) -> None:
    """Restore what `save_weights` wrote, from a file that `read_state` found whole.

    Raises:
        ModelError: the weights belong to another model.
    """
    _load(path, model.variables)


def _write(path: Path, variables: Iterable[Any], state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    # No fsync: after a power cut the checksums tell a torn file from a whole one, and the training starts over with
    # the same result.
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for number, variable in enumerate(variables):
            with archive.open(f"{number:04d}.npy", "w", force_zip64=True) as member:
                _write_array(member, _view(variable))
        archive.writestr(_STATE_MEMBER, json.dumps(state))
    os.replace(partial, path)


def _write_array(member: IO[bytes], array: npt.NDArray[Any]) -> None:
    """Write an array as `np.save` does; that would copy it piece by piece into anything but a plain file."""
    np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
    member.write(array.reshape(-1).view(np.uint8).data)


def _view(variable: Any) -> npt.NDArray[Any]:
    """Return the variable's values without a copy: of this network's 553 MB one alone is 184 MB."""
    return np.asarray(variable.value.read_value(), order="C")


def _load(path: Path, variables: list[Any]) -> None:
    with zipfile.ZipFile(path) as archive:
        num_arrays = len(archive.namelist()) - 1
        if num_arrays != len(variables):
            raise ModelError(f"{path}: holds another model ({num_arrays} arrays, not {len(variables)})")
        for number, variable in enumerate(variables):
            with archive.open(f"{number:04d}.npy") as member:
                array = np.lib.format.read_array(member, allow_pickle=False)
            if array.shape != tuple(variable.shape):
                raise ModelError(
                    f"{path}: holds another model (array {number} is {array.shape}, not {tuple(variable.shape)})"
                )
            variable.assign(array)
