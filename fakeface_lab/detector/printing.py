"""Prints a training to the terminal: its data, layers, progress and result."""

import time
from collections.abc import Sequence
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from fakeface_lab.data.images import ImageSet
from fakeface_lab.data.splits import Split
from fakeface_lab.evaluation.intervals import wilson
from fakeface_lab.terminal import console, format_secs, say
from fakeface_lab.tracking.datasets import FoundAudit
from fakeface_lab.training.outcome import Outcome
from fakeface_lab.training.recorder import EpochRecord, Listener

__all__ = ["TrainingProgress", "print_audit", "print_data_card", "print_layers", "print_outcome"]

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


def print_audit(audit: FoundAudit | None, data: str) -> None:
    """Print what the audit of the images found, or the command that audits them."""
    if audit is None:
        say("audit", f"not made yet: python -m fakeface_lab.audit --data {data}")
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
