"""Trainings of a small detector on noisy pictures: run, interrupted, and compared to the last bit."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fakeface_lab.backend import keras
from fakeface_lab.detector.fit import Training, train
from fakeface_lab.settings import Hyperparameters
from fakeface_lab.training.epochs import EpochRecord
from fakeface_lab.training.recorder import TrainingRecorder

SIZE_PX = 40
TRAIN_ROWS = np.random.default_rng(5).permutation(66)[:45].astype(np.int64)
VALIDATION_ROWS = np.setdiff1d(np.arange(66), TRAIN_ROWS).astype(np.int64)

SMALL = Hyperparameters(filters_1=4, filters_2=6, dense_units=8, batch_size=16, learning_rate=3e-3)


def images() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """66 noisy pictures, half of them brighter above."""
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.arange(66) % 2).astype(np.int64)
    pixels = rng.integers(0, 200, (66, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
    pixels[labels == 0, : SIZE_PX // 2] += 20
    return pixels, labels


PIXELS, LABELS = images()


class Interrupted(Exception):
    """Stands for the kill between a checkpoint and the next epoch."""


class Heard:
    """A listener that remembers, and can stop the training after an epoch or in the middle of one."""

    def __init__(self, stop_after_epoch: int = 0, stop_in_step: tuple[int, int] = (0, 0)) -> None:
        self.steps: list[tuple[int, int, int]] = []
        self.records: list[EpochRecord] = []
        self._stop_after_epoch, self._stop_in_step = stop_after_epoch, stop_in_step

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        self.steps.append((epoch, step, num_steps))
        if (epoch, step) == self._stop_in_step:
            raise Interrupted

    def epoch_ended(self, record: EpochRecord) -> None:
        self.records.append(record)
        if record.epoch == self._stop_after_epoch:
            raise Interrupted


def run(
    training: Training, folder: Path, listener: Heard | None = None, validation: bool = True
) -> tuple[keras.Model, TrainingRecorder]:
    model = training.build()
    folder.mkdir(exist_ok=True)
    recorder = train(
        model,
        training,
        PIXELS,
        LABELS,
        TRAIN_ROWS,
        VALIDATION_ROWS if validation else None,
        folder,
        listener or Heard(),
    )
    recorder.report_last()
    return model, recorder


def state_bytes(model: keras.Model) -> list[bytes]:
    """Weights, seed generators and optimizer, to the last bit."""
    return [np.asarray(variable).tobytes() for variable in [*model.variables, *model.optimizer.variables]]


def measured(records: list[EpochRecord]) -> list[dict[str, float]]:
    """The history without what a clock measured."""
    return [{key: value for key, value in record.metrics.items() if key != "epoch_secs"} for record in records]


RESUMABLE = {
    "last": Training(SMALL, SIZE_PX, seed=2, epochs=3),
    "best": Training(SMALL, SIZE_PX, seed=2, epochs=3, keep="best"),
    # Drawn anew for each image and epoch.
    "augmented": Training(SMALL.model_copy(update={"augmentation": 1.0}), SIZE_PX, seed=2, epochs=3),
    "fast": Training(SMALL, SIZE_PX, seed=2, epochs=3, step="fast"),
}


def digest_of(model: keras.Model) -> str:
    return hashlib.sha256(b"".join(state_bytes(model))).hexdigest()
