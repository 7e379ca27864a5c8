"""The callback that records a training: checkpoints, epoch reports, best weights, divergence guard. No MLflow here."""

import base64
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from fakeface_lab.backend import keras, tf
from fakeface_lab.errors import SearchError, TrainingDivergedError
from fakeface_lab.training.callback_state import CallbackStates
from fakeface_lab.training.checkpoint import (
    CHECKPOINT,
    link_or_copy,
    load_checkpoint,
    load_weights,
    read_state,
    save_checkpoint,
    save_weights,
)
from fakeface_lab.training.epochs import EpochJournal, EpochRecord, Listener
from fakeface_lab.training.objective import Objective

__all__ = ["TrainingRecorder"]


@dataclass
class _Progress:
    """What a checkpoint's state holds in addition to the arrays."""

    records: list[EpochRecord] = field(default_factory=list)
    kept_epoch: int = 0
    scores: list[str] = field(default_factory=list)  # of each epoch, float32, in base64
    has_stopped: bool = False

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "_Progress":
        records = [EpochRecord(**record) for record in state["records"]]
        # A checkpoint of an earlier version has no scores.
        return cls(records, state["kept_epoch"], state.get("scores", []), state.get("has_stopped", False))


class TrainingRecorder(keras.callbacks.Callback):
    """Keras callback that checkpoints and reports each epoch, keeps the best weights and stops on divergence.

    It works with any training loop that calls its callbacks, and follows any metric of an epoch.

    Without checkpoints an interrupted training restarts at its first epoch. Epochs that an earlier attempt has reported
    are then not reported again: they are not progress, and the run already has their points.

    Args:
        folder: of the run; for checkpoints and weights.
        listener: is called after each step and epoch.
        objective: judges an epoch; this project's or KerasTuner's class.
        keep: which epoch's weights are kept.
        has_checkpoints: whether the training can resume from an epoch.
        needs_objective: whether an epoch, counted from 1, must have measured the objective.
        score: called after each epoch; its results become `epoch_scores`.
        callback_states: of the other callbacks; its place is between them and this one.
        last_epoch: the training's last one, if nothing will continue it: it is not written, as the training's outcome
            soon holds what is left of it, and not reported before `report_last`. None if something may.
    """

    def __init__(
        self,
        folder: Path,
        listener: Listener,
        objective: Objective,
        *,
        keep: Literal["last", "best"] = "last",
        has_checkpoints: bool = True,
        needs_objective: Callable[[int], bool] = lambda epoch: False,
        score: Callable[[], npt.NDArray[np.float32]] | None = None,
        callback_states: CallbackStates | None = None,
        last_epoch: int | None = None,
    ) -> None:
        super().__init__()
        # Keras sets it in `fit` only, which a training loop of the user's own may not call.
        self.params: dict[str, Any] = {}
        self._folder, self._listener, self._objective, self._keep = folder, listener, objective, keep
        self._has_checkpoints, self._needs_objective, self._score = has_checkpoints, needs_objective, score
        self._callback_states = CallbackStates(()) if callback_states is None else callback_states
        self._last_epoch, self._saved_epoch = last_epoch, 0
        self._journal = None if has_checkpoints else EpochJournal(folder, listener)
        self._progress = _Progress()
        self._started = time.perf_counter()

    @property
    def records(self) -> list[EpochRecord]:
        """All finished epochs, including those before a restart."""
        return self._progress.records

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights are kept, from 1."""
        return self._progress.kept_epoch

    @property
    def has_stopped(self) -> bool:
        """Whether a callback, such as EarlyStopping, has ended the training after the last epoch."""
        return self._progress.has_stopped

    @property
    def has_objective(self) -> bool:
        """Whether the kept epoch has measured the objective."""
        return bool(self.records) and self._value(self.records[self.kept_epoch - 1]) is not None

    @property
    def epoch_scores(self) -> npt.NDArray[np.float32] | None:
        """Results of `score`, each flat: float32 (num_epochs, size); None unless it was called after every epoch."""
        scores = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in self._progress.scores]
        # Those of an earlier version, in a training that it began, have another size.
        if not scores or len(scores) != len(self.records) or len({len(one) for one in scores}) > 1:
            return None
        return np.stack(scores)

    def restore(self, model: keras.Model) -> int:
        """Restore `model` from its last checkpoint, and its callbacks; return the number of finished epochs.

        It is 0 if a file is damaged, or the callbacks are not those that the checkpoint was written with.
        """
        state = read_state(self._checkpoint) if self._has_checkpoints else None
        if state is None:
            return 0
        progress = _Progress.from_state(state)
        num_done = len(progress.records)
        # Without the best weights so far, it could not end as an uninterrupted training does.
        if progress.kept_epoch < num_done and read_state(self._kept_path(progress.kept_epoch)) is None:
            return 0
        callbacks = state.get("callbacks", [])
        if not self._callback_states.fits(callbacks):
            return 0
        self._callback_states.load(callbacks, load_checkpoint(self._checkpoint, model))
        self._progress, self._saved_epoch = progress, num_done
        return num_done

    @property
    def holds_kept_weights(self) -> bool:
        """Whether the model has the kept weights, unless another callback has changed them after the last epoch."""
        return self.kept_epoch == len(self.records)

    def load_kept_weights(self, model: keras.Model) -> None:
        """Load the kept weights into `model`, even if a callback has changed them after the last epoch."""
        if self.records:
            # Those of the epoch that the checkpoint is of have no other file.
            is_saved = self.kept_epoch == self._saved_epoch
            load_weights(self._checkpoint if is_saved else self._kept_path(self.kept_epoch), model)

    def set_model(self, model: keras.Model) -> None:
        """Start the clock: a user's own training loop may never report the beginning of an epoch."""
        super().set_model(model)
        self._started = time.perf_counter()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Start the epoch's clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Report the step, and stop if the loss is not finite."""
        # Keras does not know how many steps a generator has.
        num_steps, epoch = self.params.get("steps") or 0, len(self.records) + 1
        self._require_finite(logs or {}, f"epoch {epoch}, step {batch + 1} of {num_steps}")
        self._listener.step_ended(epoch, batch + 1, num_steps)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Write the checkpoint, then report the epoch, which is then safe; the last one is left to `report_last`."""
        # A metric may return an array, such as a confusion matrix, which is no point of a curve.
        record = self._measure({name: float(value) for name, value in (logs or {}).items() if np.ndim(value) == 0})
        previous = self.kept_epoch
        if self._is_kept(record):
            self._progress.kept_epoch = record.epoch
        self._progress.records.append(record)
        self._progress.has_stopped = bool(getattr(self.model, "stop_training", False))
        if record.epoch != self._last_epoch:
            self._write(previous)
            self._report(record)
        self._started = time.perf_counter()

    def report_last(self) -> None:
        """Report the last epoch of a training that nothing continues, now that its outcome is written."""
        if len(self.records) == self._last_epoch:
            self._report(self.records[-1])

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add metrics that a user's `fit` returned: they describe its final weights, which become the kept ones."""
        plain = {name: float(value) for name, value in metrics.items()}
        if self.records:
            last = self.records.pop()
            record = EpochRecord(last.epoch, last.ended_at_ms, {**last.metrics, **plain})
        else:
            record = self._as_reported(EpochRecord(1, time.time_ns() // 1_000_000, plain))
        save_weights(self._kept_path(record.epoch), self.model)
        self._saved_epoch = 0  # what the checkpoint holds is older
        self._progress.records.append(record)
        self._progress.kept_epoch = record.epoch
        self._report(record)

    @property
    def _checkpoint(self) -> Path:
        return self._folder / CHECKPOINT

    def _kept_path(self, epoch: int) -> Path:
        return self._folder / f"kept-{epoch}.weights"

    def _measure(self, metrics: dict[str, float]) -> EpochRecord:
        """Return the record of the epoch that has just ended.

        Raises:
            SearchError: it lacks the objective.
            TrainingDivergedError: the loss or a weight is not finite.
        """
        epoch = len(self.records) + 1
        self._require_finite(metrics, f"epoch {epoch}, validation")
        # ReLU turns NaN into 0, so weights may be NaN while the loss is still finite.
        if not all(_is_finite(weight.value) for weight in self.model.trainable_variables):
            self._diverge("a weight became NaN or infinite", f"epoch {epoch}, by its last step")
        if self._objective.has_value(metrics):
            metrics[self._objective.name] = float(self._objective.get_value(metrics))
        elif self._needs_objective(epoch):
            raise SearchError(
                f"objective {self._objective.name}: an epoch has {', '.join(metrics)}; choose one of them, or give "
                f"validation_data for those that begin with val_"
            )
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None:
            metrics["learning_rate"] = float(np.asarray(optimizer.learning_rate))
        if self._score is not None:
            scores = self._score().astype("<f4")
            # Exact, and shorter in JSON than decimals.
            self._progress.scores.append(base64.b64encode(scores.tobytes()).decode())
        metrics["epoch_secs"] = time.perf_counter() - self._started
        return self._as_reported(EpochRecord(epoch, time.time_ns() // 1_000_000, metrics))

    def _as_reported(self, record: EpochRecord) -> EpochRecord:
        return record if self._journal is None else self._journal.as_reported(record)

    def _value(self, record: EpochRecord) -> float | None:
        return record.metrics.get(self._objective.name)

    def _is_kept(self, record: EpochRecord) -> bool:
        best, value = self._value(self.records[self.kept_epoch - 1]) if self.records else None, self._value(record)
        # Without a value to compare with, as before the first validation, the last weights are kept.
        if self._keep == "last" or best is None:
            return True
        return value is not None and bool(self._objective.better_than(value, best))

    def _write(self, previous: int) -> None:
        """Write the latest epoch's checkpoint, and see that the kept weights are in a file.

        Those of the latest epoch are in its checkpoint; if they stay the best, that file gets a second name before the
        next one takes its place. The weights of the `previous` best epoch are deleted when no checkpoint needs them.
        """
        epoch = len(self.records)
        if self._has_checkpoints:
            # In this order: after any kill the checkpoint's best weights are on disk.
            if self.kept_epoch == self._saved_epoch:
                link_or_copy(self._checkpoint, self._kept_path(self.kept_epoch))
            callbacks, arrays = self._callback_states.capture()
            state = asdict(self._progress) | {"callbacks": callbacks}
            save_checkpoint(self._checkpoint, self.model, state, arrays)
            self._saved_epoch = epoch
        elif self.kept_epoch == epoch and self._keep == "best":
            save_weights(self._kept_path(epoch), self.model)
        if previous != self.kept_epoch:
            self._kept_path(previous).unlink(missing_ok=True)

    def _report(self, record: EpochRecord) -> None:
        if self._journal is None:
            self._listener.epoch_ended(record)
        else:
            self._journal.report(record)

    def _require_finite(self, logs: Mapping[str, Any], where: str) -> None:
        # Only the losses: a metric of the user's own may rightly be NaN in some epoch.
        for name in ("loss", "val_loss"):
            value = float(logs.get(name, 0.0))
            if not math.isfinite(value):
                self._diverge(f"{name} became {value}", where)

    def _diverge(self, what: str, where: str) -> NoReturn:
        raise TrainingDivergedError(f"training diverged: {what} in {where}; lower the learning rate or change the seed")


def _is_finite(weight: Any) -> bool:
    """Return whether the sum is finite: any NaN or infinity spoils it. Checking each number takes ten times as long."""
    # A sum of float16 would overflow beyond 65,504; bfloat16 has the range of float32.
    total = tf.reduce_sum(tf.cast(weight, tf.float32) if weight.dtype == tf.float16 else weight)
    return math.isfinite(float(total))
