"""What every training shares: the epoch's data order, and its outcome on disk and in MLflow.

The folder of a finished training has artifacts, the packaged model and, written last, the outcome.
"""

import json
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from fakeface_lab.backend import keras
from fakeface_lab.files import replace_text
from fakeface_lab.tracking.models import is_whole, log_model
from fakeface_lab.tracking.owner import host_facts, package_versions
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.training.epochs import EpochRecord

__all__ = [
    "ARTIFACTS",
    "MODEL",
    "Outcome",
    "empty_artifacts",
    "end_metrics",
    "epoch_order",
    "history_of",
    "log_kept_model",
    "log_metrics",
    "log_settings",
    "mean_metrics",
    "peak_rss_bytes",
    "read_outcome",
    "read_whole_outcome",
    "write_layers",
    "write_outcome",
]


def epoch_order(num_examples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of the examples in one epoch (0-based): int64 (num_examples,), a permutation."""
    # A sequence of both: with their sum, epoch 1 of seed 0 would have the order of epoch 0 of seed 1.
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


ARTIFACTS, MODEL = "artifacts", "model"
_OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """The numbers of a finished training.

    Attributes:
        records: of every epoch.
        kept_epoch: the epoch whose weights were kept, from 1.
        metrics: measured at the end of the training, by name.
        explanation: a sentence on how much of the accuracy a simple shortcut also reaches; empty if not measured.
        executions: those of each training, if it is the mean of several.
        score: what the user's own code returned as the objective; None if it is that of the kept epoch.
        found: hyperparameters that the training asked for and that are not in the search space yet, as KerasTuner
            serializes them.
        found_values: their values in this training, by name.
    """

    records: list[EpochRecord]
    kept_epoch: int
    metrics: dict[str, float]
    explanation: str = ""
    executions: Sequence["Outcome"] = ()
    score: float | None = None
    found: Sequence[dict[str, Any]] = ()
    found_values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Outcome":
        """Return the outcome that `asdict` has turned into plain values."""
        records = [EpochRecord(**record) for record in content["records"]]
        executions = [cls.from_json(execution) for execution in content.get("executions", ())]
        return cls(**{**content, "records": records, "executions": executions})

    @property
    def ended_at_ms(self) -> int:
        """When the kept epoch ended, Unix time in ms: the timestamp of all end metrics.

        The epoch's own metrics, which are logged with the model, then equal the points that the run already has.
        """
        return self.records[self.kept_epoch - 1].ended_at_ms

    def kept_metrics(self) -> dict[str, float]:
        """Return the metrics of the epoch whose weights were kept; of several trainings their mean."""
        if self.executions:
            return mean_metrics([execution.kept_metrics() for execution in self.executions])
        return self.records[self.kept_epoch - 1].metrics


def history_of(records: Sequence[EpochRecord]) -> dict[str, list[float]]:
    """Return the metrics of all epochs by name; NaN where one was not measured, as with `validation_freq`."""
    names = dict.fromkeys(name for record in records for name in record.metrics)
    return {name: [record.metrics.get(name, math.nan) for record in records] for name in names}


def mean_metrics(measured: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each metric over those that have it."""
    names = dict.fromkeys(name for metrics in measured for name in metrics)
    return {name: statistics.fmean(metrics[name] for metrics in measured if name in metrics) for name in names}


def read_outcome(folder: Path) -> Outcome | None:
    """Return what `write_outcome` left in `folder`; None if the training is not finished, or the file is damaged."""
    try:
        return Outcome.from_json(json.loads((folder / _OUTCOME).read_text()))
    # The file of another version has other fields. In either case the training resumes from its checkpoint, with the
    # same result.
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def read_whole_outcome(folder: Path) -> Outcome | None:
    """Return the outcome after a restart; None also if the packaged model is damaged, as after a power failure."""
    outcome = read_outcome(folder)
    return outcome if outcome is not None and is_whole(folder / MODEL) else None


def write_outcome(outcome: Outcome, folder: Path) -> None:
    """Write the outcome to `folder`, which marks the training as finished."""
    replace_text(folder / _OUTCOME, json.dumps(asdict(outcome)))


def log_settings(run: TrackedRun, settings: Mapping[str, object], num_threads: int) -> None:
    """Write the artifacts `settings.json` and `environment.json` (package versions, machine, threads).

    As parameters they would fill MLflow's table of runs with constants.
    """
    environment = {"packages": package_versions(), "host": host_facts(), "num_threads": num_threads}
    run.log_text(json.dumps(dict(settings), indent=2, default=str), "settings.json")
    run.log_text(json.dumps(environment, indent=2), "environment.json")


def log_metrics(run: TrackedRun, outcome: Outcome) -> None:
    """Queue the metrics of all epochs and of the end.

    Some are missing if the process died between checkpoint and write; writing the others again changes nothing.
    """
    for record in outcome.records:
        run.log_metrics(record.metrics, record.epoch, record.ended_at_ms)
    run.log_metrics(outcome.metrics, outcome.kept_epoch, outcome.ended_at_ms)


def log_kept_model(
    run: TrackedRun, outcome: Outcome, params: Mapping[str, object], dataset: tuple[str, str], model_type: str
) -> str:
    """Log the packaged model in the run's folder with the metrics of its epoch, and return its id."""
    return log_model(
        run,
        run.folder / MODEL,
        params=params,
        metrics=outcome.kept_metrics() | outcome.metrics,
        step=outcome.kept_epoch,
        timestamp_ms=outcome.ended_at_ms,
        dataset=dataset,
        model_type=model_type,
    )


def end_metrics(records: Sequence[EpochRecord], kept_epoch: int, model: keras.Model) -> dict[str, float]:
    """Return the metrics of every training at its end: epochs, parameters, seconds, peak memory in bytes."""
    return {
        "kept_epoch": float(kept_epoch),
        "num_epochs": float(len(records)),
        "num_params": float(model.count_params()),
        # A record made from what a user's `fit` returned has no time.
        "train_secs": sum(record.metrics.get("epoch_secs", 0.0) for record in records),
        "peak_rss_bytes": float(peak_rss_bytes()),
    }


def empty_artifacts(folder: Path) -> Path:
    """Return the folder for the artifacts of a run, after deleting those of an earlier attempt."""
    artifacts = folder / ARTIFACTS
    shutil.rmtree(artifacts, ignore_errors=True)
    artifacts.mkdir()
    return artifacts


def write_layers(model: keras.Model, path: Path) -> None:
    """Write the table of layers that `model.summary` prints."""
    lines: list[str] = []
    # A fixed width: Keras would fit the table to the terminal, and the files of two runs would differ.
    model.summary(print_fn=lambda line: lines.append(line), line_length=90)
    path.write_text("\n".join(lines) + "\n")


def peak_rss_bytes() -> int:
    """Return the peak memory of this process in bytes, earlier trainings in it included."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return int(memory.peak_wset)
    import resource
    import sys

    # In bytes on macOS, in KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
