"""What happens at the end of each epoch: checkpoint, report, best weights, divergence guard. No MLflow in here."""

import base64
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from fakeface_lab.backend import keras, tf
from fakeface_lab.errors import TrainingDivergedError
from fakeface_lab.training.checkpoint import (
    BackgroundWriter,
    Snapshot,
    load_checkpoint,
    load_weights,
    read_state,
    save_checkpoint,
    save_weights,
)

__all__ = ["EpochRecord", "Listener", "TrainingRecorder"]


@dataclass(frozen=True)
class EpochRecord:
    """What one finished epoch measured.

    Attributes:
        epoch: counted from 1.
        ended_at_ms: Unix time in ms; kept in the checkpoint, so that logging the epoch again changes nothing.
        metrics: `loss`, `accuracy`, `val_*` where there is validation data, `learning_rate`, `epoch_secs`.
    """

    epoch: int
    ended_at_ms: int
    metrics: dict[str, float]


class Listener(Protocol):
    """Who wants to know how a training goes."""

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        """Report progress; called after each training step, counts from 1."""

    def epoch_ended(self, record: EpochRecord) -> None:
        """Take a finished epoch; its checkpoint is already on disk, so steps of the next may have come before."""


@dataclass
class _Progress:
    """What a checkpoint's state holds beside the arrays."""

    records: list[EpochRecord] = field(default_factory=list)
    kept_epoch: int = 0
    scores: list[str] = field(default_factory=list)  # of each epoch, float32, in base64

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "_Progress":
        records = [EpochRecord(**record) for record in state["records"]]
        return cls(records, state["kept_epoch"], state.get("scores", []))


class TrainingRecorder(keras.callbacks.Callback):
    """Keras callback that checkpoints each epoch, reports it, keeps the best weights and stops on divergence."""

    def __init__(
        self,
        folder: Path,
        listener: Listener,
        *,
        keep: Literal["last", "best"] = "last",
        objective: str = "val_loss",
        direction: Literal["min", "max"] = "min",
        score: Callable[[keras.Model], npt.NDArray[np.float32]] | None = None,
    ) -> None:
        super().__init__()
        self._score = score
        self._folder = folder
        self._listener = listener
        self._keep = keep
        self._objective = objective
        self._sign = 1.0 if direction == "min" else -1.0
        self._progress = _Progress()
        self._snapshot = Snapshot()
        self._writer = BackgroundWriter()
        self._epoch = 0
        self._started = 0.0

    @property
    def records(self) -> list[EpochRecord]:
        """Every finished epoch, those before a restart included."""
        return self._progress.records

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights count, from 1."""
        return self._progress.kept_epoch

    @property
    def epoch_scores(self) -> npt.NDArray[np.float32] | None:
        """What `score` returned after each epoch, float32 (num_epochs, ...); None unless it was asked after each."""
        scores = self._progress.scores
        if not scores or len(scores) != len(self.records):
            return None
        return np.stack([np.frombuffer(base64.b64decode(text), dtype="<f4") for text in scores])

    def restore(self, model: keras.Model) -> int:
        """Bring `model` to its last checkpoint and return how many epochs are done: 0 where a file is damaged."""
        path = self._folder / "epoch.ckpt"
        state = read_state(path)
        if state is None:
            return 0
        progress = _Progress.from_state(state)
        if self._keep == "best" and read_state(self._kept_path(progress.kept_epoch)) is None:
            return 0
        load_checkpoint(path, model)
        self._progress = progress
        return len(self.records)

    def restore_kept(self, model: keras.Model) -> None:
        """Give `model` the weights of the kept epoch."""
        if self.records and self.kept_epoch != self.records[-1].epoch:
            load_weights(self._kept_path(self.kept_epoch), model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Start the epoch's clock."""
        self._epoch = epoch + 1
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Report the step, and stop where the loss is no number any more."""
        num_steps = self.params.get("steps") or 0
        self._writer.settle(wait=False)
        self._require_finite(logs or {}, f"epoch {self._epoch}, step {batch + 1} of {num_steps}")
        self._listener.step_ended(self._epoch, batch + 1, num_steps)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write the checkpoint beside the next epoch and report after it: what was reported can be continued from."""
        metrics = {name: float(value) for name, value in (logs or {}).items()}
        self._require_finite(metrics, f"epoch {epoch + 1}, validation")
        # ReLU turns NaN into 0: weights may be lost while the loss still looks like a number. A sum tells in a tenth
        # of the time: one NaN or infinity makes it NaN or infinite.
        if not all(math.isfinite(float(tf.reduce_sum(weight.value))) for weight in self.model.trainable_variables):
            self._diverge("a weight became NaN or infinite", f"epoch {epoch + 1}, by its last step")
        metrics["learning_rate"] = float(np.asarray(self.model.optimizer.learning_rate))
        if self._score is not None:
            scores = self._score(self.model).astype("<f4")
            self._progress.scores.append(base64.b64encode(scores.tobytes()).decode())
        metrics["epoch_secs"] = time.perf_counter() - self._started
        record = EpochRecord(epoch + 1, time.time_ns() // 1_000_000, metrics)
        previous = self.kept_epoch
        if self._is_kept(record):
            self._progress.kept_epoch = record.epoch
        self._progress.records.append(record)
        self._write(previous, has_weights=self._keep == "best" and previous != self.kept_epoch, has_checkpoint=True)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Wait for the last epoch's checkpoint."""
        self._writer.settle(wait=True)

    def _write(self, previous: int, *, has_weights: bool, has_checkpoint: bool) -> None:
        """Start to write the last epoch: its weights where they are the best so far, its checkpoint.

        The weights of the `previous` best epoch go when no checkpoint needs them any more.
        """
        self._writer.settle(wait=True)
        record, kept_epoch, state = self.records[-1], self.kept_epoch, asdict(self._progress)
        snapshot = self._snapshot.take(self.model) if has_weights or has_checkpoint else self._snapshot

        def write() -> None:
            if has_weights:
                save_weights(self._kept_path(kept_epoch), snapshot)
            if has_checkpoint:
                save_checkpoint(self._folder / "epoch.ckpt", snapshot, state)
            if previous != kept_epoch:
                self._kept_path(previous).unlink(missing_ok=True)

        self._writer.submit(write, lambda: self._report(record))

    def _report(self, record: EpochRecord) -> None:
        self._listener.epoch_ended(record)

    def _is_kept(self, record: EpochRecord) -> bool:
        if self._keep == "last" or not self.records:
            return True
        best = self.records[self.kept_epoch - 1].metrics[self._objective]
        return self._sign * record.metrics[self._objective] < self._sign * best

    def _kept_path(self, epoch: int) -> Path:
        return self._folder / f"kept-{epoch}.weights"

    def _require_finite(self, logs: dict[str, float], where: str) -> None:
        for name in ("loss", "val_loss"):
            value = float(logs.get(name, 0.0))
            if not math.isfinite(value):
                self._diverge(f"{name} became {value}", where)

    def _diverge(self, what: str, where: str) -> NoReturn:
        self._writer.settle(wait=True)
        raise TrainingDivergedError(f"training diverged: {what} in {where}; lower the learning rate or change the seed")
