"""The epochs that a training without checkpoints has reported: if it restarts, they are not reported again."""

import json
from dataclasses import asdict
from pathlib import Path

from fakeface_lab.files import replace_text
from fakeface_lab.training.recorder import EpochRecord, Listener

__all__ = ["EpochJournal"]


class EpochJournal:
    """Reports epochs to a listener, each once over all attempts.

    Args:
        folder: of the run.
        listener: is told each epoch that no earlier attempt has reported.
    """

    def __init__(self, folder: Path, listener: Listener) -> None:
        self._path, self._listener = folder / "reported.json", listener
        self._reported = self._read()
        self.records: list[EpochRecord] = []

    def report(self, record: EpochRecord) -> None:
        """Report an epoch; one that an earlier attempt has reported with the same metrics keeps its time."""
        earlier = self._reported.get(record.epoch)
        if earlier is not None and earlier.equals(record):
            self.records.append(earlier)
            return
        # Written before it is reported: a kill in between loses the news of an epoch, and never reports one twice.
        self._reported[record.epoch] = record
        self.records.append(record)
        replace_text(self._path, json.dumps([asdict(one) for one in self._reported.values()]))
        # An epoch that measured something else is written again, but it is no progress: an earlier attempt got as far.
        if earlier is None:
            self._listener.epoch_ended(record)

    def _read(self) -> dict[int, EpochRecord]:
        """Return the reported epochs by number; none if the file is damaged."""
        try:
            records = [EpochRecord(**record) for record in json.loads(self._path.read_text())]
        except (OSError, ValueError, TypeError):
            return {}
        return {record.epoch: record for record in records}
