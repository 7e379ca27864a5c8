"""The server of `deploy/server.sh`: who may use it and how it says no, what it needs, where its secrets are not."""

import io
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
import requests

from fakeface_lab import compare
from fakeface_lab.errors import AccessError
from fakeface_lab.tracking.store import open_store
from fakeface_lab.tracking.writer import PatientWriter
from tests.deploy.searches import Searches
from tests.deploy.servers import S3, TrackingServer
from tests.keras_tuner.tiny_tuner import FIT, X, Y, build, random_oracle
from tests.search_state import State

NEEDED = ("PGHOST", "PGDATABASE", "PGUSER", "PGPASSWORD", "MLFLOW_ARTIFACTS_DESTINATION", "AWS_ACCESS_KEY_ID",
          "AWS_SECRET_ACCESS_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")  # fmt: skip


def refused(variables: dict[str, str]) -> list[str]:
    """Return the lines with which the script ends that starts the server."""
    script = Path(__file__).parents[2] / "deploy" / "server.sh"
    done = subprocess.run([script], env={"PATH": "/usr/bin:/bin"} | variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr.splitlines()


def test_each_missing_variable_has_a_line() -> None:
    assert refused({}) == [f"error: {name} is not set or not exported; see deploy/README.md" for name in NEEDED]
    empty = dict.fromkeys(NEEDED, "s3://bucket") | {"PGPASSWORD": ""}
    assert refused(empty) == ["error: PGPASSWORD is not set or not exported; see deploy/README.md"]


def test_artifacts_elsewhere_than_in_s3_are_refused() -> None:
    (line,) = refused(dict.fromkeys(NEEDED, "/var/artifacts"))
    assert line == "error: MLFLOW_ARTIFACTS_DESTINATION: not an S3 address; set it to s3://BUCKET or s3://BUCKET/FOLDER"


@pytest.mark.parametrize("path", ["mlflow/experiments/search?max_results=1", "mlflow-artifacts/artifacts"])
def test_a_request_without_credentials_is_refused(path: str, tracking_server: TrackingServer) -> None:
    address = f"{tracking_server.uri}/api/2.0/{path}"
    assert requests.get(address, timeout=10).status_code == 401
    assert requests.get(address, timeout=10, auth=("ana", "wrong password")).status_code == 401
    assert requests.put(f"{tracking_server.uri}/api/2.0/mlflow-artifacts/artifacts/a", timeout=10).status_code == 401
    right = ("ana", tracking_server.password)
    assert requests.get(f"{tracking_server.uri}/api/2.0/mlflow/experiments/search?max_results=1", auth=right,
                        timeout=10).status_code == 200  # fmt: skip


def test_it_listens_on_this_machine_only(tracking_server: TrackingServer) -> None:
    assert tracking_server.listening() == {("127.0.0.1", tracking_server.port)}


@pytest.mark.parametrize("password", [None, "wrong password"])
def test_a_program_without_the_right_password_says_so(
    password: str | None, tracking_server: TrackingServer, project: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if password is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ana")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    assert compare.main(["--tracking-uri", tracking_server.uri]) == 2
    line = (
        f"tracking store {tracking_server.uri}: wrong or no password; set MLFLOW_TRACKING_USERNAME and "
        f"MLFLOW_TRACKING_PASSWORD"
    )
    assert capsys.readouterr().err == f"error: {line}\n"
    with pytest.raises(AccessError, match=f"^{re.escape(line)}$"):
        open_store(tracking_server.uri, project, "faces")


def test_a_user_without_permission_is_told_so(
    client_of: TrackingServer, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(None, project, "of ana")
    run_id = store.client.create_run(store.experiment_id).info.run_id
    client_of.add_user("ben")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ben")
    of_ben = open_store(None, project, "of ana")
    assert of_ben.client.get_run(run_id).info.run_id == run_id, "may read"
    with pytest.raises(AccessError, match=r"^tracking store: this user has no permission; ask the experiment's"):
        PatientWriter(5).call(lambda: of_ben.client.set_tag(run_id, "a", "b"))


def test_files_go_and_come_through_the_server_alone(
    client_of: TrackingServer, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, send = set[str](), requests.adapters.HTTPAdapter.send

    def noted(adapter: Any, request: requests.PreparedRequest, *words: Any, **named: Any) -> Any:
        places.add(str(request.url).rpartition("/api/")[0] or str(request.url))
        return send(adapter, request, *words, **named)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", noted)
    # Larger files MLflow would send to the store itself, at an address that the server signs.
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", "1")
    store = open_store(None, project, "files")
    run_id = store.client.create_run(store.experiment_id).info.run_id
    store.client.log_text(run_id, "through the server", "file.txt")
    found = store.client.download_artifacts(run_id, "file.txt", str(tmp_path))
    assert Path(found).read_text() == "through the server"
    assert places == {client_of.uri}


@pytest.mark.slow
def test_a_model_is_loaded_back_through_the_server(
    client_of: TrackingServer, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fakeface_lab import Tuner

    tuner = Tuner(random_oracle(), build, project_name="tuned", engine="inline")
    tuner.search(X, Y, **FIT)
    scores = [trial.score for trial in tuner.oracle.get_best_trials(3)]
    assert len(scores) == 3
    (tmp_path / "other" / "experiments").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")  # as on another machine, which has the address and the password only
    other = Tuner(random_oracle(), build, project_name="tuned", engine="inline")
    (model,) = other.get_best_models()
    assert model.evaluate(X[45:], Y[45:], verbose=0)[0] == pytest.approx(scores[0], abs=1e-6)
    assert not list(tmp_path.rglob("mlflow.db"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_secrets_are_found_nowhere(searches: Searches, tracking_server: TrackingServer, undisturbed: State) -> None:
    process = searches.start("secrets")
    searches.wait_for_trial("secrets", 1)
    commands = [words for one in psutil.process_iter() if (words := _command(one))]
    assert any("uvicorn" in words for words in commands)
    with tracking_server.postgres.killed():  # for errors in the logs and in answers
        answer = requests.get(f"{tracking_server.uri}/api/2.0/mlflow/experiments/search?max_results=1", timeout=30,
                              auth=("ana", tracking_server.password))  # fmt: skip
        assert answer.status_code == 503
    assert process.wait(600) == 0, searches.log("secrets")
    objects = _objects(tracking_server.s3)
    assert sum(name.endswith(".keras") for name in objects) >= 6, "the models of two searches"
    texts = {
        "command lines": repr(commands).encode(),
        "an answer": answer.content,
        "tables": tracking_server.postgres.dump().encode(),
        **{
            str(one.log): one.log.read_bytes()
            for one in (tracking_server, tracking_server.postgres, tracking_server.s3)
        },
        **{str(path): path.read_bytes() for path in searches.folder.rglob("*") if path.is_file()},
        **objects,
    }
    assert b"log-batch" in texts[str(tracking_server.log)]
    assert b"kill test" in texts["tables"]
    found = [
        name for name, content in texts.items() for secret in tracking_server.secrets if secret.encode() in content
    ]
    assert found == []


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _objects(s3: S3) -> dict[str, bytes]:
    """Return the content of all objects, and of the members of those that are archives."""
    address = s3.address
    client = boto3.client(
        "s3", endpoint_url=address["MLFLOW_S3_ENDPOINT_URL"], aws_access_key_id=address["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=address["AWS_SECRET_ACCESS_KEY"], region_name=address["AWS_DEFAULT_REGION"],
    )  # fmt: skip
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="artifacts")
    names = [one["Key"] for page in pages for one in page.get("Contents", [])]
    contents = {name: client.get_object(Bucket="artifacts", Key=name)["Body"].read() for name in names}
    for name, content in list(contents.items()):
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                contents |= {f"{name}/{member}": archive.read(member) for member in archive.namelist()}
    return contents
