"""Plain KerasTuner over the documented recipe: what a user would run without this project.

    python benchmarks/plain_tuner.py FOLDER RESULT.json --epochs 2 --learning-rates 1e-4 2e-4 4e-4

One trial for each learning rate; RESULT gets the seconds of the trials after the first one, and of their epochs.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import keras_tuner
from documented_recipe import build, load, split

__all__: list[str] = []


class EpochClock(keras.callbacks.Callback):
    """Collects the seconds of all epochs, validation included; KerasTuner copies callbacks, so the list is shared."""

    epoch_secs: list[float] = []  # noqa: RUF012

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Stop the clock."""
        self.epoch_secs.append(time.perf_counter() - self._started)


class Timed(keras_tuner.GridSearch):
    """Notes when each trial has ended."""

    ended: list[float] = []  # noqa: RUF012

    def on_trial_end(self, trial: Any) -> None:
        """Note the time, after all that KerasTuner does then."""
        super().on_trial_end(trial)
        self.ended.append(time.perf_counter())


def main() -> None:
    """Load, search, write what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds fake/ and real/")
    parser.add_argument("result", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rates", type=float, nargs="+", required=True)
    options = parser.parse_args()
    train, validation = (load(part) for part in split(options.folder, 0))

    def build_with(hp: Any) -> keras.Model:
        model = build()
        model.optimizer.learning_rate = hp.Choice("learning_rate", options.learning_rates)
        return model

    with tempfile.TemporaryDirectory() as directory:
        tuner = Timed(build_with, "val_loss", seed=0, directory=directory)
        tuner.search(
            *train, validation_data=validation, batch_size=32, epochs=options.epochs, callbacks=[EpochClock()],
            verbose=0,
        )  # fmt: skip
    secs = Timed.ended[-1] - Timed.ended[0]
    options.result.write_text(json.dumps({"later_secs": secs, "epoch_secs": EpochClock.epoch_secs[options.epochs :]}))


if __name__ == "__main__":
    main()
