"""The MLflow run of one training: parameters before, metrics per epoch, results after.

The writes of a run are ordered: epoch checkpoint, metrics, artifacts, model, status. A process killed between any two
of them resumes without writing anything twice.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fakeface_lab.data.images import ImageSet
from fakeface_lab.data.sources import KAGGLE_HANDLE
from fakeface_lab.data.splits import Split
from fakeface_lab.detector.fit import Training
from fakeface_lab.evaluation.intervals import THRESHOLD
from fakeface_lab.figures import save_figures
from fakeface_lab.figures.curves import curve_figures, documented_figure
from fakeface_lab.figures.scores import confusion_figure, roc_figure
from fakeface_lab.settings import Hyperparameters
from fakeface_lab.tracking.datasets import find_audit
from fakeface_lab.tracking.lookup import Run, find_latest
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.epochs import EpochRecord
from fakeface_lab.training.outcome import (
    ARTIFACTS,
    Outcome,
    history_of,
    log_kept_model,
    log_metrics,
    log_settings,
)

__all__ = [
    "RunListener",
    "find_earlier",
    "fingerprint",
    "log_data",
    "log_results",
    "log_start",
    "open_run",
    "training_params",
]


def fingerprint(facts: Mapping[str, Any]) -> str:
    """Return a hash of the facts, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def training_params(training: Training, images: ImageSet, split: Split, num_threads: int) -> dict[str, object]:
    """Return the parameters of a run; every run has the same keys, so that MLflow can show them side by side."""
    return {
        **training.hyperparameters.model_dump(),
        "epochs": training.epochs,
        "image_size": training.image_size,
        "seed": training.seed,
        "optimizer": "Adam",
        "loss": "categorical_crossentropy",
        "keep": training.keep,
        "step": training.step_taken,
        "data": images.source.name,
        "split": split.name,
        "split_seed": split.seed,
        "num_train": len(split.train),
        "num_validation": len(split.validation),
        "num_test": len(split.test),
        "num_threads": num_threads,
    }


def find_earlier(store: Store, facts: Mapping[str, Any]) -> Run | None:
    """Return the newest run with the same facts, finished or not; None if there is none."""
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
    """Return a run to write to: the unfinished one if given, else a new one.

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
        # MLflow's own convention: the launching program has already created the run.
        existing_run_id=os.environ.get("MLFLOW_RUN_ID"),
    )


def log_data(run: TrackedRun, images: ImageSet) -> None:
    """Log the data set as the input of a run, and link the run to the newest audit of the images."""
    # The handle, because the documented images are in another folder on each machine.
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


def log_start(
    run: TrackedRun,
    params: Mapping[str, object],
    images: ImageSet,
    settings: Mapping[str, Any],
    num_threads: int,
) -> None:
    """Log what is known before the first epoch: parameters, data set, settings, versions, machine."""
    run.log_params(params)
    log_data(run, images)
    log_settings(run, settings, num_threads)


class RunListener:
    """Logs finished epochs to the MLflow run."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = run

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        """Do nothing: steps are shown on the terminal only."""

    def epoch_ended(self, record: EpochRecord) -> None:
        """Queue the metrics of the epoch; their step is the epoch's number, from 1."""
        self._run.log_metrics(record.metrics, record.epoch, record.ended_at_ms)


def log_results(
    run: TrackedRun, outcome: Outcome, params: Mapping[str, object], images: ImageSet, *, keep_model: bool = True
) -> str | None:
    """Log everything that a finished training left in the run's folder, and return the model's id."""
    log_metrics(run, outcome)
    # Only those that a search varies, because each mirrored parameter adds a chart to MLflow's page.
    varied = (*Hyperparameters.model_fields, "epochs")
    run.mirror_params({name: params[name] for name in varied})
    # As the description, with which the page of a run begins.
    run.set_tags({"mlflow.note.content": outcome.explanation})
    # Here, which in a search is beside the next training: drawing takes 0.4 s.
    _draw(outcome, images.source.class_names, run.folder / ARTIFACTS)
    run.upload(run.folder / ARTIFACTS)
    if not keep_model:
        return None
    return log_kept_model(run, outcome, params, (images.source.name, images.digest), "image-classifier")


def _draw(outcome: Outcome, class_names: tuple[str, str], folder: Path) -> None:
    """Add figures of the curves and of the scores in `scores.csv` to a training's artifacts."""
    history = history_of(outcome.records)
    figures = {"documented_figure": documented_figure(history), **curve_figures(history, outcome.kept_epoch)}
    scores = pd.read_csv(
        folder / "scores.csv", dtype={"label": str}, keep_default_na=False, encoding_errors="surrogateescape"
    )
    for part, rows in scores.groupby("split"):
        is_positive = rows["label"].to_numpy() == class_names[0]
        probabilities = rows[f"probability_{class_names[0]}"].to_numpy(np.float64)
        labels, decisions = np.where(is_positive, 0, 1), np.where(probabilities > THRESHOLD, 0, 1)
        title = f"{part}: {int((decisions == labels).sum())} of {len(rows)} right"
        figures[f"confusion_{part}"] = confusion_figure(labels, decisions, class_names, title)
        figures[f"roc_{part}"] = roc_figure(is_positive, probabilities, class_names[0])
    save_figures(figures, folder)
