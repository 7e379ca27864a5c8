"""Run the tests of what talks to MLflow with another MLflow than the pinned one.

    python -m tests.mlflow_versions                  # the oldest that is supported, and the newest that exists
    python -m tests.mlflow_versions 3.12.0 3.18.0

Each version is installed into an environment of its own, in front of the packages of this one; it is deleted at the
end. Exits with 1 if a test fails with any of them.
"""

import argparse
import os
import site
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1]
TESTS = ("tests/tracking", "tests/search/ledger", "tests/test_baseline.py", "tests/assess/test_health.py")
NEWEST = "newest"


def oldest_version() -> str:
    """The lower limit in `pyproject.toml`."""
    requirements = [Requirement(text) for text in metadata.requires("fakeface-lab") or ()]
    (mlflow,) = (one for one in requirements if one.name == "mlflow" and one.marker is None)  # not that of an extra
    (limit,) = mlflow.specifier
    return limit.version


def make_environment(folder: Path, version: str) -> Path:
    """Return the Python of a new environment with this MLflow, and everything else as here."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    (own_packages,) = folder.glob("lib/python*/site-packages")
    # After the environment's own packages, so that those win. `addsitedir` also follows an editable installation.
    lines = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    (own_packages / "everything_else.pth").write_text("".join(lines))
    wanted = "mlflow" if version == NEWEST else f"mlflow=={version}"
    # Of the other packages pip takes those that are here, unless this MLflow needs other versions.
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", wanted], check=True)
    return python


def run_tests(python: Path) -> bool:
    """Run pytest there, print its output, and return whether all tests passed."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [str(python), "-m", "pytest", "-q", *TESTS]
    return subprocess.run(command, cwd=PROJECT, env=environment).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mlflow_versions", description=__doc__)
    parser.add_argument("versions", nargs="*", help="versions of MLflow; default: the oldest supported, and the newest")
    versions = parser.parse_args().versions or [oldest_version(), NEWEST]
    outcomes = {}
    for version in versions:
        with tempfile.TemporaryDirectory(prefix=f"mlflow-{version}-") as folder:
            python = make_environment(Path(folder), version)
            code = "from importlib import metadata; print(metadata.version('mlflow'))"
            # The newest that pip can install, which may be the one that is here already.
            found = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
            print(f"MLflow {found}", flush=True)
            outcomes[found] = run_tests(python)
    for found, passed in outcomes.items():
        print(f"MLflow {found}: {'passed' if passed else 'FAILED'}")
    return 0 if all(outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
