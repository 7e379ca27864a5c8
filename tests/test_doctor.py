"""The doctor as a program: its lines, its JSON, its exit codes, and a real cluster."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakeface_lab.doctor import main
from fakeface_lab.tracking.store import Store
from tests.conftest import MakeImages

PROJECT = Path(__file__).parents[1]


def as_json(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, dict[str, str]]:
    assert main([*words, "--json"]) == code
    found: list[dict[str, str]] = json.loads(capsys.readouterr().out)
    assert all(set(finding) == {"check", "state", "found", "advice"} for finding in found)
    return {finding["check"]: finding for finding in found}


def test_all_is_well(local_store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    checks = [line.split()[0] for line in lines[:-1]]
    assert list(dict.fromkeys(checks)) == [
        "versions", "store", "clock", "writing", "artifacts", "runs", "ray", "cores", "memory", "gpu", "disk",
    ]  # fmt: skip
    assert "store     ok       sqlite:///" in "\n".join(lines)
    assert re.fullmatch(r"ready for a search; \w+ to know", lines[-1])


def test_a_problem_exits_with_2(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tracking-uri", "http://me:secret@127.0.0.1:9"]) == 2
    output = capsys.readouterr().out
    assert "store     problem  tracking store http://***@127.0.0.1:9: no answer; is the server running" in output
    assert "secret" not in output
    assert re.search(r"\n1 to solve before a search, \d to know\n$", output)


def test_the_plan_of_a_search_is_compared_with_the_disk(
    project: Path, tmp_path: Path, make_images: MakeImages, capsys: pytest.CaptureFixture[str]
) -> None:
    config = project / "experiments" / "search.toml"
    text = (PROJECT / "experiments" / "search-demo.toml").read_text()
    text = text.replace('"demo"', json.dumps(str(make_images())))
    config.write_text(text := f'tracking_uri = "sqlite:///{tmp_path}/its.db"\n{text}')
    found = as_json(["--config", str(config)], capsys)
    assert found["store"]["found"] == f"sqlite:///{tmp_path}/its.db has no runs yet"
    assert "the search needs about" in found["disk"]["found"]

    config.write_text(text.replace("image_size = 64", "image_size = 2048").replace("= [16, 32]", "= [16, 1000]"))
    config.write_text(config.read_text().replace("[32, 64, 128]", "[4096, 8192]").replace("trials = 4", "trials = 500"))
    found = as_json(["--config", str(config)], capsys, code=2)
    assert found["disk"]["state"] == "problem"


def test_a_search_that_cannot_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = project / "search.toml"
    config.write_text('data = "nowhere"\n')
    found = as_json(["--config", str(config)], capsys, code=2)
    assert found["search"]["found"] == "--data nowhere: no such folder"
    assert found["search"]["advice"].startswith("give auto, ")


def test_mistakes_are_reported_in_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "search.toml").write_text("trails = 4\n")
    for words, message in (
        (["--config", "search.toml"], "error: trails: unknown setting; did you mean trials?\n"),
        (["--config", "none.toml"], "error: --config none.toml: no such file; see experiments/ for examples\n"),
        (["--ray-adress", "x"], "error: --ray-adress: unknown argument; did you mean --ray-address?\n"),
    ):
        assert main(words) == 2
        assert capsys.readouterr().err == message


def test_another_backend_is_a_problem(project: Path) -> None:
    settings = os.environ | {"PYTHONPATH": str(PROJECT), "KERAS_BACKEND": "jax"}
    words = [sys.executable, "-m", "fakeface_lab.doctor"]
    done = subprocess.run(words, env=settings, capture_output=True, text=True)
    assert done.returncode == 2
    assert "backend   problem  KERAS_BACKEND = 'jax': only tensorflow is supported; unset it\n" in done.stdout


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a program beside a Ray cluster of one node, and its address."""
    folder = tmp_path_factory.mktemp("r")  # sockets have short names
    settings = os.environ | {
        "PYTHONPATH": str(PROJECT),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Whoever reaches the port could run code.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    words = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--port=0", "--num-cpus=1", "--block"]
    words += ["--include-dashboard=false", "--object-store-memory=100000000", f"--temp-dir={folder}"]
    log = folder / "head.log"
    with log.open("w") as file:
        head = subprocess.Popen(words, env=settings, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"ray start --address='([^']+)'", log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield settings | {"RAY_ADDRESS": found[1]}
    finally:
        family = [head_process := psutil.Process(head.pid), *head_process.children(recursive=True)]
        head.terminate()  # it ends its processes
        _, left = psutil.wait_procs(family, timeout=20)
        for process in left:
            process.kill()
        head.wait()


def ray_findings(settings: dict[str, str]) -> list[dict[str, Any]]:
    words = [sys.executable, "-m", "fakeface_lab.doctor", "--json"]
    done = subprocess.run(words, env=settings, capture_output=True, text=True, timeout=240)
    return [finding for finding in json.loads(done.stdout) if finding["check"] == "ray"]


@pytest.mark.slow  # half a minute
def test_a_real_cluster(project: Path, cluster: dict[str, str]) -> None:
    (finding,) = ray_findings(cluster)
    assert finding["state"] == "ok", finding
    pattern = r"cluster [\d.:]+ has 1 node\(s\), 1 CPUs, 0 GPUs, [\d.]+ GB memory, 0.1 GB for objects"
    assert re.fullmatch(pattern, finding["found"])
    (finding,) = ray_findings(cluster | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
    assert finding["state"] == "problem"
    assert finding["found"].endswith(f"Failed to connect to Ray cluster at {cluster['RAY_ADDRESS']}")
    assert "is RAY_AUTH_TOKEN its token?" in finding["advice"]
