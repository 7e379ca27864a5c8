"""What the doctor says about packages, and about a real store: its clock, writing to it, and unfinished runs."""

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import mlflow
import pytest
from moto.server import ThreadedMotoServer
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from fakeface_lab.assess.health import (
    Finding,
    check_runs,
    check_store,
    check_versions,
    check_writing,
    judge_clock,
    judge_server,
    judge_versions,
)
from fakeface_lab.search.ledger import heartbeat
from fakeface_lab.search.ledger.heartbeat import Heartbeat
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store, open_store
from fakeface_lab.tracking.writer import PatientWriter
from tests.mlflow_server import Server
from tests.tracking.made_runs import start_program

REQUIRED = {
    "tensorflow": SpecifierSet(">=2.20"),
    "keras": SpecifierSet(">=3.13"),
    "keras-tuner": SpecifierSet(">=1.4.8"),
    "mlflow": SpecifierSet(">=3.10"),
    "ray": SpecifierSet(">=2.59"),
}
GOOD = {"tensorflow": "2.21.0", "keras": "3.15.1", "keras-tuner": "1.4.8", "mlflow": "3.17.2"}


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.state for finding in findings}


def test_the_installed_packages_are_in_their_ranges() -> None:
    assert "problem" not in states(check_versions()).values()


def test_versions() -> None:
    tested = {"mlflow": Version("3.17.2")}
    (fine,) = judge_versions(GOOD, REQUIRED, tested)
    assert fine.state == "ok"
    assert fine.found.endswith(", tensorflow 2.21.0, keras 3.15.1, keras-tuner 1.4.8, mlflow 3.17.2")
    assert judge_versions({**GOOD, "mlflow": "3.9.1"}, REQUIRED, tested) == [
        Finding(
            "versions", "problem", "mlflow 3.9.1 is outside the supported range, >=3.10", "pip install 'mlflow>=3.10'"
        )
    ]
    assert judge_versions({**GOOD, "mlflow": "3.18.0"}, REQUIRED, tested) == [
        Finding(
            "versions",
            "note",
            "mlflow 3.18.0 is newer than 3.17.2, the newest that this was tested with",
            "if something fails, pip install mlflow==3.17.2",
        )
    ]
    del (lacking := dict(GOOD))["keras"]
    assert judge_versions(lacking, REQUIRED, tested) == [
        Finding("versions", "problem", "keras is not installed", "pip install 'keras>=3.13'")
    ]


def test_the_server_and_its_version() -> None:
    supported = REQUIRED["mlflow"]
    assert judge_server("3.18.0", "3.17.2", supported) == Finding("server", "ok", "MLflow 3.18.0")
    older = judge_server("3.10.0", "3.17.2", supported)
    assert (older.state, older.found) == ("note", "MLflow 3.10.0 is older than the one here, 3.17.2")
    assert older.advice == "if it refuses a request, upgrade it, or pip install mlflow==3.10.0"
    too_old = judge_server("2.22.0", "3.17.2", supported)
    assert (too_old.state, too_old.found) == ("problem", "MLflow 2.22.0 is outside the supported range, >=3.10")
    assert too_old.advice == "upgrade the server to the version here, 3.17.2"
    assert judge_server(None, "3.17.2", supported).found == "does not tell its version"


def test_the_clock() -> None:
    assert judge_clock(-4.0) == Finding("clock", "ok", "within 5 s of the store's")
    assert (judge_clock(20).state, judge_clock(20).found) == ("note", "the store's is 20 s ahead of the one here")
    assert (judge_clock(-300).state, judge_clock(-300).found) == (
        "problem",
        "the store's is 300 s behind the one here",
    )
    assert judge_clock(-300).advice.startswith("set both by NTP: the newest run is the one with the latest start")


def test_a_store_that_works(store: Store) -> None:
    findings, opened = check_store(store.uri, store.project)
    assert findings[0] == Finding("store", "ok", f"{store.uri} answers")
    assert states(findings) == {"store": "ok", "clock": "ok"} | ({} if store.is_local else {"server": "ok"})
    assert opened is not None
    if not store.is_local:
        assert findings[1].found == f"MLflow {mlflow.__version__}"
    before = sorted(store.project.rglob("*"))
    tag, artifact = check_writing(store)
    assert tag.found == f"experiment {store.experiment_name} takes a tag and gives it up"
    assert artifact.found.startswith("a file was written to ")
    assert (tag.state, artifact.state) == ("ok", "ok")
    assert not any(name.startswith("doctor") for name in store.client.get_experiment(store.experiment_id).tags)
    assert sorted(store.project.rglob("*")) == before
    if store.is_local:  # the server has the runs of other tests too
        assert check_runs(store) == [Finding("runs", "ok", "none is unfinished")]


def test_nothing_is_left_on_the_server(server: Server, project: Path) -> None:
    store = open_store(server.uri, project, "left over")
    before = {path for path in server.artifacts.rglob("*") if path.is_file()}
    check_writing(store)
    assert {path for path in server.artifacts.rglob("*") if path.is_file()} == before


def problem_of(uri: str, project: Path) -> Finding:
    (finding,), store = check_store(uri, project)
    assert store is None
    return finding


@pytest.mark.parametrize("exists", [False, True])
def test_a_store_without_tables_stays_so(project: Path, exists: bool) -> None:
    if exists:
        (project / "new.db").touch()
    before = sorted(project.iterdir())
    finding = problem_of("sqlite:///new.db", project)
    assert (finding.state, finding.found) == ("note", f"sqlite:///{project}/new.db has no runs yet")
    assert finding.advice == "the first run makes it; if your runs are elsewhere, see --tracking-uri"
    assert sorted(project.iterdir()) == before
    if exists:
        assert (project / "new.db").stat().st_size == 0


def test_a_file_that_is_not_a_database(project: Path) -> None:
    (project / "notes.db").write_text("not a database\n" * 100)
    finding = problem_of("sqlite:///notes.db", project)
    assert finding == Finding(
        "store",
        "problem",
        f"tracking store sqlite:///{project}/notes.db: file is not a database",
        "see --tracking-uri",
    )


@pytest.mark.parametrize(
    ("revision", "found", "advice"),
    [
        ("451aebb31d03", "made by an older MLflow", "back it up, then run `mlflow db upgrade {uri}`"),
        ("ffffffffffff", f"made by a newer MLflow than {mlflow.__version__}", "install that one to use it"),
    ],
)
def test_a_schema_of_another_mlflow(project_with_tables: Path, revision: str, found: str, advice: str) -> None:
    with closing(sqlite3.connect(project_with_tables / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    uri = f"sqlite:///{project_with_tables}/mlflow.db"
    finding = problem_of(uri, project_with_tables)
    assert finding.found == f"tracking store {uri}: {found}"
    assert finding.advice == advice.format(uri=uri)


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """The address of a server that answers every request in this way."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_refuses_or_fails(project: Path) -> None:
    with answering(401, "who are you?") as uri:
        finding = problem_of(uri.replace("//", "//me:secret@"), project)
        assert finding.found == f"tracking store {uri.replace('//', '//***@')}: refuses the credentials (401)"
        assert finding.advice == ("set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN")
    with answering(502, "bad gateway") as uri:
        finding = problem_of(uri, project)
        assert (finding.found, finding.advice) == (f"tracking store {uri}: the server answers 502", "see its log")
    finding = problem_of(uri, project)  # it is gone by now
    assert finding.found == f"tracking store {uri}: no answer"
    assert finding.advice.startswith("is the server running, and is --tracking-uri right? (")


def test_a_server_that_hangs_is_given_up(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        finding = problem_of(f"http://127.0.0.1:{silent.getsockname()[1]}", project)
    assert "no answer" in finding.found


def test_a_database_that_is_away(project: Path) -> None:
    finding = problem_of("postgresql+psycopg://me:secret@127.0.0.1:9/mlflow", project)
    assert finding.state == "problem"
    assert finding.found.startswith("tracking store postgresql+psycopg://***@127.0.0.1:9/mlflow: ")
    assert finding.advice == "is the database running, and is --tracking-uri right?"


def test_a_store_that_takes_no_tag(local_store: Store) -> None:
    with closing(sqlite3.connect(local_store.project / "mlflow.db")) as connection, connection:
        connection.execute(
            "CREATE TRIGGER t BEFORE INSERT ON experiment_tags BEGIN SELECT RAISE(ABORT, 'no right to write'); END"
        )
    tag, artifact = check_writing(local_store)
    assert (tag.check, tag.state, artifact.state) == ("writing", "problem", "ok")
    assert tag.found.startswith("experiment faces: refuses a tag (")
    assert "no right to write" in tag.found
    assert tag.advice == "ask for the right to edit it, or see --tracking-uri"


def with_artifacts_in(store: Store, location: str) -> Store:
    number = store.client.create_experiment(location, artifact_location=location)
    return replace(store, experiment_id=number, experiment_name="other")


def test_artifacts_that_cannot_be_written(local_store: Store) -> None:
    (local_store.project / "notes").write_text("no folder")
    location = (local_store.project / "notes").as_uri()
    _, artifact = check_writing(with_artifacts_in(local_store, location))
    assert artifact.state == "problem"
    assert artifact.found.startswith(f"artifacts in {location}: ")
    assert (
        artifact.advice
        == "can this machine write there? if not, let the server do it (mlflow server --serve-artifacts)"
    )


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server's bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    for name, value in {
        "MLFLOW_S3_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    client.create_bucket(Bucket="runs")
    try:
        yield "s3://runs/1"
        assert client.list_objects_v2(Bucket="runs")["KeyCount"] == 0, "nothing is left there"
    finally:
        server.stop()


def test_artifacts_in_s3(local_store: Store, bucket: str) -> None:
    _, artifact = check_writing(with_artifacts_in(local_store, bucket))
    assert artifact == Finding("artifacts", "ok", f"a file was written to {bucket}, read and deleted")
    _, artifact = check_writing(with_artifacts_in(local_store, "s3://absent/1"))
    assert artifact.state == "problem"
    assert artifact.found.startswith("artifacts in s3://absent/1: ")
    assert "NoSuchBucket" in artifact.found
    assert artifact.advice == (
        "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, unless it is Amazon's, MLFLOW_S3_ENDPOINT_URL"
    )


@pytest.mark.slow
def test_a_killed_baseline_and_a_running_one(local_store: Store, project: Path) -> None:
    process, run_id = start_program(project)
    try:
        assert check_runs(local_store) == [Finding("runs", "ok", "baseline 'a run': its process is running")]
    finally:
        process.kill()
        process.communicate()
    (finding,) = check_runs(local_store)
    assert (finding.state, finding.found) == ("note", "baseline 'a run': its process ended without closing it")
    resume, _, close = finding.advice.partition("; ")
    assert resume == "to resume it: python -m fakeface_lab.baseline --resume, with its other settings"
    # `python` is the one of the environment.
    settings = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(close.removeprefix("to close it: "), shell=True, env=settings, check=True)
    assert local_store.client.get_run(run_id).info.status == "KILLED"
    assert check_runs(local_store) == [Finding("runs", "ok", "none is unfinished")]


@pytest.fixture
def writer() -> PatientWriter:
    return PatientWriter(patience_secs=20)


@pytest.fixture
def elsewhere(local_store: Store, tmp_path: Path) -> Store:
    """The same store used from another project folder, as from another machine."""
    (tmp_path / "elsewhere").mkdir()
    return replace(local_store, project=tmp_path / "elsewhere")


def make_search(store: Store, writer: PatientWriter, program: str) -> TrackedRun:
    tags = {"role": "search", "search": "wide net", "mlflow.source.name": program}
    search = TrackedRun.create(store, writer, "wide net", tags)
    trial = {"role": "trial", "mlflow.runName": "trial 0", "mlflow.parentRunId": search.run_id}
    store.client.create_run(store.experiment_id, tags=trial)
    return search


@pytest.mark.parametrize(
    ("program", "resume"),
    [
        ("tune", "to resume it: python -m fakeface_lab.tune --name 'wide net', with its other settings; "),
        ("my_script", "to resume it: run my_script again; "),
    ],
)
def test_a_search_elsewhere_beats_or_is_silent(
    local_store: Store,
    elsewhere: Store,
    writer: PatientWriter,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    resume: str,
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECS", 1.0)
    search = make_search(elsewhere, writer, program)
    beating = Heartbeat(search).__enter__()
    try:
        (finding,) = check_runs(local_store)
        who = f"process {os.getpid()} on {socket.gethostname()}"
        assert finding == Finding("runs", "ok", f"search 'wide net' with 1 of its runs: {who} drives it")
    finally:
        beating.stop_beating()  # as when its machine loses power
    (finding,) = check_runs(local_store)
    assert finding.state == "note"
    assert finding.found == f"search 'wide net' with 1 of its runs: no heartbeat of {who} for 1 s"
    assert finding.advice.startswith(resume)
    assert search.run_id in finding.advice


def test_a_baseline_elsewhere_and_runs_of_others(local_store: Store, elsewhere: Store, writer: PatientWriter) -> None:
    local_store.client.create_run(local_store.experiment_id)  # not ours to judge
    TrackedRun.create(elsewhere, writer, "b", {"role": "baseline"})
    (finding,) = check_runs(local_store)
    assert finding.state == "note"
    assert finding.found == (
        "baseline 'b': made in another folder or on another machine, where alone one can tell whether it is running"
    )
    assert finding.advice.startswith("if it is not: to resume it: python -m fakeface_lab.baseline --resume")
