"""What a search will cost, reckoned before anything is trained: trials, epochs, time, disk.

Time is reckoned from the multiplications of a training step; it is right to about a factor of two on a CPU.
"""

import math
from dataclasses import dataclass

import keras_tuner
import numpy as np
from keras_tuner import oracles as kt_oracles

from fakeface_lab.detector.space import to_hyperparameters
from fakeface_lab.search.suggest.sizes import num_trials_at_most
from fakeface_lab.settings import Hyperparameters, TuneSettings
from fakeface_lab.terminal import format_secs

__all__ = ["Plan", "num_parameters", "plan_search"]

# A step of the documented CNN, about 104 GFLOP, takes 0.72 to 0.93 s on two threads of a 2020s server CPU.
_FLOP_A_SEC_AND_THREAD = 65e9
# Start of a process or a trial, scores, figures and the upload of a model.
_OVERHEAD_SECS = 5.0
_NUM_SAMPLES = 200
_WEIGHT_BYTES, _CHECKPOINT_BYTES = 4, 16  # float32; with Adam's two moments and the best epoch's weights


@dataclass(frozen=True)
class Plan:
    """What a search will cost.

    Attributes:
        num_trials: at most; the space may be exhausted before.
        num_epochs: of all trials.
        mean_parameters: of a model in the space.
        most_parameters: of the largest one among some hundred random ones.
        trial_secs: all trials together, on all workers.
        final_secs: the retraining at the end.
        model_bytes: models that stay in the store.
        checkpoint_bytes: epoch checkpoints on local disk at their most.
    """

    num_trials: int
    num_epochs: int
    mean_parameters: float
    most_parameters: int
    trial_secs: float
    final_secs: float
    model_bytes: float
    checkpoint_bytes: float

    def lines(self) -> list[str]:
        """Return the plan in words."""
        return [
            f"trials    at most {self.num_trials}, the documented configuration first; {self.num_epochs} epochs in all",
            f"size      {self.mean_parameters:,.0f} parameters on average, {self.most_parameters:,} at most",
            f"time      about {format_secs(self.trial_secs)} for the trials and {format_secs(self.final_secs)} for the "
            f"final on a CPU, to a factor of two; a GPU is many times faster",
            f"disk      about {_gigabytes(self.model_bytes)} for models in the store, at most "
            f"{_gigabytes(self.checkpoint_bytes)} for checkpoints while it runs",
        ]


def plan_search(settings: TuneSettings, template: keras_tuner.Oracle, num_images: int, num_threads: int) -> Plan:
    """Return what the search will cost, from random members of its space.

    Args:
        settings: of the search.
        template: its oracle.
        num_images: of the data set.
        num_threads: of one training.
    """
    num_trials = num_trials_at_most(template)
    assert num_trials is not None  # each algorithm of `tune` has its limit
    num_train = num_images * (0.8 if settings.split == "documented" else 0.64)
    num_epochs = _num_epochs(settings, template, num_trials)
    members = _sample(template.hyperparameters)
    mean_parameters = float(np.mean([num_parameters(member, settings.image_size) for member in members]))
    mean_secs = float(np.mean([_epoch_secs(member, settings.image_size, num_train, num_threads) for member in members]))
    documented_secs = _epoch_secs(settings.hyperparameters, settings.image_size, num_train / 0.8, num_threads)
    kept = num_trials
    if settings.keep_models != "all":
        kept = 1 if settings.keep_models == "best" else min(kept, int(settings.keep_models.removeprefix("top-")))
    num_checkpoints = settings.workers
    if isinstance(template, kt_oracles.HyperbandOracle):
        num_checkpoints += max(template._get_size(bracket, 0) for bracket in range(template._get_num_brackets()))
    return Plan(
        num_trials,
        num_epochs,
        mean_parameters,
        max(num_parameters(member, settings.image_size) for member in members),
        (num_epochs * mean_secs + num_trials * _OVERHEAD_SECS) / settings.workers,
        settings.final_seeds * settings.epochs * (documented_secs + mean_secs / 0.8) / settings.workers,
        _WEIGHT_BYTES * (kept + 2 * settings.final_seeds) * mean_parameters,
        _CHECKPOINT_BYTES * num_checkpoints * mean_parameters,
    )


def num_parameters(values: Hyperparameters, image_size_px: int) -> int:
    """Return the parameters of `model.build_model` without building it: a model may be too large to build."""
    f1, f2, units, cells = values.filters_1, values.filters_2, values.dense_units, (image_size_px // 2 // 2) ** 2
    return (27 + 1) * f1 + (9 * f1 + 1) * f2 + (cells * f2 + 1) * units + 2 * (units + 1)


def _epoch_secs(values: Hyperparameters, image_size_px: int, num_train: float, num_threads: int) -> float:
    size, f1, f2 = image_size_px, values.filters_1, values.filters_2
    multiplications = 27 * f1 * size**2 + 9 * f1 * f2 * (size // 2) ** 2 + (size // 4) ** 2 * f2 * values.dense_units
    flop = 2 * 3 * multiplications * num_train  # forward, and twice as much backward
    return flop / (_FLOP_A_SEC_AND_THREAD * num_threads)


def _num_epochs(settings: TuneSettings, template: keras_tuner.Oracle, num_trials: int) -> int:
    if not isinstance(template, kt_oracles.HyperbandOracle):
        return num_trials * settings.epochs
    # A promoted trial goes on from its parent's epochs; trial 0 has the full budget.
    trained = settings.epochs
    for bracket in range(template._get_num_brackets()):
        before = 0
        for round_num in range(template._get_num_rounds(bracket)):
            epochs = math.ceil(template._get_epochs(bracket, round_num))
            trained += template._get_size(bracket, round_num) * (epochs - before)
            before = epochs
    return int(trained)


def _sample(space: keras_tuner.HyperParameters) -> list[Hyperparameters]:
    rng = np.random.default_rng(0)
    return [
        to_hyperparameters({hp.name: hp.random_sample(int(rng.integers(1, 2**31))) for hp in space.space})
        for _ in range(_NUM_SAMPLES)
    ]


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
