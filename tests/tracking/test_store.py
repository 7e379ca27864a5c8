"""Which store a program writes to, and one clear line where it cannot."""

import gc
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest

from fakeface_lab.errors import TrackingError
from fakeface_lab.settings import BaselineSettings
from fakeface_lab.terminal import print_places
from fakeface_lab.tracking.store import Store, open_store, resolve_tracking_uri, search_runs
from tests.mlflow_server import Server


def test_the_setting_takes_precedence_over_the_environment_and_that_over_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_tracking_uri(None, project) == f"sqlite:///{project}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert resolve_tracking_uri(None, project) == "http://tracking.example:5000"
    assert resolve_tracking_uri("sqlite:////tmp/other.db", project) == "sqlite:////tmp/other.db"


def test_a_relative_sqlite_path_is_made_absolute(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_tracking_uri("sqlite:///runs/mlflow.db", project) == f"sqlite:///{project}/runs/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    (project / "below").mkdir()
    monkeypatch.chdir(project / "below")
    assert resolve_tracking_uri(None, project) == f"sqlite:///{project}/below/mlflow.db"


def test_the_experiment_of_a_new_store_is_ready_for_mlflows_page(project: Path) -> None:
    store = open_store("sqlite:///new/folder/mlflow.db", project, "hard faces/2")
    assert (project / "new" / "folder" / "mlflow.db").is_file(), "missing folders are made"
    found = store.client.get_experiment(store.experiment_id)
    assert found.name == store.experiment_name == "hard faces/2"
    assert found.artifact_location == (project / "mlruns" / "hard faces-2").as_uri()
    assert found.tags["mlflow.experimentKind"] == "custom_model_development"
    assert "Compare" in found.tags["mlflow.note.content"]
    assert store.is_local
    assert store.work_folder == project / "mlruns" / ".work"
    assert store.ui_command() == f"mlflow ui --workers 1 --port 5000 --backend-store-uri {store.uri}"
    page = f"http://127.0.0.1:5000/#/experiments/{store.experiment_id}/runs"
    assert store.runs_link() == f"{page}?workflowType=machine_learning"
    assert store.run_link("abc") == f"{page}/abc?workflowType=machine_learning"
    assert open_store(store.uri, project, "hard faces/2").experiment_id == store.experiment_id


def test_a_server_is_linked_to_and_keeps_its_own_artifacts(server: Server, project: Path) -> None:
    store = open_store(server.uri + "/", project, "faces")
    assert not store.is_local
    assert store.ui_command() is None
    assert store.runs_link().startswith(f"{server.uri}/#/experiments/{store.experiment_id}/runs")
    assert store.client.get_experiment(store.experiment_id).artifact_location.startswith("mlflow-artifacts:")


def test_the_experiment_of_the_environment_takes_precedence(
    project_with_tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    store = open_store(None, project_with_tables, "faces")
    assert store.experiment_name == "mine"
    assert store.client.get_experiment_by_name("faces") is None


def test_opening_decides_where_models_are_loaded_from_but_not_where_the_next_program_writes(
    project_with_tables: Path, empty_project: Path
) -> None:
    project = project_with_tables
    shutil.copy(empty_project / "mlflow.db", project / "first.db")
    first = open_store("sqlite:///first.db", project, "faces")
    assert mlflow.get_tracking_uri() == first.uri
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert open_store(None, project, "faces").uri == f"sqlite:///{project}/mlflow.db"


def assert_one_line(project: Path, uri: str, match: str, experiment: str = "faces") -> None:
    with pytest.raises(TrackingError, match=match) as err:
        open_store(uri, project, experiment)
    assert "\n" not in str(err.value)


def test_a_deleted_experiment(local_store: Store) -> None:
    number = local_store.experiment_id
    local_store.client.delete_experiment(number)
    restore = f"experiment faces was deleted; restore it with `mlflow experiments restore --experiment-id {number}`"
    assert_one_line(local_store.project, local_store.uri, restore)


def test_an_out_of_date_schema(project: Path, empty_project: Path) -> None:
    shutil.copy(empty_project / "mlflow.db", project / "old.db")
    connection = sqlite3.connect(project / "old.db")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    connection.close()
    uri = f"sqlite:///{project}/old.db"
    assert_one_line(project, uri, f"made by an older MLflow; back it up, then run `mlflow db upgrade {uri}`")


def test_a_schema_of_a_newer_mlflow(project: Path, empty_project: Path) -> None:
    shutil.copy(empty_project / "mlflow.db", project / "new.db")
    with closing(sqlite3.connect(project / "new.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    message = f"made by a newer MLflow than {mlflow.__version__}; install that one to use it"
    assert_one_line(project, f"sqlite:///{project}/new.db", message)


def test_a_file_that_is_not_a_database(project: Path) -> None:
    (project / "notes.db").write_text("not a database\n" * 100)
    assert_one_line(project, "sqlite:///notes.db", "notes.db: file is not a database; see --tracking-uri")


def test_a_folder_in_place_of_a_database(project: Path) -> None:
    assert_one_line(project, f"sqlite:///{project}", "unable to open database file; see --tracking-uri")


def test_an_unreachable_server(project: Path) -> None:
    assert_one_line(project, "http://127.0.0.1:9", r"http://127\.0\.0\.1:9: no answer; is the server running")


@pytest.mark.skipif(
    not hasattr(mlflow.environment_variables, "MLFLOW_ALLOW_FILE_STORE"), reason="it was allowed before"
)
def test_a_folder_of_runs_of_an_older_mlflow(project: Path) -> None:
    assert_one_line(project, str(project / "mlruns"), "maintenance mode.*; see --tracking-uri")


def test_an_unknown_kind_of_store(project: Path) -> None:
    assert_one_line(project, "ftp://somewhere", "tracking store ftp://somewhere: .*; see --tracking-uri")


OPEN = """
import sys
import time
from pathlib import Path
from fakeface_lab.tracking.store import open_store
print(open_store(None, Path.cwd(), "faces").experiment_id)
"""


@pytest.mark.slow
def test_two_processes_create_the_same_store_at_the_same_time(project: Path) -> None:
    settings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN], cwd=project, env=settings, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert len({output for output, _ in answers}) == 1


def test_a_kill_while_the_tables_are_created_leaves_a_store_that_can_be_opened(project: Path) -> None:
    settings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen([sys.executable, "-c", OPEN], cwd=project, env=settings, stderr=subprocess.DEVNULL)
    growing = project / "mlflow.db.partial" / "mlflow.db"
    while not growing.exists() or growing.stat().st_size < 20_000:  # some of the tables
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert open_store(None, project, "faces").experiment_name == "faces"
    assert {path.name for path in project.glob("mlflow.db*")} <= {"mlflow.db", "mlflow.db.lock"}


def test_a_password_in_the_address_is_shown_nowhere(
    project: Path, local_store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "http://me:secret@127.0.0.1:9"
    with pytest.raises(TrackingError, match=r"tracking store http://\*\*\*@127.0.0.1:9: no answer") as err:
        open_store(uri, project, "faces")
    print_places(replace(local_store, uri=uri), "a run", "0" * 32)
    settings = BaselineSettings(tracking_uri=uri)
    shown = [str(err.value), capsys.readouterr().out, str(settings.model_dump()), settings.model_dump_json()]
    assert [text for text in shown if "secret" in text] == []
    assert "http://127.0.0.1:9/#/experiments/" in shown[1]
    assert settings.tracking_uri == uri


def test_python_looks_for_no_garbage_while_runs_are_read(local_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, search = [], local_store.client.search_runs

    def noted(*args: Any, **kwargs: Any) -> Any:
        seen.append(gc.isenabled())
        return search(*args, **kwargs)

    monkeypatch.setattr(local_store.client, "search_runs", noted)
    search_runs(local_store.client, [local_store.experiment_id], "")
    assert seen == [False]
    assert gc.isenabled()
    with pytest.raises(mlflow.MlflowException):
        search_runs(local_store.client, [local_store.experiment_id], "not a query")
    assert gc.isenabled()
    gc.disable()
    try:
        search_runs(local_store.client, [local_store.experiment_id], "")
        assert not gc.isenabled()
    finally:
        gc.enable()
