"""The training that every side does, and the command line of a side's program.

A training is a curve over one hyperparameter, x, at one second an epoch. Each finished epoch is noted in a file of its
own, so that what was trained is known whatever a tool remembers.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = [
    "EPOCH_SECS",
    "EXPERIMENT",
    "JOURNAL",
    "NUM_EPOCHS",
    "NUM_TRIALS",
    "SEED",
    "Trial",
    "run_side",
    "train_epoch",
]

NUM_TRIALS, NUM_EPOCHS, EPOCH_SECS, SEED = 12, 4, 1.0, 1
EXPERIMENT = "faults"
JOURNAL = "FAULTS_JOURNAL"  # environment variable with the path of the file of finished epochs


@dataclass(frozen=True)
class Trial:
    """A trial as the side's own store has it after the search; `score` is None unless the trial is finished."""

    x: float | None
    score: float | None


def train_epoch(x: float, epoch: int) -> float:
    """Train one epoch, counted from 1, note it in the journal, and return the validation loss."""
    time.sleep(EPOCH_SECS)
    with Path(os.environ[JOURNAL]).open("a") as file:
        file.write(json.dumps({"x": x, "epoch": epoch, "at": time.time()}) + "\n")
    return (x - 0.3) ** 2 + 1 / (1 + epoch)


def run_side(search: Callable[[], None], trials: Callable[[], list[Trial]]) -> None:
    """Run or resume the search in the current folder; with `--trials`, print its trials as JSON instead."""
    if sys.argv[1:] == ["--trials"]:
        print(json.dumps([asdict(trial) for trial in trials()]))
    else:
        search()
