"""Prints a training to the terminal (data, layers, progress, result), and estimates the cost of a search."""

import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras_tuner import oracles as kt_oracles
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fakeface_lab.backend import keras_tuner
from fakeface_lab.data.images import ImageSet, missing_bytes
from fakeface_lab.data.sources import ImageFile
from fakeface_lab.data.splits import Split
from fakeface_lab.detector.fast_step import why_plain
from fakeface_lab.detector.space import num_parameters, to_hyperparameters
from fakeface_lab.evaluation.intervals import wilson
from fakeface_lab.search.suggest.oracles import num_trials_at_most
from fakeface_lab.settings import BaselineSettings, Hyperparameters, RunSettings, TuneSettings
from fakeface_lab.terminal import console, format_secs, say
from fakeface_lab.tracking.datasets import FoundAudit
from fakeface_lab.training.epochs import EpochRecord, Listener
from fakeface_lab.training.outcome import Outcome

__all__ = [
    "Plan",
    "TrainingProgress",
    "plan_search",
    "print_audit",
    "print_data_card",
    "print_layers",
    "print_outcome",
    "print_step",
]

# Source: "Real vs. Fake Faces Image Classification", Statistical Deep Learning, Fall 2023.
_DOCUMENTED_NUM_ERRORS = 1
_DOCUMENTED_NUM_TEST = 258

_DOCUMENTED_HISTORY = {
    "loss": (0.6539, 0.1378, 0.1042, 0.1105, 0.1007, 0.0702, 0.0316, 0.0275, 0.0216, 0.0200),
    "accuracy": (0.8070, 0.9564, 0.9622, 0.9612, 0.9593, 0.9777, 0.9913, 0.9913, 0.9942, 0.9971),
    "val_loss": (0.2441, 0.2083, 0.1715, 0.1186, 0.1432, 0.0871, 0.0591, 0.0530, 0.0554, 0.0364),
    "val_accuracy": (0.9845, 0.9457, 0.9767, 0.9922, 0.9922, 0.9922, 0.9922, 0.9961, 0.9961, 0.9961),
}
_DOCUMENTED_EPOCH_SECS = (210, 203, 196, 210, 205, 195, 211, 195, 205, 205)


def print_step(settings: BaselineSettings | TuneSettings) -> None:
    """Print which of the configurations do not take the fast step that was asked for, and why."""
    values, space = settings.hyperparameters, getattr(settings, "space", {})
    precisions = (space["precision"].values if "precision" in space else None) or [values.precision]
    for precision in precisions if settings.step == "fast" else ():
        reason = why_plain(values.model_copy(update={"precision": precision}))
        if reason is not None:
            say("step", f"plain, {reason}")


def print_data_card(images: ImageSet, split: Split) -> None:
    """Print which images are used, which are skipped and why, and how they are split."""
    source = images.source
    if source.notice:
        console.print(source.notice, style="bold white on red")
    counts = ", ".join(f"{count} {name}" for name, count in images.class_counts().items())
    say("data", f"{source.name}: {len(images.files)} images ({counts}), {images.size_px} px")
    console.print(f"          {source.root}  digest {images.digest[:12]}", style="dim")
    for reason, num_files in _count([skipped.reason for skipped in images.skipped]).items():
        examples = ", ".join(skipped.name for skipped in images.skipped if skipped.reason == reason)
        console.print(f"          skipped {num_files}: {reason} ({_shorten(examples)})", style="yellow")
    for remark, num_files in images.remarks.items():
        console.print(f"          used {num_files}: {remark}", style="yellow")
    if split.test_is_validation:
        parts = f"{len(split.train)} train, {len(split.test)} test, which also judge each epoch, as documented"
    else:
        parts = f"{len(split.train)} train, {len(split.validation)} validation, {len(split.test)} test (sealed)"
    say("split", f"{split.name}, seed {split.seed}: {parts}")


def _count(words: Sequence[str]) -> dict[str, int]:
    return {word: words.count(word) for word in dict.fromkeys(words)}


def _shorten(text: str, num_chars: int = 100) -> str:
    return text if len(text) <= num_chars else text[: num_chars - 3] + "..."


def print_layers(model: Any) -> None:
    """Print one row per layer (name, type, output shape, number of parameters) and the total."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("layer", "type", "output"):
        table.add_column(heading)
    table.add_column("parameters", justify="right")
    for layer in model.layers:
        shape = " x ".join(str(size) for size in layer.output.shape[1:])
        table.add_row(layer.name, type(layer).__name__, shape, f"{layer.count_params():,}")
    table.add_row("total", "", "", f"{model.count_params():,}", style="bold")
    console.print(table)


class TrainingProgress:
    """A live status line per epoch; finished epochs leave a permanent line. Forwards epochs to another listener."""

    def __init__(self, num_epochs: int, listener: Listener) -> None:
        self._num_epochs = num_epochs
        self._listener = listener
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._started = time.monotonic()
        self._steps_before: int | None = None

    def __enter__(self) -> "TrainingProgress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        """Update the status line."""
        done = (epoch - 1) * num_steps + step
        # The clock starts after the first step of this process, which traces the graph (1.8 s); steps before a restart
        # took no time here.
        if self._steps_before is None:
            self._steps_before, self._started = done, time.monotonic()
        measured = done - self._steps_before
        left = ""
        if measured:
            secs_per_step = (time.monotonic() - self._started) / measured
            left = f", {format_secs(secs_per_step * (self._num_epochs * num_steps - done))} left"
        self._live.update(Text(f"epoch {epoch}/{self._num_epochs}  step {step}/{num_steps}{left}", style="cyan"))

    def epoch_ended(self, record: EpochRecord) -> None:
        """Forward the finished epoch, and print it."""
        self._listener.epoch_ended(record)
        figures = "  ".join(
            f"{name} {record.metrics[name]:.4f}"
            for name in ("loss", "accuracy", "val_loss", "val_accuracy")
            if name in record.metrics
        )
        console.print(
            f"epoch {record.epoch:>2}/{self._num_epochs}  {figures}  {format_secs(record.metrics['epoch_secs'])}"
        )


def print_outcome(outcome: Outcome, *, beside_documented: bool) -> None:
    """Print the results of a training.

    Args:
        outcome: of the training.
        beside_documented: whether to print the documented figures next to them; only for the documented settings.
    """
    metrics = outcome.metrics
    if beside_documented:
        console.print(_documented_table(outcome))
    part = "test" if "test_accuracy" in metrics else "validation"
    if f"{part}_accuracy" not in metrics:
        return
    rate = wilson(int(metrics[f"{part}_accuracy_num_correct"]), int(metrics[f"{part}_accuracy_num_total"]))
    say("accuracy", f"{rate} on {part}")
    if beside_documented:
        known = wilson(_DOCUMENTED_NUM_TEST - _DOCUMENTED_NUM_ERRORS, _DOCUMENTED_NUM_TEST)
        console.print(f"          documented: {known}")
    if "documented_accuracy" in metrics:
        console.print(
            f"          counted as documented: accuracy {metrics['documented_accuracy']:.4f}, "
            f"F1 {metrics['documented_f1']:.4f} (over images and classes)"
        )
    details = {
        name.removeprefix(f"{part}_"): value
        for name, value in metrics.items()
        if name.startswith(f"{part}_") and not name.endswith(("_low", "_high", "_num_correct", "_num_total"))
    }
    shown = ("balanced_accuracy", "roc_auc", "average_precision", "brier")
    recalls = [name for name in details if name.startswith("recall_")]
    console.print(
        "          " + ", ".join(f"{name} {details[name]:.4f}" for name in (*shown, *recalls) if name in details)
    )
    say("worth", outcome.explanation)


def print_audit(audit: FoundAudit | None, settings: RunSettings) -> None:
    """Print what the audit of the images found, or the command that audits them."""
    if audit is None:
        given = {"data": settings.data, "positive": settings.positive, "image-size": settings.image_size}
        words = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in given.items() if value is not None)
        say("audit", f"none yet: python -m fakeface_lab.audit {words}")
    else:
        say("audit", audit.verdict, style="red" if audit.worst == "fail" else "")


def _documented_table(outcome: Outcome) -> Table:
    title = "each pair: documented / this run"
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    table.add_column("epoch", justify="right")
    for name in _DOCUMENTED_HISTORY:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    for index, record in enumerate(outcome.records[: len(_DOCUMENTED_EPOCH_SECS)]):
        pairs = (f"{values[index]:.4f}/{record.metrics[name]:.4f}" for name, values in _DOCUMENTED_HISTORY.items())
        secs = f"{_DOCUMENTED_EPOCH_SECS[index]}/{record.metrics['epoch_secs']:.0f}"
        table.add_row(str(record.epoch), *pairs, secs)
    return table


# A step of the documented CNN, about 104 GFLOP, takes 0.72 to 0.93 s on two threads of a 2020s server CPU.
_FLOP_PER_SEC_AND_THREAD = 65e9
# By docs/performance.md.
_STEP_RATIO = {"plain": 1.0, "fast": 0.73}
# Of a trial beside its epochs, at full size (docs/search.md).
_OVERHEAD_SECS = 1.5
# Enough for an estimate that is within a factor of two anyway.
_NUM_SAMPLES = 200
_WEIGHT_BYTES, _CHECKPOINT_BYTES = 4, 24  # float32; with Adam's two moments, of the latest and of the best epoch


@dataclass(frozen=True)
class Plan:
    """Estimated cost of a search.

    Attributes:
        num_trials: maximum; the space may be exhausted earlier.
        num_epochs: of all trials together.
        mean_parameters: mean number of parameters of a model in the space.
        most_parameters: largest number of parameters among some hundred random models.
        trial_secs: duration of all trials, with all workers.
        final_secs: duration of the retraining at the end.
        model_bytes: size of the models that stay in the store.
        checkpoint_bytes: largest total size of epoch checkpoints on local disk.
        pixel_bytes: size of the decoded images that are not yet in the cache.
    """

    num_trials: int
    num_epochs: int
    mean_parameters: float
    most_parameters: int
    trial_secs: float
    final_secs: float
    model_bytes: float
    checkpoint_bytes: float
    pixel_bytes: float

    def lines(self) -> list[str]:
        """Return the estimate as lines of a report."""
        return [
            f"trials    at most {self.num_trials}, the documented configuration first; {self.num_epochs} epochs in all",
            f"size      {self.mean_parameters:,.0f} parameters on average, {self.most_parameters:,} at most",
            f"time      about {format_secs(self.trial_secs)} for the trials and {format_secs(self.final_secs)} for the "
            f"final on a CPU, within a factor of two; a GPU is many times faster",
            f"disk      about {_gigabytes(self.model_bytes)} for models in the store, at most "
            f"{_gigabytes(self.checkpoint_bytes)} for checkpoints while it runs, {_gigabytes(self.pixel_bytes)} more "
            f"for decoded images",
        ]


def plan_search(
    settings: TuneSettings, template: keras_tuner.Oracle, files: Sequence[ImageFile], num_threads: int
) -> Plan:
    """Return the estimated cost of a search, from random configurations of its space.

    Args:
        settings: of the search.
        template: its oracle.
        files: of the data set.
        num_threads: threads per training.
    """
    num_trials = num_trials_at_most(template)
    assert num_trials is not None  # every algorithm of `tune` is limited
    num_train = len(files) * (0.8 if settings.split == "documented" else 0.64)
    num_epochs = _num_epochs(settings, template, num_trials)
    members = _sample(template.hyperparameters)
    mean_parameters = float(np.mean([num_parameters(member, settings.image_size) for member in members]))
    mean_secs = float(np.mean([_epoch_secs(member, settings, num_train, num_threads) for member in members]))
    documented_secs = _epoch_secs(settings.hyperparameters, settings, num_train / 0.8, num_threads)
    kept = num_trials
    if settings.keep_models != "all":
        kept = 1 if settings.keep_models == "best" else min(kept, int(settings.keep_models.removeprefix("top-")))
    num_checkpoints = settings.workers
    if isinstance(template, kt_oracles.HyperbandOracle):
        # Any trial of a round may be promoted, and then resumes from its checkpoint.
        num_checkpoints += max(template._get_size(bracket, 0) for bracket in range(template._get_num_brackets()))
    return Plan(
        num_trials,
        num_epochs,
        mean_parameters,
        max(num_parameters(member, settings.image_size) for member in members),
        (num_epochs * mean_secs + num_trials * _OVERHEAD_SECS) / settings.workers,
        # Each seed trains both configurations, for at most all epochs, on train + validation: a quarter more images
        # than in a trial.
        settings.final_seeds * settings.epochs * (documented_secs + mean_secs / 0.8) / settings.workers,
        _WEIGHT_BYTES * (kept + 2 * settings.final_seeds) * mean_parameters,
        _CHECKPOINT_BYTES * num_checkpoints * mean_parameters,
        missing_bytes(files, settings.image_size),
    )


def _epoch_secs(values: Hyperparameters, settings: TuneSettings, num_train: float, num_threads: int) -> float:
    # 27 and 9: kernels of 3 x 3 pixels, over three channels at first. The last layer, of two units, is negligible.
    size, f1, f2 = settings.image_size, values.filters_1, values.filters_2
    multiplications = 27 * f1 * size**2 + 9 * f1 * f2 * (size // 2) ** 2 + (size // 4) ** 2 * f2 * values.dense_units
    flop = 2 * 3 * multiplications * num_train  # forward, and twice as much backward
    step = settings.step if why_plain(values) is None else "plain"
    return _STEP_RATIO[step] * flop / (_FLOP_PER_SEC_AND_THREAD * num_threads)


def _num_epochs(settings: TuneSettings, template: keras_tuner.Oracle, num_trials: int) -> int:
    if not isinstance(template, kt_oracles.HyperbandOracle):
        return num_trials * settings.epochs
    # A promoted trial resumes from its parent's epochs; trial 0 has the full budget.
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
