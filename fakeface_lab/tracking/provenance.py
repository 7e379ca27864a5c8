"""The code, packages and machine that a run came from."""

import getpass
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

__all__ = ["code_tags", "host_facts", "package_versions"]

PACKAGES = (
    "fakeface-lab", "tensorflow", "keras", "keras-tuner", "mlflow", "numpy", "pillow", "scikit-learn", "scipy",
    "pandas",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    installed = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {name: version for name, version in installed.items() if version}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def code_tags() -> dict[str, str]:
    """Return MLflow's source tags: user, program, commit, and whether the files differ from the commit.

    MLflow uses the repository of the main script, which may be a different one under `python -m`; this uses the
    repository that contains this package.
    """
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": Path(sys.argv[0]).stem if sys.argv[0] else "python",
        "mlflow.source.type": "LOCAL",
    }
    folder = Path(__file__).resolve().parents[1]
    commit = _git(folder, "rev-parse", "HEAD")
    # A package installed inside some other repository must not report that repository's commit.
    if commit is not None and _git(folder, "ls-files", "--error-unmatch", "__init__.py") is not None:
        tags["mlflow.source.git.commit"] = commit
        dirty = bool(_git(folder, "status", "--porcelain", "--", str(folder)))
        tags["mlflow.source.git.dirty"] = str(dirty).lower()
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user id may have no name
        return "unknown"


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def host_facts() -> dict[str, str | int]:
    """Return name, system, processor, number of cores and memory of this machine."""
    import psutil

    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cores": os.cpu_count() or 1,
        "memory_bytes": int(psutil.virtual_memory().total),
    }
