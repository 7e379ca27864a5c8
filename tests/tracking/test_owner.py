"""Where a run comes from: code, packages and machine; and runs whose process is gone are ended."""

import getpass
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from fakeface_lab.errors import TrackingError
from fakeface_lab.tracking.owner import code_tags, host_facts, package_versions, sweep_dead_runs
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter
from tests.tracking.made_runs import make_run, start_program


def test_versions_are_those_of_the_installed_packages() -> None:
    versions = package_versions()
    assert versions["python"] == platform.python_version()
    for name in ("tensorflow", "keras", "keras-tuner", "mlflow", "numpy", "pillow"):
        assert versions[name] == metadata.version(name)
    assert all(versions.values())


def test_the_machine() -> None:
    facts = host_facts()
    assert facts["host"] == socket.gethostname()
    assert facts["num_cores"] == os.cpu_count()
    assert facts["memory_bytes"] == psutil.virtual_memory().total
    assert facts["system"]
    assert facts["processor"]


def test_the_user_and_the_program() -> None:
    tags = code_tags()
    assert tags["mlflow.user"] == getpass.getuser()
    assert tags["mlflow.source.type"] == "LOCAL"
    assert tags["mlflow.source.name"]


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def copy_package(root: Path) -> Path:
    """Copy the modules that `code_tags` needs, and return the folder of the package."""
    original, package = Path(sys.modules["fakeface_lab"].__file__ or "").parent, root / "fakeface_lab"
    (package / "tracking").mkdir(parents=True)
    for name in ("__init__", "errors", "tracking/__init__", "tracking/owner", "tracking/store", "tracking/writer"):
        shutil.copy(original / f"{name}.py", package / f"{name}.py")
    return package


@contextmanager
def copy_that_tells_its_tags(root: Path) -> Iterator[Callable[[], dict[str, str]]]:
    """A function that asks the copy of the package in `root`, which runs in a process of its own, for its tags."""
    code = (
        "import json, sys; from fakeface_lab.tracking.owner import code_tags\n"
        "for _ in sys.stdin: print(json.dumps(code_tags()), flush=True)"
    )
    settings = os.environ | {"PYTHONPATH": str(root)}
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    with subprocess.Popen(command, cwd=root, env=settings, stdin=pipe, stdout=pipe, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def ask() -> dict[str, str]:
            asked.write("tags\n")
            tags: dict[str, str] = json.loads(answers.readline())
            return tags

        yield ask


def test_commit_and_changed_files_of_the_packages_own_repository(tmp_path: Path) -> None:
    package = copy_package(tmp_path)
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")

    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "--quiet", "-m", "without the package")
    with copy_that_tells_its_tags(tmp_path) as tags:
        assert "mlflow.source.git.commit" not in tags(), "the package is not part of that repository"

        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "--quiet", "-m", "with the package")
        commit = git(tmp_path, "rev-parse", "HEAD")
        clean = tags()
        assert (clean["mlflow.source.git.commit"], clean["mlflow.source.git.dirty"]) == (commit, "false")

        (tmp_path / "notes.txt").write_text("beside the package")
        assert tags()["mlflow.source.git.dirty"] == "false"
        (package / "__init__.py").write_text("# changed\n")
        changed = tags()
        assert (changed["mlflow.source.git.commit"], changed["mlflow.source.git.dirty"]) == (commit, "true")


def test_outside_a_repository_no_commit_is_claimed(tmp_path: Path) -> None:
    copy_package(tmp_path)
    with copy_that_tells_its_tags(tmp_path) as tags:
        assert not any("git" in name for name in tags())


def test_runs_of_dead_processes_are_ended_and_others_are_not(
    local_store: Store, project: Path, writer: PatientWriter
) -> None:
    process, dead_id = start_program(project)
    of_another_machine = local_store.client.create_run(local_store.experiment_id)
    mine = make_run(local_store, writer, "mine")
    assert sweep_dead_runs(local_store) == [], "all are alive, or not ours to judge"
    process.kill()
    process.communicate()
    assert local_store.client.get_run(dead_id).info.status == "RUNNING", "nobody could say a word"
    assert sweep_dead_runs(local_store) == ["a run"]
    dead = local_store.client.get_run(dead_id)
    assert (dead.info.status, dead.data.tags["status_reason"]) == (
        "KILLED",
        "process exited without reporting a status",
    )
    for run_id in (of_another_machine.info.run_id, mine.run_id):
        assert local_store.client.get_run(run_id).info.status == "RUNNING"


def test_left_over_folders_of_finished_runs_are_removed_and_others_are_not(
    local_store: Store, writer: PatientWriter
) -> None:
    runs = {
        name: TrackedRun.create(local_store, writer, name, {"role": role})
        for name, role in (("final", "final"), ("trial", "trial"), ("open", "baseline"), ("held", "final"))
    }
    for name in ("final", "trial", "held"):
        runs[name].end("FINISHED")
    runs["held"].lock.acquire()
    (local_store.work_folder / "of another store").mkdir()
    sweep_dead_runs(local_store)
    assert [name for name, run in runs.items() if run.folder.exists()] == ["trial", "open", "held"]
    assert (local_store.work_folder / "of another store").exists()
    runs["held"].lock.release()


@pytest.mark.slow
def test_a_left_over_lock_file_does_not_end_a_run_that_is_written_elsewhere(
    local_store: Store, writer: PatientWriter, tmp_path: Path
) -> None:
    run = TrackedRun.create(local_store, writer, "a run", {})
    run.lock.release()  # its process here is gone
    (tmp_path / "elsewhere").mkdir()
    elsewhere = replace(local_store, project=tmp_path / "elsewhere")
    program = (
        "import sys; from pathlib import Path\n"
        "from fakeface_lab.tracking.writer import PatientWriter; from fakeface_lab.tracking.runs import TrackedRun\n"
        "from fakeface_lab.tracking.store import open_store\n"
        "store = open_store(sys.argv[1], Path(sys.argv[2]), sys.argv[3])\n"
        "TrackedRun.reopen(store, PatientWriter(20), store.client.get_run(sys.argv[4]))\n"
        "sys.stdout.write('open'); sys.stdout.flush(); sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", program, elsewhere.uri, str(elsewhere.project), elsewhere.experiment_name]
    other = subprocess.Popen([*words, run.run_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.read(4) == "open"
        assert sweep_dead_runs(local_store) == []
        assert local_store.client.get_run(run.run_id).info.status == "RUNNING"
        with pytest.raises(TrackingError, match=r"run a run: another process has taken it over .*; this one stops"):
            run.require_owned()
    finally:
        other.kill()
        other.communicate()
    assert sweep_dead_runs(elsewhere) == ["a run"]
