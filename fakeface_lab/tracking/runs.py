"""One run in MLflow: made or found again, written with explicit steps and times, ended on every path."""

import json
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from fakeface_lab.errors import FakefaceLabError, TrackingError
from fakeface_lab.tracking.patience import PatientWriter
from fakeface_lab.tracking.provenance import code_tags
from fakeface_lab.tracking.store import Store

__all__ = ["TrackedRun", "find_latest", "sweep_dead_runs"]

MAX_TAG_CHARS = 5000


@dataclass
class TrackedRun:
    """A run that is open for writing, by this process alone.

    Every write names run, step and time, so that writing it again after a restart changes nothing.

    Attributes:
        store: where it is.
        writer: through which all writes go.
        run: as it was when opened.
        folder: local folder for its checkpoints and files until they are uploaded.
        lock: held while the run is open; a dead process lets go of it.
        written: metric and step of all points that an earlier process wrote; they are not written again.
    """

    store: Store
    writer: PatientWriter
    run: Run
    folder: Path
    lock: FileLock
    written: set[tuple[str, int]] = field(default_factory=set)

    @classmethod
    def create(
        cls,
        store: Store,
        writer: PatientWriter,
        name: str,
        tags: Mapping[str, str],
        parent_run_id: str | None = None,
        existing_run_id: str | None = None,
    ) -> "TrackedRun":
        """Make a run with its tags in one write, or take the run that `MLFLOW_RUN_ID` names, in its experiment."""
        all_tags = {"mlflow.runName": name, "num_restarts": "0"} | code_tags() | dict(tags)
        if parent_run_id is not None:
            all_tags["mlflow.parentRunId"] = parent_run_id
        if existing_run_id is None:
            run = writer.call(lambda: store.client.create_run(store.experiment_id, tags=all_tags))
            return cls._open(store, writer, run)
        try:
            run = writer.call(lambda: store.client.get_run(existing_run_id))
        except TrackingError as err:
            raise TrackingError(
                f"MLFLOW_RUN_ID {existing_run_id}: {err}; unset it, or name an existing run of {store.uri}"
            ) from err
        experiment = writer.call(lambda: store.client.get_experiment(run.info.experiment_id))
        store = replace(store, experiment_id=experiment.experiment_id, experiment_name=experiment.name)
        tracked = cls._open(store, writer, run)
        writer.call(lambda: store.client.update_run(tracked.run_id, status="RUNNING"))
        tracked.set_tags(all_tags)
        tracked.run = writer.call(lambda: store.client.get_run(tracked.run_id))
        return tracked

    @classmethod
    def reopen(cls, store: Store, writer: PatientWriter, run: Run) -> "TrackedRun":
        """Go on with an unfinished run, or begin one that has been made and never opened.

        Raises:
            TrackingError: another process is writing it right now.
        """
        tracked = cls._open(store, writer, run)
        # Where the checkpoint is lost, epochs are trained again: to the same figures, at another time.
        for key in run.data.metrics:
            points = writer.call(partial(store.client.get_metric_history, tracked.run_id, key))
            tracked.written |= {(key, point.step) for point in points}
        writer.call(lambda: store.client.update_run(tracked.run_id, status="RUNNING"))
        num_restarts = int(run.data.tags.get("num_restarts", "-1")) + 1
        tracked.set_tags({"status_reason": "", "num_restarts": str(num_restarts)})
        return tracked

    @classmethod
    def _open(cls, store: Store, writer: PatientWriter, run: Run) -> "TrackedRun":
        folder = store.work_folder / run.info.run_id
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout as err:
            raise TrackingError(
                f"run {run.info.run_name}: another process is writing it; wait for that one or stop it first"
            ) from err
        return cls(store, writer, run, folder, lock)

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return str(self.run.info.run_id)

    @property
    def name(self) -> str:
        """The run's name in the table."""
        return str(self.run.info.run_name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Write tags, cut to what every store takes."""
        entities = [RunTag(key, value[:MAX_TAG_CHARS]) for key, value in tags.items()]
        self.writer.call(lambda: self.store.client.log_batch(self.run_id, tags=entities))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Write parameters."""
        entities = [Param(key, str(value)) for key, value in params.items()]
        self.writer.call(lambda: self.store.client.log_batch(self.run_id, params=entities))

    def mirror_params(self, params: Mapping[str, object]) -> None:
        """Write numeric parameters once more as `hp.*` metrics: MLflow's page sorts parameters as text.

        Best called after other metrics: the page offers the first metric of a run as the axis of its charts.
        """
        numeric = {f"hp.{key}": float(str(value)) for key, value in params.items() if _is_number(value)}
        self.log_metrics(numeric, 0, self.run.info.start_time)

    def log_metrics(self, metrics: Mapping[str, float], step: int, timestamp_ms: int) -> None:
        """Queue metrics of one step; the training does not wait for them."""
        new = {key: float(value) for key, value in metrics.items() if (key, step) not in self.written}
        entities = [Metric(key, value, timestamp_ms, step) for key, value in new.items()]
        self.writer.submit(lambda: self.store.client.log_batch(self.run_id, metrics=entities))

    def log_dataset(
        self, name: str, digest: str, source: str, contexts: tuple[str, ...], profile: Mapping[str, object]
    ) -> None:
        """Write the data set as the run's input.

        Args:
            name: as the Dataset column shows it.
            digest: of the whole manifest; MLflow's own reads the first 10,000 numbers only. Cut to 32 digits.
            source: where it can be had.
            contexts: what it is used for (training, validation, test).
            profile: counts and sizes.
        """
        dataset = Dataset(name, digest[:32], "local", json.dumps({"uri": source}), profile=json.dumps(dict(profile)))
        # Of several inputs with one digest MLflow keeps the first alone.
        used_as = DatasetInput(dataset, [InputTag("mlflow.data.context", ", ".join(contexts))])
        self.writer.call(lambda: self.store.client.log_inputs(self.run_id, [used_as]))

    def upload(self, folder: Path) -> None:
        """Copy a folder's files to the run's artifacts."""
        self.writer.call(lambda: self.store.client.log_artifacts(self.run_id, str(folder)))

    def log_text(self, text: str, name: str) -> None:
        """Write one text artifact."""
        self.writer.call(lambda: self.store.client.log_text(self.run_id, text, name))

    def end(self, status: str, reason: str = "") -> None:
        """Set the final status (FINISHED, FAILED or KILLED) and why; the lock goes with it."""
        self.set_tags({"status_reason": reason})
        self.writer.call(lambda: self.store.client.set_terminated(self.run_id, status))
        self.lock.release()

    @contextmanager
    def ending(self) -> Iterator["TrackedRun"]:
        """End the run as FINISHED, FAILED (errors) or KILLED (Ctrl-C, SIGTERM), and pass the exception on."""
        try:
            yield self
            self.end("FINISHED")
        except FakefaceLabError as err:
            self._end_at_once("FAILED", str(err))
            raise
        except (KeyboardInterrupt, SystemExit) as err:
            signal_name = "Ctrl-C" if isinstance(err, KeyboardInterrupt) else "SIGTERM"
            self._end_at_once("KILLED", f"stopped by {signal_name}")
            raise
        except BaseException as err:
            self._end_at_once("FAILED", f"{type(err).__name__}: {err}", traceback.format_exc())
            raise

    def _end_at_once(self, status: str, reason: str, trace: str | None = None) -> None:
        """Try once: the program is ending, and a store that is away must not hold it up."""
        client = self.store.client
        try:
            client.set_tag(self.run_id, "status_reason", reason[:MAX_TAG_CHARS])
            if trace is not None:
                client.log_text(self.run_id, trace, "error.txt")
            client.set_terminated(self.run_id, status)
        except Exception:  # the error that brought us here is the one to report
            pass
        finally:
            self.lock.release()


def find_latest(store: Store, fingerprint: str) -> Run | None:
    """Return the newest run with this fingerprint, finished or to be continued; None if there is none."""
    found = store.client.search_runs(
        [store.experiment_id], f"tags.fingerprint = '{fingerprint}'", order_by=["attributes.start_time DESC"]
    )
    # A training that diverged would diverge again.
    return next((run for run in found if "diverged" not in run.data.tags.get("status_reason", "")), None)


def sweep_dead_runs(store: Store) -> list[str]:
    """End runs that still say RUNNING although their process is gone; return their names.

    A run of this project keeps a lock file in `mlruns/.work` while its process lives. Runs of other machines have
    none here and are left alone.
    """
    swept = []
    for run in store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'"):
        lock_path = store.work_folder / f"{run.info.run_id}.lock"
        if not lock_path.exists():
            continue
        try:
            with FileLock(lock_path, timeout=0):
                store.client.set_tag(run.info.run_id, "status_reason", "process ended without a word")
                store.client.set_terminated(run.info.run_id, "KILLED", end_time=time.time_ns() // 1_000_000)
                swept.append(str(run.info.run_name))
        except Timeout:
            continue
    return swept


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
