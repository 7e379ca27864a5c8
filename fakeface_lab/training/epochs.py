"""What a finished epoch has measured, who follows a training, and which of its epochs have been reported already."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from fakeface_lab.files import replace_text

__all__ = ["EpochJournal", "EpochRecord", "Listener"]

_MEASURED = ("epoch_secs",)  # differs between two equal trainings


@dataclass(frozen=True)
class EpochRecord:
    """What one finished epoch measured.

    Attributes:
        epoch: counted from 1.
        ended_at_ms: Unix time in ms; kept in the checkpoint, so that logging the epoch again changes nothing.
        metrics: `loss`, `accuracy`, `val_*` if there is validation data, `learning_rate`, `epoch_secs`.
        execution: number of the training among those of one trial, from 0; None if there is only one.
    """

    epoch: int
    ended_at_ms: int
    metrics: dict[str, float]
    execution: int | None = None

    def equals(self, other: "EpochRecord") -> bool:
        """Return whether both measured the same, apart from times."""
        mine, others = ({k: v for k, v in one.metrics.items() if k not in _MEASURED} for one in (self, other))
        return mine == others


class Listener(Protocol):
    """Follows a training."""

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        """Take a finished training step; counted from 1."""

    def epoch_ended(self, record: EpochRecord) -> None:
        """Take a finished epoch, once its checkpoint is on disk."""


class EpochJournal:
    """Reports the epochs of a training without checkpoints to a listener, each once over all attempts.

    Epochs that an earlier attempt has reported are not progress, and the run already has their points.

    Args:
        folder: of the run.
        listener: is told each epoch that no earlier attempt has reported.
    """

    def __init__(self, folder: Path, listener: Listener) -> None:
        self._path, self._listener = folder / "reported.json", listener
        self._reported = self._read()

    def as_reported(self, record: EpochRecord) -> EpochRecord:
        """Return an earlier attempt's record if it measured the same, so that the run gets no second point."""
        earlier = self._reported.get(record.epoch)
        return earlier if earlier is not None and earlier.equals(record) else record

    def report(self, record: EpochRecord) -> None:
        """Write an epoch to the journal, and tell the listener if it is new."""
        is_new = record.epoch not in self._reported
        # Written before it is reported: a kill in between loses the news of an epoch, and never reports one twice.
        self._reported[record.epoch] = record
        replace_text(self._path, json.dumps([asdict(one) for one in self._reported.values()]))
        if is_new:
            self._listener.epoch_ended(record)

    def _read(self) -> dict[int, EpochRecord]:
        """Return the reported epochs by number; empty if the file is damaged, and its epochs are reported again."""
        try:
            records = [EpochRecord(**record) for record in json.loads(self._path.read_text())]
        except (OSError, ValueError, TypeError):
            return {}
        return {record.epoch: record for record in records}
