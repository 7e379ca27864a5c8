"""Records the epochs of any Keras training: by any objective, of any loop that calls its callbacks.

It keeps the weights of the best epoch and, where a training can go on, its checkpoint.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.errors import SearchError
from fakeface_lab.files import replace_text
from fakeface_lab.training.checkpoint import Snapshot, load_weights, save_weights
from fakeface_lab.training.recorder import EpochRecord, Listener, TrainingRecorder

__all__ = ["EpochKeeper"]

_MEASURED = ("epoch_secs",)  # differs between two equal trainings


class EpochKeeper(TrainingRecorder):
    """Records epochs by any objective, of any training loop that calls its callbacks.

    An epoch that an earlier attempt has reported is not reported again: it is no progress, and the run has its point.
    With the same figures it keeps its time too, so that the run gets no second point for it in the end.

    Args:
        folder: of the run.
        listener: takes each new epoch.
        objective: what the weights are judged by.
        begin_epoch: called with the number of each epoch that begins, from 0.
        can_resume: whether checkpoints are of use.
        needs_objective: whether an epoch, counted from 1, must have the objective.
    """

    def __init__(
        self, folder: Path, listener: Listener, objective: keras_tuner.Objective, begin_epoch: Callable[[int], None],
        *, can_resume: bool, needs_objective: Callable[[int], bool],
    ) -> None:  # fmt: skip
        super().__init__(folder, listener, keep="best", objective=objective.name, direction=objective.direction)
        self.params: dict[str, Any] = {}
        self._kt_objective, self._begin_epoch = objective, begin_epoch
        self._can_resume, self._needs_objective = can_resume, needs_objective
        self._journal = folder / "reported.json"
        self._reported = _read_journal(self._journal)

    def set_model(self, model: keras.Model) -> None:
        """Start the clock: a training loop of the user's own may never say that an epoch begins."""
        super().set_model(model)
        super().on_epoch_begin(len(self.records))

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Start the epoch's clock, and take its order of the data."""
        super().on_epoch_begin(len(self.records))
        self._begin_epoch(epoch)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Write the weights if they are the best, and the checkpoint, beside the next epoch; report after it."""
        record = self._record(logs or {})
        previous, name = self.kept_epoch, self._objective
        # Without a figure to judge by, as before the first validation, the last weights count.
        is_judged = bool(self.records) and name in self.records[previous - 1].metrics
        if not is_judged or (name in record.metrics and self._is_kept(record)):
            self._progress.kept_epoch = record.epoch
        self._progress.records.append(record)
        self._write(previous, has_weights=self.kept_epoch == record.epoch, has_checkpoint=self._can_resume)
        super().on_epoch_begin(len(self.records))

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add figures that the user's `fit` returned: they describe the weights as they are in the end."""
        self._writer.settle(wait=True)
        plain = {name: float(value) for name, value in metrics.items()}
        if self.records:
            last = self.records.pop()
            record = EpochRecord(last.epoch, last.ended_at_ms, {**last.metrics, **plain})
        else:
            record = self._same_as_reported(EpochRecord(1, time.time_ns() // 1_000_000, plain))
        save_weights(self._kept_path(record.epoch), Snapshot().take(self.model))
        self._progress.records.append(record)
        self._progress.kept_epoch = record.epoch
        self._report(record)

    def give_kept(self, model: keras.Model) -> None:
        """Give `model` the kept weights, whatever a callback did to them after the last epoch."""
        self._writer.settle(wait=True)  # a training loop of the user's own may never say that it ends
        load_weights(self._kept_path(self.kept_epoch), model)

    def _record(self, logs: Mapping[str, Any]) -> EpochRecord:
        metrics = {name: float(value) for name, value in logs.items() if np.ndim(value) == 0}
        self._require_finite(metrics, f"epoch {len(self.records) + 1}, validation")
        if self._kt_objective.has_value(metrics):
            metrics[self._objective] = float(self._kt_objective.get_value(metrics))
        elif self._needs_objective(len(self.records) + 1):
            raise SearchError(
                f"objective {self._objective}: an epoch has {', '.join(metrics)}; choose one of them, or give "
                f"validation_data for those that begin with val_"
            )
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None:
            metrics["learning_rate"] = float(np.asarray(optimizer.learning_rate))
        metrics["epoch_secs"] = time.perf_counter() - self._started
        return self._same_as_reported(EpochRecord(len(self.records) + 1, time.time_ns() // 1_000_000, metrics))

    def _same_as_reported(self, record: EpochRecord) -> EpochRecord:
        if len(self._reported) < record.epoch:
            return record
        earlier = EpochRecord(**self._reported[record.epoch - 1])
        return earlier if _compared(earlier) == _compared(record) else record

    def _report(self, record: EpochRecord) -> None:
        is_new = record.epoch > len(self._reported)
        self._reported[record.epoch - 1 : record.epoch] = [asdict(record)]
        replace_text(self._journal, json.dumps(self._reported))
        if is_new:
            self._listener.epoch_ended(record)


def _read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the epochs that were reported; a damaged file counts as absent: its epochs are reported again."""
    try:
        reported: list[dict[str, Any]] = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return reported


def _compared(record: EpochRecord) -> dict[str, float]:
    return {name: value for name, value in record.metrics.items() if name not in _MEASURED}
