"""One run in MLflow: created or found again, written with explicit steps and times, ended on every path."""

import json
import traceback
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunData
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from fakeface_lab.errors import FakefaceLabError, TrackingError
from fakeface_lab.tracking.duplicates import KEY_TAG, find_or_create
from fakeface_lab.tracking.owner import (
    CODE_TAGS,
    OWNER_TAG,
    PROCESS,
    code_tags,
    end_at_once,
    lock_of,
    note_owner,
    released_on_error,
    remove_folder,
)
from fakeface_lab.tracking.store import Store, as_entities
from fakeface_lab.tracking.writer import PatientWriter

__all__ = ["Run", "StoredRun", "TrackedRun", "point", "with_tags"]

PARTIAL_UPLOAD = ".artifact.uploading."  # how MLflow begins the name of an artifact that it is still writing
_MAX_POINTS = 1000  # in one write


@dataclass
class StoredRun:
    """A run in the store. Writes have explicit steps and times, so that repeating them changes nothing.

    Attributes:
        store: where the run is.
        writer: performs the writes.
        run: the run when it was read.
    """

    store: Store
    writer: PatientWriter
    run: Run

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return str(self.run.info.run_id)

    @property
    def name(self) -> str:
        """The run's name in the table."""
        return str(self.run.info.run_name)

    def read(self) -> Run:
        """Return the run as it is now."""
        return self.writer.call(lambda: self.store.client.get_run(self.run_id))

    def write(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, object] | None = None,
        points: Sequence[Metric] = (),
        wait: bool = True,
    ) -> None:
        """Write tags (cut to the length that every store takes), parameters and metric points in one transaction.

        Without `wait` the write is queued.
        """
        # One batch: with a local database twenty metrics written singly took 12 to 18 times as long.
        entities = [Param(key, str(value)) for key, value in (params or {}).items()]
        batch = partial(
            self.store.client.log_batch, self.run_id, metrics=points, params=entities, tags=as_entities(tags or {})
        )
        if wait:
            self.writer.call(batch)
        else:
            self.writer.submit(batch)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Write tags."""
        self.write(tags=tags)

    def log_params(self, params: Mapping[str, object]) -> None:
        """Write parameters."""
        self.write(params=params)

    def copy_results(self, source: Run) -> None:
        """Copy the parameters and all metric points of another run."""
        client, run_id = self.store.client, source.info.run_id
        # Read again: the metrics of `source` may have been uploaded after it was read.
        done = self.writer.call(lambda: client.get_run(run_id))
        self.log_params(done.data.params)
        for key in done.data.metrics:
            points: list[Metric] = self.writer.call(partial(client.get_metric_history, run_id, key))
            for first in range(0, len(points), _MAX_POINTS):
                self.write(points=points[first : first + _MAX_POINTS])

    def set_status(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self.writer.call(lambda: self.store.client.set_terminated(self.run_id, status))


@dataclass
class TrackedRun(StoredRun):
    """A run that is open for writing, by this process alone.

    Attributes:
        folder: local folder for its checkpoints and files until they are uploaded.
        lock: held while the run is open; the system releases it if the process dies.
        written: (metric, step) of all points; they are not written again.
    """

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
        key: str | None = None,
    ) -> "TrackedRun":
        """Create a run with its tags in one write, or open the existing one, in its own experiment.

        Of several processes that create a run with the same `key`, all get the same one; its tag `owner` says whose it
        is.

        Raises:
            TrackingError: the existing run (`MLFLOW_RUN_ID`) is not in the store, or another process is writing it.
        """
        # Written with the creation: if the tags came in a second write, a run that was killed in between could not be
        # found by its key.
        all_tags = {"mlflow.runName": name, "num_restarts": "0", OWNER_TAG: PROCESS} | code_tags() | dict(tags)
        if parent_run_id is not None:
            all_tags["mlflow.parentRunId"] = parent_run_id
        if existing_run_id is None:
            all_tags[KEY_TAG] = key or uuid.uuid4().hex
            return cls._open(store, writer, find_or_create(store, writer, all_tags, KEY_TAG))
        try:
            run = writer.call(lambda: store.client.get_run(existing_run_id))
        except TrackingError as err:
            raise TrackingError(
                f"MLFLOW_RUN_ID {existing_run_id}: {err}; unset it, or name an existing run of {store.uri}"
            ) from err
        experiment = writer.call(lambda: store.client.get_experiment(run.info.experiment_id))
        store = replace(store, experiment_id=experiment.experiment_id, experiment_name=experiment.name)
        tracked = cls._open(store, writer, run)
        with released_on_error(tracked.lock):
            writer.call(lambda: store.client.update_run(tracked.run_id, status="RUNNING"))
            tracked.set_tags(all_tags)
            tracked.run = tracked.read()
        return tracked

    @classmethod
    def reopen(cls, store: Store, writer: PatientWriter, run: Run) -> "TrackedRun":
        """Open an unfinished run again, or one that was created and never opened.

        Raises:
            TrackingError: another process is writing it right now.
        """
        tracked = cls._open(store, writer, run)
        with released_on_error(tracked.lock):
            tracked._note_written()
            writer.call(lambda: store.client.update_run(tracked.run_id, status="RUNNING"))
            # A run that was created but never opened has no count: opening it is not a restart.
            num_restarts = int(run.data.tags.get("num_restarts", "-1")) + 1
            if num_restarts:
                tracked._remove_partial_uploads()
            tracked.set_tags({"status_reason": "", "num_restarts": str(num_restarts), OWNER_TAG: PROCESS})
        return tracked

    @classmethod
    def _open(cls, store: Store, writer: PatientWriter, run: Run) -> "TrackedRun":
        folder = store.work_folder / run.info.run_id
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_of(folder)
        try:
            # Not waited for: the process that holds it may train for hours.
            lock.acquire(timeout=0)
        except Timeout as err:
            raise TrackingError(
                f"run {run.info.run_name}: another process is writing it; wait for that one or stop it first"
            ) from err
        note_owner(folder)
        return cls(store, writer, run, folder, lock)

    def part(self, key: str, name: str, tags: Mapping[str, str], folder: Path) -> "TrackedRun":
        """Return a child of this run, created if it is missing; it is open as long as this run is.

        Args:
            key: the tag, among `tags`, that tells the children apart.
            name: of the child.
            tags: of a new child.
            folder: with the child's files.
        """
        identity = {"mlflow.runName": name, "mlflow.parentRunId": self.run_id, OWNER_TAG: PROCESS}
        # The code is that of this run; asking git again would take longer than a small training.
        code = {tag: value for tag, value in self.run.data.tags.items() if tag.startswith(CODE_TAGS)}
        child = find_or_create(self.store, self.writer, {**identity, **code, **tags}, key)
        part = replace(self, run=child, folder=folder, written=set())
        if child.data.metrics:
            part._note_written()
        if child.data.tags.get(OWNER_TAG) != PROCESS:  # left by a process that has died
            part.set_tags({"status_reason": "", OWNER_TAG: PROCESS})
            self.writer.call(lambda: self.store.client.update_run(part.run_id, status="RUNNING"))
        return part

    def _note_written(self) -> None:
        """Note all points of the run: if a checkpoint is lost, epochs are trained again, and end at another time."""
        for key in self.run.data.metrics:
            points = self.writer.call(partial(self.store.client.get_metric_history, self.run_id, key))
            self.written |= {(key, point.step) for point in points}

    def _remove_partial_uploads(self) -> None:
        """Delete what MLflow leaves in a local artifact folder, hidden, if it is killed while it writes a file."""
        uri = self.run.info.artifact_uri
        if is_local_uri(uri):
            for path in Path(local_file_uri_to_path(uri)).glob(f"{PARTIAL_UPLOAD}*"):
                path.unlink(missing_ok=True)

    def tag_if_owned(self, tags: Mapping[str, str]) -> None:
        """Write tags in one try, unless another process has taken over the run."""
        client = self.store.client
        if client.get_run(self.run_id).data.tags.get(OWNER_TAG) == PROCESS:
            client.log_batch(self.run_id, tags=as_entities(tags))

    def require_owned(self) -> None:
        """Raise TrackingError if the run is deleted, or another process has it because this one was suspended."""
        run = self.read()
        if run.info.lifecycle_stage == "deleted":
            raise TrackingError(f"run {self.name}: deleted by a user, or in favour of one begun at the same time")
        if run.data.tags.get(OWNER_TAG) != PROCESS:
            raise TrackingError(
                f"run {self.name}: another process has taken it over ({run.data.tags.get('driver') or 'unnamed'}); "
                f"this one stops, and what it has written is kept"
            )

    def mirror_params(self, params: Mapping[str, object]) -> None:
        """Write numeric parameters also as `hp.*` metrics, because MLflow's page sorts parameters as text.

        Best called after other metrics: the page proposes the first metric of a run as the axis of its charts.
        """
        numeric = {f"hp.{key}": float(str(value)) for key, value in params.items() if _is_number(value)}
        # At a time that a restart does not change, so that the points stay the same.
        self.log_metrics(numeric, 0, self.run.info.start_time)

    def log_metrics(self, metrics: Mapping[str, float], step: int, timestamp_ms: int) -> None:
        """Queue the metrics of one step."""
        new = {key: float(value) for key, value in metrics.items() if (key, step) not in self.written}
        self.written.update((key, step) for key in new)
        self.write(points=[Metric(key, value, timestamp_ms, step) for key, value in new.items()], wait=False)

    def log_dataset(
        self, name: str, digest: str, source: str, contexts: tuple[str, ...], profile: Mapping[str, object]
    ) -> None:
        """Write the data set as the run's input.

        Args:
            name: shown in the Dataset column.
            digest: of all data, cut to 32 digits; MLflow's own covers only the first 10,000 numbers.
            source: where the data can be obtained.
            contexts: what the data are used for (training, validation, test).
            profile: counts and sizes.
        """
        dataset = Dataset(name, digest[:32], "local", json.dumps({"uri": source}), profile=json.dumps(dict(profile)))
        # One input for all contexts: of several with the same digest MLflow keeps only the first.
        used_as = DatasetInput(dataset, [InputTag("mlflow.data.context", ", ".join(contexts))])
        self.writer.call(lambda: self.store.client.log_inputs(self.run_id, [used_as]))

    def upload(self, folder: Path, under: str | None = None) -> None:
        """Copy a folder's files to the run's artifacts, to the folder `under` among them."""
        self.writer.call(lambda: self.store.client.log_artifacts(self.run_id, str(folder), under))

    def log_text(self, text: str, name: str) -> None:
        """Write one text artifact."""
        self.writer.call(lambda: self.store.client.log_text(self.run_id, text, name))

    def end(self, status: str, reason: str = "") -> None:
        """Set the final status (FINISHED, FAILED or KILLED) and its reason, and release the lock."""
        self.set_tags({"status_reason": reason})
        self.set_status(status)
        self.lock.release()

    def remove_files(self) -> None:
        """Delete the run's local files; call it after its final status is in the store."""
        remove_folder(self.folder)

    @contextmanager
    def ending(self) -> Iterator["TrackedRun"]:
        """End the run as FINISHED, FAILED (errors) or KILLED (Ctrl-C, SIGTERM), and pass the exception on."""
        try:
            yield self
            self.end("FINISHED")
        # Without a traceback: the message of these errors says what was wrong and what to do.
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

    def _end_at_once(self, status: str, reason: str, trace: str = "") -> None:
        try:
            end_at_once(self.store, self.run_id, status, reason, trace)
        except Exception:  # the original error is the one to report
            pass
        finally:
            self.lock.release()


def point(name: str, value: float, step: int, timestamp_ms: int) -> Metric:
    """Return a point of a metric, for `StoredRun.write`."""
    return Metric(name, value, timestamp_ms, step)


def with_tags(run: Run, tags: Mapping[str, str]) -> Run:
    """Return a copy of a run with further tags."""
    params = [Param(key, value) for key, value in run.data.params.items()]
    # Time and step do not matter: a run's data has only the value of each metric.
    metrics = [Metric(key, value, 0, 0) for key, value in run.data.metrics.items()]
    data = RunData(metrics, params, as_entities({**run.data.tags, **tags}))
    return Run(run.info, data, run.inputs, run.outputs)


def _is_number(value: object) -> bool:
    # To Python a bool is a number too, but it makes no axis.
    return isinstance(value, (int, float)) and not isinstance(value, bool)
