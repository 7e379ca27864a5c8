"""What a finished training leaves in its folder: artifacts, the packed model and, last, its numbers."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import psutil
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fakeface_lab.backend import keras, tf
from fakeface_lab.errors import FakefaceLabError, without_credentials
from fakeface_lab.files import replace_text
from fakeface_lab.tracking.models import is_whole
from fakeface_lab.training.recorder import EpochRecord

__all__ = [
    "ARTIFACTS",
    "MODEL",
    "Outcome",
    "curve_figures",
    "empty_artifacts",
    "end_metrics",
    "epoch_order",
    "explain_fault",
    "kind_of_fault",
    "peak_rss_bytes",
    "read_outcome",
    "read_whole_outcome",
    "write_layers",
    "write_outcome",
]


def epoch_order(num_examples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of the examples in one epoch (0-based): int64 (num_examples,), a permutation."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


ARTIFACTS, MODEL = "artifacts", "model"
_OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """The numbers of a finished training.

    Attributes:
        records: every epoch.
        kept_epoch: the epoch whose weights were kept, from 1.
        metrics: the end figures, by metric name.
        explanation: in words, how much of the accuracy a simple shortcut has too; empty where nothing was scored.
    """

    records: list[EpochRecord]
    kept_epoch: int
    metrics: dict[str, float]
    explanation: str = ""

    @property
    def ended_at_ms(self) -> int:
        """When the kept epoch ended, Unix time in ms: the time of all end figures.

        The epoch's own figures, attached to the model, are then the points that the run already has.
        """
        return self.records[self.kept_epoch - 1].ended_at_ms

    def kept_metrics(self) -> dict[str, float]:
        """Return the metrics of the epoch whose weights were kept."""
        return self.records[self.kept_epoch - 1].metrics


def read_outcome(folder: Path) -> Outcome | None:
    """Return what `write_outcome` left in `folder`; None while the training is not finished, or the file damaged."""
    try:
        content = json.loads((folder / _OUTCOME).read_text())
        records = [EpochRecord(**record) for record in content.pop("records")]
        return Outcome(records, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def read_whole_outcome(folder: Path) -> Outcome | None:
    """The same after a restart: None as well where the packed model cannot be read, as after a power failure."""
    outcome = read_outcome(folder)
    return outcome if outcome is not None and is_whole(folder / MODEL) else None


def write_outcome(outcome: Outcome, folder: Path) -> None:
    """Write the numbers to `folder`: from then on the training is finished."""
    replace_text(folder / _OUTCOME, json.dumps(asdict(outcome)))


def end_metrics(records: Sequence[EpochRecord], kept_epoch: int, model: keras.Model) -> dict[str, float]:
    """Return what every training reports at its end: epochs, parameters, seconds, memory in bytes."""
    return {
        "kept_epoch": float(kept_epoch),
        "num_epochs": float(len(records)),
        "num_params": float(model.count_params()),
        "train_secs": sum(record.metrics.get("epoch_secs", 0.0) for record in records),
        "peak_rss_bytes": float(peak_rss_bytes()),
    }


def empty_artifacts(folder: Path) -> Path:
    """Return the folder for the artifacts of a run, emptied of what an earlier attempt left there."""
    artifacts = folder / ARTIFACTS
    shutil.rmtree(artifacts, ignore_errors=True)
    artifacts.mkdir()
    return artifacts


def write_layers(model: keras.Model, path: Path) -> None:
    """Write the table of layers that `model.summary` prints."""
    lines: list[str] = []
    model.summary(print_fn=lambda line: lines.append(line), line_length=90)
    path.write_text("\n".join(lines) + "\n")


def peak_rss_bytes() -> int:
    """Return the most memory that this process ever had, bytes: earlier trainings in it included."""
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):  # Windows
        return int(memory.peak_wset)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


# Colour-blind safe, the same in every picture: training and validation.
TRAIN_COLOUR, VALIDATION_COLOUR = "#0072B2", "#D55E00"


def curve_figures(history: Mapping[str, Sequence[float]], kept_epoch: int) -> dict[str, Figure]:
    """Return one clean picture for the loss and one for the accuracy, with the kept epoch marked."""
    return {name: _curve(history, name, kept_epoch) for name in ("loss", "accuracy") if name in history}


def _curve(history: Mapping[str, Sequence[float]], name: str, kept_epoch: int) -> Figure:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    epochs = range(1, len(history[name]) + 1)
    axes.plot(epochs, history[name], "o-", color=TRAIN_COLOUR, label="training")
    if f"val_{name}" in history:
        axes.plot(epochs, history[f"val_{name}"], "o-", color=VALIDATION_COLOUR, label="validation")
    axes.axvline(kept_epoch, color="gray", linestyle=":", label=f"kept weights: epoch {kept_epoch}")
    axes.set(xlabel="epoch", ylabel=name)
    if name == "loss":
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, alpha=0.3)
    axes.legend()
    return figure


_OUT_OF_MEMORY = (MemoryError, tf.errors.ResourceExhaustedError)


# A driver or a library that stumbled (cuDNN, NCCL): it may be this network's shape or the machine.
_STUMBLED = (
    tf.errors.InternalError,
    tf.errors.UnknownError,
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.DataLossError,
)


# A path that is wrong stays wrong; a full disk or a lost connection does not.
_WRONG_PATH = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


def kind_of_fault(err: Exception) -> Literal["failed", "died", "disturbed"]:
    """Return what became of an attempt.

    `failed`: a fault in the model or its data, the same in every attempt. `died`: memory or a driver gave out, the next
    attempt may do better. `disturbed`: a full disk, a lost connection; no trial is to blame.
    """
    if isinstance(err, (*_OUT_OF_MEMORY, *_STUMBLED)):
        return "died"
    return "disturbed" if isinstance(err, OSError) and not isinstance(err, _WRONG_PATH) else "failed"


def explain_fault(err: Exception) -> str:
    """Return in one line why a training failed, for the run's tag `status_reason`."""
    first_line = without_credentials(str(err).partition("\n")[0])
    if isinstance(err, FakefaceLabError):
        return first_line
    if isinstance(err, _OUT_OF_MEMORY):
        return f"out of memory: {first_line or 'no detail'}"
    return f"{type(err).__name__}: {first_line}"
