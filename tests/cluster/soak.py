"""Program: many tiny trials through Ray while nodes die: all finished, nothing twice, memory and costs over time.

    python -m tests.cluster.soak --trials 1000 --kill-every-secs 120 --tracking-uri URI --out FOLDER

The cluster has a head, on which nothing trains, and nodes of one core each. Every so often one of them is killed and a
new one started. In FOLDER are `soak.json` (a sample each few seconds: finished trials, memory of the driver and of the
processes of the server) and `soak.png`. It ends with 1 if a trial is missing, failed or has a point twice.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from matplotlib.figure import Figure
from mlflow.tracking import MlflowClient

from tests.cluster.ray_nodes import RayNodes, ray_nodes

_SAMPLE_SECS = 5.0


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--kill-every-secs", type=float, default=120)
    parser.add_argument("--tracking-uri", help="default: a SQLite file")
    parser.add_argument("--server-name", default="mlflow", help="text in the command lines of the server's processes")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        project = Path(scratch, "project")
        (project / "experiments").mkdir(parents=True)
        uri = given.tracking_uri or f"sqlite:///{project / 'mlflow.db'}"
        with ray_nodes(Path(scratch), given.nodes + 1, head_cpus=0) as nodes:
            samples, code = _run(given, project, uri, nodes)
    (given.out / "soak.json").write_text(json.dumps(samples))
    _draw(samples, given.out / "soak.png")
    problems = _problems(MlflowClient(uri), given.trials) if code == 0 else [f"the driver ended with {code}"]
    num_kills = sum(sample["killed"] for sample in samples)
    print(
        f"{given.trials} trials, {num_kills} nodes killed, {samples[-1]['secs']:.0f} s; problems: {problems or 'none'}"
    )
    return 1 if problems else 0


def _run(given: argparse.Namespace, project: Path, uri: str, nodes: RayNodes) -> tuple[list[dict[str, Any]], int]:
    words = ["--trials", str(given.trials), "--workers", str(given.nodes), "--epoch-secs", "0.05"]
    command = [sys.executable, "-m", "tests.cluster.curves", str(project), nodes.address, *words]
    began, last_kill, victim = time.monotonic(), time.monotonic(), 1
    samples: list[dict[str, Any]] = []
    with (given.out / "driver.log").open("wb") as log:
        driver = subprocess.Popen(
            command, env={**os.environ, **nodes.environment, "MLFLOW_TRACKING_URI": uri}, stdout=log, stderr=log
        )
        try:
            while driver.poll() is None:
                killed = time.monotonic() - last_kill > given.kill_every_secs
                if killed:
                    nodes.kill(victim)
                    nodes.add()
                    victim, last_kill = victim + 1, time.monotonic()
                ended = project / "trained.txt"
                lines = set(ended.read_text().splitlines()) if ended.exists() else set()
                samples.append(
                    {
                        "secs": time.monotonic() - began,
                        "num_begun": sum(line.endswith(" 4") for line in lines),
                        "driver_bytes": psutil.Process(driver.pid).memory_info().rss,
                        "server_bytes": _memory_bytes(given.server_name) if given.tracking_uri else 0,
                        "killed": killed,
                    }
                )
                time.sleep(_SAMPLE_SECS)
        finally:
            driver.kill()
    return samples, driver.wait()


def _memory_bytes(name: str) -> int:
    total = 0
    for process in psutil.process_iter(["cmdline", "memory_info"]):
        if process.pid != os.getpid() and name in " ".join(process.info["cmdline"] or []):
            total += process.info["memory_info"].rss
    return total


def _draw(samples: list[dict[str, Any]], path: Path) -> None:
    """Draw memory, and the time that a trial takes, over the trials."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    done = [sample["num_begun"] for sample in samples]
    upper.plot(done, [sample["driver_bytes"] / 1e6 for sample in samples], label="driver")
    if any(sample["server_bytes"] for sample in samples):
        upper.plot(done, [sample["server_bytes"] / 1e6 for sample in samples], label="tracking server")
    upper.set_ylabel("memory, MB")
    upper.set_ylim(bottom=0)
    upper.legend()
    step = max(1, len(samples) // 40)
    pairs = [(a, b) for a, b in zip(samples[:-step:step], samples[step::step], strict=False)
             if b["num_begun"] > a["num_begun"]]  # fmt: skip
    rates = [(b["secs"] - a["secs"]) / (b["num_begun"] - a["num_begun"]) for a, b in pairs]
    lower.plot([b["num_begun"] for _, b in pairs], rates)
    for sample in samples:
        if sample["killed"]:
            lower.axvline(sample["num_begun"], color="grey", linestyle=":")
    lower.set_ylabel("seconds a trial")
    lower.set_xlabel("trials trained (dotted: a node was killed)")
    lower.set_ylim(bottom=0)
    figure.savefig(path, dpi=100)


def _problems(client: MlflowClient, num_trials: int) -> list[str]:
    """Return what is wrong with the runs of the search."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    token, runs = None, []
    while True:
        page = client.search_runs(experiments, "tags.role = 'trial'", page_token=token)
        runs += page
        token = page.token
        if not token:
            break
    numbers = sorted(int(run.data.tags["trial"]) for run in runs)
    problems = [] if numbers == list(range(num_trials)) else [f"{len(numbers)} trials, not {num_trials}"]
    unfinished = [run.info.run_name for run in runs if run.info.status != "FINISHED"]
    problems += [f"not finished: {unfinished[:5]}"] if unfinished else []
    for run in runs:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "val_loss")]
        if steps != sorted(set(steps)):
            problems.append(f"{run.info.run_name}: val_loss at steps {steps}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
