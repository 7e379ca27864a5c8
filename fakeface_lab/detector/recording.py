"""Brings a training and its run in MLflow together: parameters before, epochs during, results after.

Order of the writes of one run: epoch checkpoint -> metrics -> artifacts -> model -> status. A process killed between
any two of them goes on where it was, and writes nothing twice.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from fakeface_lab.data.images import ImageSet
from fakeface_lab.data.sources import KAGGLE_HANDLE
from fakeface_lab.data.splits import Split
from fakeface_lab.detector.fit import Training
from fakeface_lab.evaluation.intervals import wilson
from fakeface_lab.settings import Hyperparameters
from fakeface_lab.terminal import console, format_secs, say
from fakeface_lab.tracking.lookup import FoundAudit, Run, find_audit
from fakeface_lab.tracking.models import log_model
from fakeface_lab.tracking.provenance import host_facts, package_versions
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.twins import find_latest
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.outcome import ARTIFACTS, MODEL, Outcome
from fakeface_lab.training.recorder import EpochRecord, Listener

__all__ = [
    "RunListener",
    "TrainingProgress",
    "begin_recording",
    "describe_data",
    "find_earlier",
    "fingerprint",
    "finish_recording",
    "open_run",
    "print_audit",
    "print_data_card",
    "print_layers",
    "print_outcome",
    "training_params",
]


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that stay the same as long as all facts do."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def training_params(training: Training, images: ImageSet, split: Split, num_threads: int) -> dict[str, object]:
    """Return the parameters of a run: the same keys in every run, so that the page can set them side by side."""
    return {
        **training.hyperparameters.model_dump(),
        "epochs": training.epochs,
        "image_size": training.image_size,
        "seed": training.seed,
        "optimizer": "Adam",
        "loss": "categorical_crossentropy",
        "keep": training.keep,
        "data": images.source.name,
        "split": split.name,
        "split_seed": split.seed,
        "num_train": len(split.train),
        "num_validation": len(split.validation),
        "num_test": len(split.test),
        "num_threads": num_threads,
    }


def find_earlier(store: Store, facts: Mapping[str, Any]) -> Run | None:
    """Return the newest run that was made with the same facts, finished or to be continued; None if none."""
    return find_latest(store, fingerprint(facts))


def open_run(
    store: Store,
    writer: PatientWriter,
    *,
    name: str,
    tags: Mapping[str, str],
    facts: Mapping[str, Any],
    unfinished: Run | None,
) -> TrackedRun:
    """Return a run to write to: the unfinished one where there is one, else a new one.

    Raises:
        TrackingError: the unfinished run is being written by another process.
    """
    if unfinished is not None:
        return TrackedRun.reopen(store, writer, unfinished)
    return TrackedRun.create(
        store,
        writer,
        name,
        {**tags, "fingerprint": fingerprint(facts)},
        existing_run_id=os.environ.get("MLFLOW_RUN_ID"),
    )


def describe_data(run: TrackedRun, images: ImageSet) -> None:
    """Write which images a run is made from, and the link to their newest audit."""
    source = f"kaggle:{KAGGLE_HANDLE}" if images.source.is_documented else images.source.root.as_uri()
    counts = images.class_counts()
    run.log_dataset(
        images.source.name,
        images.digest,
        source,
        ("training", "validation", "test"),
        {"num_images": len(images.files), **{f"num_{name}": count for name, count in counts.items()}},
    )
    audit = find_audit(run.store, images.digest)
    if audit is not None:
        run.set_tags(audit.tags())


def begin_recording(
    run: TrackedRun,
    params: Mapping[str, object],
    images: ImageSet,
    settings: Mapping[str, Any],
    num_threads: int,
) -> None:
    """Write what is known before the first epoch: parameters, data set, settings, versions, machine."""
    run.log_params(params)
    describe_data(run, images)
    environment = {"packages": package_versions(), "host": host_facts(), "num_threads": num_threads}
    run.log_text(json.dumps(dict(settings), indent=2, default=str), "settings.json")
    run.log_text(json.dumps(environment, indent=2), "environment.json")


class RunListener:
    """Passes finished epochs on to the run in MLflow."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        """Write nothing: steps are for the terminal."""

    def epoch_ended(self, record: EpochRecord) -> None:
        """Queue the epoch's metrics; the point on the axis is `epoch`, counted from 1."""
        self._run.log_metrics(record.metrics, record.epoch, record.ended_at_ms)


def finish_recording(
    run: TrackedRun, outcome: Outcome, params: Mapping[str, object], images: ImageSet, *, keep_model: bool = True
) -> str | None:
    """Write everything that a finished training left in the run's folder, and return the model's id."""
    for record in outcome.records:
        # Some may be missing if the process died between checkpoint and write; the others do not change.
        run.log_metrics(record.metrics, record.epoch, record.ended_at_ms)
    run.log_metrics(outcome.metrics, outcome.kept_epoch, outcome.ended_at_ms)
    # Of all parameters these are the ones that a search varies; each mirror is a chart in MLflow's page.
    varied = (*Hyperparameters.model_fields, "epochs")
    run.mirror_params({name: params[name] for name in varied})
    run.set_tags({"mlflow.note.content": outcome.explanation})
    run.upload(run.folder / ARTIFACTS)
    if not keep_model:
        return None
    return log_model(
        run,
        run.folder / MODEL,
        params=params,
        metrics=outcome.kept_metrics() | outcome.metrics,
        step=outcome.kept_epoch,
        timestamp_ms=outcome.ended_at_ms,
        dataset=(images.source.name, images.digest),
    )


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
    """Say which images are used, which are not and why, and how they are split."""
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
    """Print one row a layer (name, type, output shape, parameters) and the total."""
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
    """A line that lives while an epoch runs and stays when it ends; passes everything on to another listener."""

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
        """Update the living line."""
        done = (epoch - 1) * num_steps + step
        if self._steps_before is None:
            self._steps_before, self._started = done, time.monotonic()
        measured = done - self._steps_before
        left = ""
        if measured:
            secs_a_step = (time.monotonic() - self._started) / measured
            left = f", {format_secs(secs_a_step * (self._num_epochs * num_steps - done))} left"
        self._live.update(Text(f"epoch {epoch}/{self._num_epochs}  step {step}/{num_steps}{left}", style="cyan"))

    def epoch_ended(self, record: EpochRecord) -> None:
        """Print the finished epoch."""
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
    """Print the result; on the documented images, at the documented settings, beside the documented figures."""
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
    """Print what the audit of these images found, or how to have one made."""
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
