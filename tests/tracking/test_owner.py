"""Where a run comes from: code, packages and machine."""

import getpass
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil

from fakeface_lab.tracking.owner import code_tags, host_facts, package_versions


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


def tags_of_copy(root: Path) -> dict[str, str]:
    """The tags that a copy of the package in `root` returns."""
    code = "import json; from fakeface_lab.tracking.owner import code_tags; print(json.dumps(code_tags()))"
    settings = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=settings, capture_output=True, text=True, check=True
    )
    tags: dict[str, str] = json.loads(done.stdout)
    return tags


def test_commit_and_changed_files_of_the_packages_own_repository(tmp_path: Path) -> None:
    package = copy_package(tmp_path)
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")

    git(tmp_path, "add", ".gitignore")
    git(tmp_path, "commit", "--quiet", "-m", "without the package")
    assert "mlflow.source.git.commit" not in tags_of_copy(tmp_path), "the package is not part of that repository"

    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "with the package")
    commit = git(tmp_path, "rev-parse", "HEAD")
    clean = tags_of_copy(tmp_path)
    assert (clean["mlflow.source.git.commit"], clean["mlflow.source.git.dirty"]) == (commit, "false")

    (tmp_path / "notes.txt").write_text("beside the package")
    assert tags_of_copy(tmp_path)["mlflow.source.git.dirty"] == "false"
    (package / "__init__.py").write_text("# changed\n")
    changed = tags_of_copy(tmp_path)
    assert (changed["mlflow.source.git.commit"], changed["mlflow.source.git.dirty"]) == (commit, "true")


def test_outside_a_repository_no_commit_is_claimed(tmp_path: Path) -> None:
    copy_package(tmp_path)
    assert not any("git" in name for name in tags_of_copy(tmp_path))
