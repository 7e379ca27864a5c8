"""Brings a training and its run in MLflow together: parameters before, epochs during, results after.

Order of the writes of one run: epoch checkpoint -> metrics -> artifacts -> model -> status. A process killed between
any two of them goes on where it was, and writes nothing twice.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from fakeface_lab.data.images import ImageSet
from fakeface_lab.data.sources import KAGGLE_HANDLE
from fakeface_lab.data.splits import Split
from fakeface_lab.detector.fit import Training
from fakeface_lab.settings import Hyperparameters
from fakeface_lab.tracking.finding import Run
from fakeface_lab.tracking.lookup import find_audit
from fakeface_lab.tracking.models import log_model
from fakeface_lab.tracking.patience import PatientWriter
from fakeface_lab.tracking.provenance import host_facts, package_versions
from fakeface_lab.tracking.runs import TrackedRun, find_latest
from fakeface_lab.tracking.store import Store
from fakeface_lab.training.outcome import ARTIFACTS, MODEL, Outcome
from fakeface_lab.training.recorder import EpochRecord

__all__ = [
    "RunListener",
    "begin_recording",
    "describe_data",
    "find_earlier",
    "fingerprint",
    "finish_recording",
    "open_run",
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
