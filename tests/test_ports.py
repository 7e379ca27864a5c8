"""Which ports are opened by what the documents tell users to start: none that another machine can reach."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.service import Service, listening

ROOT = Path(__file__).parents[1]
LOOPBACK = {"127.0.0.1", "::1"}

RAY = """
from fakeface_lab.search.run.placement import connect
connect(None)
import ray
ray.get(ray.remote(lambda: None).remote())  # a worker has started
print("ready", flush=True)
input()
"""

pytestmark = pytest.mark.slow


class Page(Service):
    """What `make ui` starts, at a free port and over a store of its own."""

    def command(self) -> list[str]:
        line = subprocess.run(["make", "-n", "ui"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        (words,) = re.findall(r"\bmlflow (ui .*)", line)
        words = re.sub(r"--port \d+", f"--port {self.port}", words)
        words = re.sub(r"sqlite:\S+", f"sqlite:///{self.folder / 'mlflow.db'}", words)
        return [sys.executable, "-m", "mlflow", *words.split()]

    def variables(self) -> dict[str, str]:
        return os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}

    def answers(self) -> bool:
        return requests.get(f"http://127.0.0.1:{self.port}/health", timeout=5).ok


def test_make_ui_listens_on_this_machine_only(tmp_path: Path) -> None:
    page = Page(tmp_path)
    page.start()
    try:
        assert page.listening() == {("127.0.0.1", page.port)}
    finally:
        page.kill()


@pytest.mark.parametrize("before", ["", "import ray"], ids=["", "in-a-script-that-has-imported-it"])
def test_ray_started_by_a_search_listens_on_this_machine_only(before: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-c", before + RAY], cwd=tmp_path, env=environment, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as search:  # fmt: skip
        assert search.stdin is not None
        assert search.stdout is not None
        assert "ready\n" in iter(search.stdout.readline, "")
        found = listening(search.pid)
        search.stdin.close()
    assert len(found) > 3, "Ray's own processes are among them"
    assert {ip for ip, _ in found} <= LOOPBACK
