"""The user's callbacks in a training: copies that write to paths of their own, and their state in its checkpoints.

Of Keras's own callbacks it is known, class by class, what they remember from one epoch to the next, so that a training
with them resumes as if it had never stopped. With any other callback, a subclass included, or with a version of Keras
whose classes hold something else, a training restarts at its first epoch.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import numpy.typing as npt
from keras_tuner.src.engine import tuner_utils

from fakeface_lab.backend import keras, keras_tuner, tf

__all__ = ["CallbackStates", "copy_callbacks", "have_known_state", "hparams_callbacks", "require_copyable"]


@dataclass(frozen=True)
class _Attributes:
    """All attributes of one of Keras's classes.

    Attributes:
        state: what it remembers from one epoch to the next.
        settings: the user's; a state fits only a callback with equal ones.
        others: without effect on the result, or set anew by each training or epoch.
    """

    state: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


_MONITOR = ("monitor", "mode", "min_delta")

# Read from the source of Keras 3.15.
_ATTRIBUTES: dict[type, _Attributes] = {
    keras.callbacks.EarlyStopping: _Attributes(
        state=("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
        settings=(*_MONITOR, "patience", "baseline", "restore_best_weights", "start_from_epoch"),
        others=("monitor_op", "verbose"),
    ),
    keras.callbacks.ReduceLROnPlateau: _Attributes(
        state=("wait", "best", "cooldown_counter"),
        settings=(*_MONITOR, "factor", "patience", "cooldown", "min_lr"),
        others=("monitor_op", "verbose"),
    ),
    keras.callbacks.LearningRateScheduler: _Attributes(others=("schedule", "verbose")),
    keras.callbacks.ModelCheckpoint: _Attributes(
        state=("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
        # The path too: a trial promoted by Hyperband lacks the files that its parent's first epochs left elsewhere.
        settings=(*_MONITOR, "filepath", "save_best_only", "save_weights_only", "save_freq"),
        others=("monitor_op", "verbose"),
    ),
    keras.callbacks.CSVLogger: _Attributes(
        state=("keys",),
        settings=("sep",),
        others=("filename", "append", "append_header", "writer", "csv_file"),
    ),
    keras.callbacks.TensorBoard: _Attributes(
        state=("_global_train_batch", "_global_test_batch"),
        others=(
            "log_dir", "histogram_freq", "write_graph", "write_images", "write_steps_per_second", "update_freq",
            "embeddings_freq", "embeddings_metadata", "_start_batch", "_stop_batch", "_profiler_started",
            "_batch_trace_context", "_is_tracing", "_should_trace", "_previous_epoch_iterations",
            "_train_accumulated_time", "_batch_start_time", "_summary_module", "_writers", "_prev_summary_state",
        ),
    ),
    keras.callbacks.TerminateOnNaN: _Attributes(others=("raise_error",)),
    keras.callbacks.ProgbarLogger: _Attributes(
        others=("seen", "progbar", "target", "verbose", "epochs", "_called_in_fit")
    ),
    # What it remembers dies with the copy.
    keras.callbacks.History: _Attributes(others=("history",)),
}  # fmt: skip

# Set by the first training, or the same for every callback.
_NOT_LISTED = {"_model", "params", "best_epoch", "_current_epoch", "epoch"}

_BACKUP_PATHS = {"_weights_path", "_training_metadata_path", "_prev_weights_path", "_prev_training_metadata_path"}


def require_copyable(callbacks: Sequence[Any]) -> None:
    """Raise FatalValueError, as KerasTuner does, if a callback cannot be copied."""
    for callback in callbacks:
        try:
            copy.deepcopy(callback)
        except Exception as err:  # whatever the user's object raises
            reason = str(err).partition("\n")[0]
            raise keras_tuner.errors.FatalValueError(
                f"callback {type(callback).__name__}: copy.deepcopy fails ({reason}), but callbacks are copied for "
                f"each trial; create what cannot be copied, such as an open file or a lock, in on_train_begin"
            ) from err


def copy_callbacks(callbacks: Sequence[Any], name: str, execution: int) -> list[Any]:
    """Return copies for one training; what they write goes to the folder `name/executionN` below the user's path.

    CSV files and backups that an earlier attempt left there are removed: `CSVLogger(append=True)` and BackupAndRestore
    would continue them in a training that restarts. A training that resumes gets its CSV file from its checkpoint.
    """
    copies = copy.deepcopy(list(callbacks))
    # Once each: the same callback may be given twice.
    for callback in {id(one): one for one in copies}.values():
        _separate(callback, f"{name}/execution{execution}")
    return copies


def _separate(callback: Any, folder: str) -> None:
    if isinstance(callback, keras.callbacks.TensorBoard):
        callback.log_dir = f"{str(callback.log_dir).rstrip('/')}/{folder}"
    elif isinstance(callback, keras.callbacks.ModelCheckpoint):
        callback.filepath = _moved(callback.filepath, folder)
    elif isinstance(callback, keras.callbacks.CSVLogger):
        callback.filename = _moved(callback.filename, folder)
        # The other classes create their folders themselves.
        Path(callback.filename).parent.mkdir(parents=True, exist_ok=True)
        Path(callback.filename).unlink(missing_ok=True)
    elif isinstance(callback, keras.callbacks.BackupAndRestore):
        callback.backup_dir = f"{str(callback.backup_dir).rstrip('/')}/{folder}"
        for attribute in _BACKUP_PATHS & vars(callback).keys():
            path = f"{callback.backup_dir}/{Path(getattr(callback, attribute)).name}"
            setattr(callback, attribute, path)
            if tf.io.gfile.exists(path):
                tf.io.gfile.remove(path)


def _moved(path: str, folder: str) -> str:
    # Not by pathlib, which turns gs:// into gs:/.
    parent, slash, name = path.replace(os.sep, "/").rpartition("/")
    return f"{parent}{slash}{folder}/{name}"


def hparams_callbacks(callbacks: Sequence[Any], hp: keras_tuner.HyperParameters, trial_id: str) -> list[Any]:
    """Return a callback per TensorBoard one, as KerasTuner adds it: it writes the values for the tab HPARAMS."""
    folders = [callback.log_dir for callback in callbacks if isinstance(callback, keras.callbacks.TensorBoard)]
    if not folders:
        return []
    from tensorboard.plugins.hparams import api  # half a second, for these callbacks only

    converted = tuner_utils.convert_hyperparams_to_hparams(hp, api)
    # A hyperparameter may be registered under several conditions; the plugin refuses a name that is there twice.
    values = {key.name: (key, value) for key, value in converted.items()}
    return [api.KerasCallback(folder, dict(values.values()), trial_id) for folder in folders]


def have_known_state(callbacks: Sequence[Any]) -> bool:
    """Return whether `CallbackStates` can capture all that the callbacks remember from one epoch to the next."""
    return all(map(_has_known_state, callbacks))


def _has_known_state(callback: Any) -> bool:
    attributes = _ATTRIBUTES.get(type(callback))
    if attributes is None:
        return False
    # An object with `__call__` may remember what it has returned.
    if isinstance(callback, keras.callbacks.LearningRateScheduler) and not isinstance(callback.schedule, FunctionType):
        return False
    expected = {*attributes.state, *attributes.settings, *attributes.others}
    return set(vars(callback)) - _NOT_LISTED == expected - _NOT_LISTED


class CallbackStates(keras.callbacks.Callback):
    """Keras callback that captures the state of the callbacks before it, and puts it back when training resumes.

    They reset their state in `on_train_begin`, so this one, whose `on_train_begin` restores it, comes after them.

    Args:
        callbacks: with known state; not trained with yet.
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        super().__init__()
        self._callbacks = list(callbacks)
        # Before the training, which changes the sign of `min_delta`.
        self._settings = [_settings(callback) for callback in callbacks]
        self._loaded: list[dict[str, Any]] = []

    def capture(self) -> tuple[list[dict[str, Any]], list[npt.NDArray[Any]]]:
        """Return the states as JSON, and the arrays that they refer to."""
        arrays: list[npt.NDArray[Any]] = []
        states = []
        for callback, settings in zip(self._callbacks, self._settings, strict=True):
            values = {name: getattr(callback, name) for name in _ATTRIBUTES[type(callback)].state}
            state = {"settings": settings, "values": {name: _pack(value, arrays) for name, value in values.items()}}
            if isinstance(callback, keras.callbacks.CSVLogger):
                # Keras writes on if someone has deleted the file.
                path = Path(callback.filename)
                content = path.read_bytes() if path.exists() else b""
                state["file"] = _pack(np.frombuffer(content, np.uint8), arrays)
            states.append(state)
        return states, arrays

    def fits(self, states: Sequence[Mapping[str, Any]]) -> bool:
        """Return whether states were captured from callbacks of the same classes with the same settings."""
        return [state["settings"] for state in states] == self._settings

    def load(self, states: Sequence[Mapping[str, Any]], arrays: Sequence[npt.NDArray[Any]]) -> None:
        """Take captured states that fit, for the beginning of the training, and bring back the CSV files."""
        self._loaded = [{name: _unpack(value, arrays) for name, value in state["values"].items()} for state in states]
        for callback, state in zip(self._callbacks, states, strict=True):
            if isinstance(callback, keras.callbacks.CSVLogger):
                Path(callback.filename).write_bytes(_unpack(state["file"], arrays).tobytes())
                callback.append = True

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Put the loaded states back, if any."""
        loaded, self._loaded = self._loaded, []
        for callback, values in zip(self._callbacks, loaded, strict=False):
            for name, value in values.items():
                setattr(callback, name, value)


def _settings(callback: Any) -> str:
    """Return class and settings as one text."""
    values = {name: getattr(callback, name) for name in _ATTRIBUTES[type(callback)].settings}
    if "filepath" in values:
        values["filepath"] = str(Path(values["filepath"]).absolute())
    return f"{type(callback).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"


_ARRAY = "array"


def _pack(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    """Return a value as JSON; arrays, and numbers of NumPy's types, go to `arrays`."""
    if isinstance(value, (list, tuple)):
        return [_pack(part, arrays) for part in value]
    # By type: NumPy's float64 is a float, but Keras compares it in another precision than Python's.
    if value is None or type(value) in (bool, int, float, str):
        return value
    arrays.append(np.asarray(value, order="C"))
    return {_ARRAY: len(arrays) - 1}


def _unpack(packed: Any, arrays: Sequence[npt.NDArray[Any]]) -> Any:
    if isinstance(packed, list):
        return [_unpack(part, arrays) for part in packed]
    # The index turns an array without dimensions into a number.
    return arrays[packed[_ARRAY]][()] if isinstance(packed, dict) else packed
