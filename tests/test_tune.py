"""The search program as its user meets it: a process of its own, killed, stopped, started again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from fakeface_lab.tune import main
from tests.kill_search import PROJECT, differences, faults, read_search, run_killed, run_undisturbed, write_project


def tune(project: Path, config: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fakeface_lab.tune", "--config", str(config), *words],
        cwd=project,
        env=environment(config) | variables,
        capture_output=True,
        text=True,
        timeout=280,
    )


def environment(config: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "FAKEFACE_"))}
    return kept | {"PYTHONPATH": str(PROJECT), "FAKEFACE_CACHE": str(config.parent / "cache"), "COLUMNS": "200"}


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "experiments").mkdir()
    return tmp_path


def test_a_search_to_its_verdict_then_shown_again_then_continued(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_project(scratch, "random", workers=1, final_seeds=1, num_trials=3)
    first = tune(scratch, config, "--engine", "inline")
    assert first.returncode == 0, first.stderr
    assert faults(scratch) == []
    for name in ("leaderboard", "charts"):
        assert len(re.findall(rf"^ +{name} +http\S+&viewStateShareKey={name}-", first.stdout, flags=re.M)) == 2
    client, parent, trials, finals = read_search(scratch)
    assert len(trials) == 3
    assert json.loads(trials[0].data.tags["values"])["filters_1"] == 8  # the documented one of this file
    assert parent.data.tags["test_openings"] == "1"
    # Trials never see the test images; finals have no validation left.
    assert not any(key.startswith("test_") for run in trials for key in run.data.metrics)
    assert all("test_accuracy" in run.data.metrics and "val_loss" not in run.data.metrics for run in finals)
    scores = [float(run.data.tags["score"]) for run in trials]
    assert scores == [min(point.value for point in client.get_metric_history(run.info.run_id, "val_loss"))
                      for run in trials]  # fmt: skip
    registered = client.get_registered_model("fakeface-images").aliases
    assert set(registered) == {"champion", "candidate"}
    best = scores.index(min(scores))
    assert client.get_model_version_by_alias("fakeface-images", "candidate").run_id in {
        run.info.run_id for run in finals if run.data.tags["final_key"] == f"final-trial-{best}-seed-0"
    }
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"leaderboard.csv", "best.toml", "history.png"} <= artifacts

    # In this process, with worker processes that are not needed: nothing is trained.
    monkeypatch.chdir(scratch)
    for variable in ("FAKEFACE_CACHE", "COLUMNS"):
        monkeypatch.setenv(variable, environment(config)[variable])
    assert main(["--config", str(config)]) == 0
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if line.startswith("verdict")] == [
        line for line in first.stdout.splitlines() if line.startswith("verdict")
    ]
    assert "final trial" not in again
    _, parent, trials, _ = read_search(scratch)
    assert (len(trials), parent.data.tags["test_openings"]) == (3, "1")

    assert main(["--config", str(config), "--epochs", "4"]) == 2
    refused = capsys.readouterr().err
    assert "search 'kill test' exists with other settings (epochs: 3 recorded, 4 given)" in refused
    assert refused.count("\n") == 1


def test_a_dry_run_writes_nothing_and_a_wrong_setting_is_refused(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(scratch)
    monkeypatch.setenv("FAKEFACE_CACHE", str(scratch / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    words = ["--config", str(write_project(scratch, "hyperband", workers=1, final_seeds=1))]
    before = sorted(path for path in scratch.rglob("*"))
    assert main([*words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    # The documented trial, (5 of 2 epochs, 2 of them to 4), 3 of 4: 4 + 10 + 4 + 12 epochs.
    assert "at most 11, the documented configuration first; 30 epochs in all" in shown
    assert "filters_1: values (4, 8); documented 8" in shown
    assert sorted(path for path in scratch.rglob("*")) == before
    assert main([*words, "--trials", "5"]) == 2
    refused = capsys.readouterr()
    assert refused.out == ""
    assert "Hyperband has its own number of trials" in refused.err


def test_help_loads_no_tensorflow(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "--keep-models" in capsys.readouterr().out
    program = "import sys, fakeface_lab.tune as t; t.main(['--help']); sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("send", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_ends_as_killed_and_goes_on(scratch: Path, send: signal.Signals) -> None:
    config = write_project(
        scratch, "random", workers=1, final_seeds=0, num_trials=25
    )  # the second driver takes seconds to decide
    words = [sys.executable, "-m", "fakeface_lab.tune", "--config", str(config)]
    process = subprocess.Popen(words, cwd=scratch, env=environment(config), stdout=subprocess.DEVNULL)
    _wait_for(lambda: len(_trials(scratch)) == 2)
    second = tune(scratch, config)
    assert second.returncode in (1, 2)
    assert "drives it" in second.stderr
    process.send_signal(send)
    assert process.wait(timeout=60) == 128 + send
    _, parent, trials, _ = read_search(scratch)
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in trials} <= {"KILLED", "FINISHED"}
    assert tune(scratch, config).returncode == 0
    assert faults(scratch) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("algorithm", ["random", "grid", "bayesian", "hyperband"])
def test_a_search_killed_three_times_is_the_same_as_an_undisturbed_one(tmp_path: Path, algorithm: str) -> None:
    config = write_project(tmp_path, algorithm, workers=1, final_seeds=1, num_trials=5)
    needed_secs = run_undisturbed(config, tmp_path / "undisturbed")
    run_killed(config, tmp_path / "killed", 3, needed_secs, seed=1)
    assert faults(tmp_path / "killed") == []
    assert differences(tmp_path / "undisturbed", tmp_path / "killed", 1) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_with_two_workers_equal_configurations_score_equal(tmp_path: Path) -> None:
    config = write_project(tmp_path, "random", workers=1, final_seeds=0, num_trials=5)
    run_undisturbed(config, tmp_path / "one")
    two = tmp_path / "two.toml"
    two.write_text(config.read_text().replace("workers = 1", "workers = 2"))
    run_killed(two, tmp_path / "two", 1, 60, seed=2)
    assert faults(tmp_path / "two") == []
    assert differences(tmp_path / "one", tmp_path / "two", 2) == []


def _trials(project: Path) -> list[str]:
    if not (project / "mlflow.db").exists():
        return []
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, "tags.role = 'trial'")
    return [run.info.run_id for run in found]


def _wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(1)
