"""Runs on real stores: what is written once stays once, and no run stays RUNNING."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR
from mlflow.store.artifact import local_artifact_repo
from mlflow.tracking import MlflowClient
from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy import event
from sqlalchemy.engine import Engine

from fakeface_lab.errors import TrackingError, TrainingDivergedError
from fakeface_lab.tracking.duplicates import KEY_TAG, find_or_create
from fakeface_lab.tracking.lookup import find_latest
from fakeface_lab.tracking.owner import sweep_dead_runs
from fakeface_lab.tracking.runs import PARTIAL_UPLOAD, TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter
from tests.tracking.made_runs import make_run, start_program

NOW_MS = 1_760_000_000_000


def stored(run: TrackedRun) -> Run:
    run.writer.drain()
    return run.store.client.get_run(run.run_id)


def history(run: TrackedRun, metric: str) -> list[tuple[int, float, int]]:
    run.writer.drain()
    points = run.store.client.get_metric_history(run.run_id, metric)
    return [(point.step, point.value, point.timestamp) for point in points]


def test_a_new_run_has_its_name_and_tags_from_the_start(store: Store, writer: PatientWriter) -> None:
    parent = make_run(store, writer, "search 1")
    run = TrackedRun.create(
        store, writer, "baseline s0 documented", {"role": "baseline", "split": "documented"}, parent.run_id
    )
    found = stored(run)
    assert found.info.experiment_id == store.experiment_id
    assert found.info.run_name == run.name == "baseline s0 documented"
    assert found.info.status == "RUNNING"
    assert found.data.tags["role"] == "baseline"
    assert found.data.tags["split"] == "documented"
    assert found.data.tags["mlflow.parentRunId"] == parent.run_id
    assert found.data.tags["mlflow.source.type"] == "LOCAL"
    assert found.data.tags["mlflow.user"]


def test_parameters_and_their_numeric_mirrors(store: Store, writer: PatientWriter) -> None:
    run = make_run(store, writer)
    params = {"learning_rate": 1e-4, "filters_1": 32, "precision": "float32", "flag": True}
    for _ in range(2):  # a continued run writes them again
        run.log_params(params)
        run.mirror_params(params)
    found = stored(run)
    assert found.data.params == {"learning_rate": "0.0001", "filters_1": "32", "precision": "float32", "flag": "True"}
    assert found.data.metrics == {"hp.learning_rate": 1e-4, "hp.filters_1": 32.0}
    assert len(history(run, "hp.filters_1")) == 1


def test_other_parameters_for_the_same_run_are_refused_in_one_line(store: Store, writer: PatientWriter) -> None:
    run = make_run(store, writer)
    run.log_params({"epochs": 10})
    with pytest.raises(TrackingError, match=r"tracking store refused: .*(param|epochs)") as err:
        run.log_params({"epochs": 11})
    assert "\n" not in str(err.value)


def test_an_epoch_written_twice_is_one_point(store: Store, writer: PatientWriter) -> None:
    run = make_run(store, writer)
    for epochs in ([1, 2], [1, 2, 3]):
        for epoch in epochs:
            run.log_metrics({"loss": 1 / 3 / epoch, "val_loss": 0.5}, epoch, NOW_MS + epoch)
    assert history(run, "loss") == [(epoch, 1 / 3 / epoch, NOW_MS + epoch) for epoch in (1, 2, 3)]
    assert [point[0] for point in history(run, "val_loss")] == [1, 2, 3]
    assert stored(run).data.metrics["loss"] == 1 / 9, "the table shows the last epoch"


def test_the_data_set_is_an_input_with_the_manifests_digest(store: Store, writer: PatientWriter) -> None:
    run = make_run(store, writer)
    digest = "0123456789abcdef" * 4
    for _ in range(2):
        run.log_dataset("faces", digest, "file:///faces", ("training", "validation", "test"), {"num_images": 12})
    (used,) = stored(run).inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("faces", digest[:32])
    assert json.loads(used.dataset.source) == {"uri": "file:///faces"}
    assert json.loads(used.dataset.profile) == {"num_images": 12}
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "training, validation, test"}
    assert store.client.search_runs([store.experiment_id], f"dataset.digest = '{digest[:32]}'")


def test_files_and_texts_become_artifacts(store: Store, writer: PatientWriter, tmp_path: Path) -> None:
    run = make_run(store, writer)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "scores.csv").write_text("a,b\n")
    for _ in range(2):
        run.upload(tmp_path / "files")
        run.log_text("é\n", "note.txt")
    assert sorted(item.path for item in store.client.list_artifacts(run.run_id)) == ["note.txt", "scores.csv"]
    (tmp_path / "down").mkdir()
    path = store.client.download_artifacts(run.run_id, "note.txt", str(tmp_path / "down"))
    assert Path(path).read_text(encoding="utf-8") == "é\n"


def test_a_long_tag_is_cut_to_what_every_store_takes(local_store: Store, writer: PatientWriter) -> None:
    run = make_run(local_store, writer)
    run.set_tags({"status_reason": "x" * 9000})
    assert stored(run).data.tags["status_reason"] == "x" * 5000


def test_a_successful_run_ends_finished(store: Store, writer: PatientWriter) -> None:
    run = make_run(store, writer)
    with run.ending():
        run.log_metrics({"loss": 0.5}, 1, NOW_MS)
    found = stored(run)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss": 0.5})
    assert found.info.end_time >= found.info.start_time
    assert not run.lock.is_locked


@pytest.mark.parametrize(
    ("error", "status", "reason", "has_trace"),
    [
        (TrainingDivergedError("training diverged: loss became nan"), "FAILED", "training diverged: loss", False),
        (ZeroDivisionError("by zero"), "FAILED", "ZeroDivisionError: by zero", True),
        (KeyboardInterrupt(), "KILLED", "stopped by Ctrl-C", False),
        (SystemExit(143), "KILLED", "stopped by SIGTERM", False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_other_end_is_recorded_in_the_run(
    error: BaseException, status: str, reason: str, has_trace: bool, local_store: Store, writer: PatientWriter
) -> None:
    run = make_run(local_store, writer)
    with pytest.raises(type(error)), run.ending():
        raise error
    found = stored(run)
    assert found.info.status == status
    assert found.data.tags["status_reason"].startswith(reason)
    artifacts = [item.path for item in local_store.client.list_artifacts(run.run_id)]
    assert artifacts == (["error.txt"] if has_trace else [])
    assert not run.lock.is_locked


def test_the_traceback_of_an_internal_error_is_kept(store: Store, writer: PatientWriter, tmp_path: Path) -> None:
    run = make_run(store, writer)
    with pytest.raises(ZeroDivisionError), run.ending():
        _ = 1 / 0
    path = store.client.download_artifacts(run.run_id, "error.txt", str(tmp_path))
    assert "_ = 1 / 0" in Path(path).read_text()
    assert stored(run).info.status == "FAILED"


def test_a_store_that_is_unreachable_at_the_end_is_reported_and_the_run_released(local_store: Store) -> None:
    run = make_run(local_store, PatientWriter(patience_secs=0))
    run.store = replace(local_store, client=MlflowClient("http://127.0.0.1:9"))
    with pytest.raises(TrackingError, match="unreachable for 0 s, longer than the retry limit of 0 s"), run.ending():
        pass
    assert not run.lock.is_locked, "the same command can continue it"
    assert sweep_dead_runs(local_store) == ["run 1"]


def test_a_reopened_run_is_running_again_and_counts_its_restarts(store: Store, writer: PatientWriter) -> None:
    run = make_run(store, writer)
    for restarts in (1, 2):
        with pytest.raises(KeyboardInterrupt), run.ending():
            raise KeyboardInterrupt
        run = TrackedRun.reopen(store, writer, store.client.get_run(run.run_id))
        found = stored(run)
        assert found.info.status == "RUNNING"
        assert found.data.tags["num_restarts"] == str(restarts)
        assert found.data.tags["status_reason"] == ""
    run.end("FINISHED")
    assert len(store.client.search_runs([store.experiment_id])) == 1


def test_a_reopened_run_has_no_file_that_a_killed_process_was_writing(
    local_store: Store, writer: PatientWriter
) -> None:
    # Older versions write in place.
    assert getattr(local_artifact_repo, "_TEMP_ARTIFACT_PREFIX", PARTIAL_UPLOAD) == PARTIAL_UPLOAD
    run = make_run(local_store, writer)
    run.log_text("whole", "settings.json")
    run.lock.release()
    artifacts = Path(local_file_uri_to_path(run.run.info.artifact_uri))
    (artifacts / f"{PARTIAL_UPLOAD}k3j2").write_text("ha")
    again = TrackedRun.reopen(local_store, writer, stored(run))
    assert [path.name for path in artifacts.iterdir()] == ["settings.json"]
    again.lock.release()


def test_opening_a_run_that_was_never_opened_is_not_a_restart(store: Store, writer: PatientWriter) -> None:
    made = store.client.create_run(store.experiment_id, tags={"mlflow.runName": "trial 0"})
    for restarts in (0, 1):
        run = TrackedRun.reopen(store, writer, store.client.get_run(made.info.run_id))
        assert stored(run).data.tags["num_restarts"] == str(restarts)
        run.end("KILLED")


def test_a_second_writer_is_refused_in_one_line(local_store: Store, writer: PatientWriter) -> None:
    run = make_run(local_store, writer)
    with pytest.raises(TrackingError, match=r"run run 1: another process is writing it; .*stop it first") as err:
        TrackedRun.reopen(local_store, writer, run.run)
    assert "\n" not in str(err.value)
    run.end("KILLED")
    TrackedRun.reopen(local_store, writer, run.run).end("FINISHED")


def test_an_existing_run_is_used_in_its_own_experiment(
    store: Store, writer: PatientWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = store.client.create_experiment(f"elsewhere {store.experiment_name}")
    given = store.client.create_run(elsewhere, tags={"mine": "kept"})
    store.client.set_terminated(given.info.run_id, "FINISHED")
    run = TrackedRun.create(store, writer, "baseline", {"role": "baseline"}, existing_run_id=given.info.run_id)
    found = stored(run)
    assert run.run_id == given.info.run_id
    assert run.store.experiment_id == elsewhere
    assert run.store.experiment_name == f"elsewhere {store.experiment_name}"
    assert found.info.status == "RUNNING"
    assert (found.data.tags["mine"], found.data.tags["role"]) == ("kept", "baseline")
    assert run.run.data.tags["role"] == "baseline"
    assert store.client.search_runs([store.experiment_id]) == []


def test_a_missing_mlflow_run_id_is_refused(store: Store, writer: PatientWriter) -> None:
    with pytest.raises(TrackingError, match=r"MLFLOW_RUN_ID 0{32}: .*not found; unset it, or name an existing") as err:
        TrackedRun.create(store, writer, "baseline", {}, existing_run_id="0" * 32)
    assert "\n" not in str(err.value)


@pytest.mark.parametrize(
    ("number", "exit_code", "reason"),
    [
        pytest.param(signal.SIGTERM, 143, "stopped by SIGTERM", marks=pytest.mark.slow),
        (signal.SIGINT, 130, "stopped by Ctrl-C"),
    ],
)
def test_a_signal_ends_program_and_run(
    number: int, exit_code: int, reason: str, local_store: Store, project: Path
) -> None:
    process, run_id = start_program(project)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code, errors
    found = local_store.client.get_run(run_id)
    assert (found.info.status, found.data.tags["status_reason"]) == ("KILLED", reason)
    assert "Traceback" not in errors


class Forgetful(MlflowClient):
    """Its server carries out what it is asked to, and the answer gets lost."""

    def __init__(self, uri: str, num_lost: int) -> None:
        super().__init__(uri)
        self.num_lost = num_lost

    def create_run(self, *args: Any, **kwargs: Any) -> Run:
        made: Run = super().create_run(*args, **kwargs)
        if self.num_lost:
            self.num_lost -= 1
            raise MlflowException("connection dropped", INTERNAL_ERROR)
        return made


def test_a_run_whose_answer_was_lost_is_not_created_again(store: Store, writer: PatientWriter) -> None:
    forgetful = replace(store, client=Forgetful(store.uri, num_lost=2))
    run = TrackedRun.create(forgetful, writer, "a run", {"role": "baseline"})
    found = store.client.search_runs([store.experiment_id], "tags.role = 'baseline'")
    assert [made.info.run_id for made in found] == [run.run_id]


def test_of_runs_that_were_created_twice_the_written_one_remains(store: Store, writer: PatientWriter) -> None:
    run = TrackedRun.create(store, writer, "a run", {"fingerprint": "f"})
    tags = store.client.get_run(run.run_id).data.tags
    duplicates = [store.client.create_run(store.experiment_id, tags=tags, start_time=time) for time in (1, 2**41)]
    run.log_params({"a": 1})
    run.log_metrics({"b": 1.0}, 1, 1)
    writer.drain()
    latest = find_latest(store, "f")
    assert latest is not None
    assert latest.info.run_id == run.run_id
    kept = find_or_create(store, writer, tags, KEY_TAG)
    assert kept.info.run_id == run.run_id
    stages = [store.client.get_run(duplicate.info.run_id).info.lifecycle_stage for duplicate in duplicates]
    assert stages == ["deleted", "deleted"]


def test_a_password_reaches_neither_trace_nor_reason(local_store: Store, writer: PatientWriter) -> None:
    run = TrackedRun.create(local_store, writer, "a run", {})
    address = "https://me:" + "secret" + "@host/api"
    with pytest.raises(RuntimeError), run.ending():
        raise RuntimeError(f"{address}: refused")
    written = local_store.client.get_run(run.run_id).data.tags["status_reason"]
    trace = Path(local_store.client.download_artifacts(run.run_id, "error.txt")).read_text()
    assert written == "RuntimeError: https://***@host/api: refused"
    assert "RuntimeError: https://***@host/api: refused" in trace
    assert "secret@" not in trace


def test_two_runs_may_name_the_same_new_data_set_at_the_same_time(local_store: Store) -> None:
    one, other = (make_run(local_store, PatientWriter(30), name) for name in ("one", "other"))
    facts: Any = ("faces", "0" * 32, "file:///faces", ("training",), {})
    raced: list[str] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def be_faster(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        # MLflow has looked for the data set of one and not found it.
        if statement.startswith("INSERT INTO datasets") and not raced:
            raced.append(statement)
            other.log_dataset(*facts)

    try:
        one.log_dataset(*facts)
    finally:
        event.remove(Engine, "before_cursor_execute", be_faster)
    assert raced
    for run in (one, other):
        assert [used.dataset.name for used in stored(run).inputs.dataset_inputs] == ["faces"]
