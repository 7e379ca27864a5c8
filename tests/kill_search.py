"""Program: is a search that is killed again and again the same as one that never was?

    python tests/kill_search.py --algorithm hyperband --kills 50
    python tests/kill_search.py --algorithm random --kills 50 --workers 2

One small search runs undisturbed. Others with the same settings are killed with SIGKILL at random moments - driver,
worker, or both - and started again each time until they are finished, one search after the other until there were as
many kills as asked for. Each is compared with the undisturbed one from what the store has. Exit code 0: no difference;
1: differences, one a line.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from mlflow.entities import LoggedModelStatus, Run
from mlflow.tracking import MlflowClient
from PIL import Image

from fakeface_lab.tracking.lookup import MODEL_NAME
from fakeface_lab.tracking.serving import SERVED_NAME

PROJECT = Path(__file__).resolve().parents[1]

# Trials and epochs. Hyperband of 4 epochs has its own number: the documented one, 5 and 2 of them promoted, 3 more.
SIZES = {"random": (12, 3), "grid": (12, 3), "bayesian": (12, 3), "hyperband": (11, 4)}

# Differ between two equal trainings: clocks, memory, and where in time a point was written.
MEASURED = ("epoch_secs", "train_secs", "peak_rss_bytes", "hp.seed")

Victim = Literal["driver", "worker", "both"]


def write_project(root: Path, algorithm: str, workers: int, final_seeds: int, num_trials: int | None = None) -> Path:
    """Write images of noise and a config file below `root`; return the config file."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("fake", "real")):
        folder = root / "images" / name
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 200, (24, 24, 3), dtype=np.uint8)
            if label == 0:
                pixels[:12] += 50
            Image.fromarray(pixels).save(folder / f"{name}_{number}.png")
    trials = "" if algorithm == "hyperband" else f"trials = {num_trials or SIZES[algorithm][0]}"
    initial = "initial_points = 4" if algorithm == "bayesian" else ""
    rate = "values = [1e-4, 1e-3]" if algorithm == "grid" else 'min = 1e-4, max = 1e-2, sampling = "log"'
    config = root / "search.toml"
    config.write_text(f"""
name = "kill test"
data = {json.dumps(str(root / "images"))}
image_size = 24
epochs = {SIZES[algorithm][1]}
threads = 1
algorithm = "{algorithm}"
workers = {workers}
final_seeds = {final_seeds}
{trials}
{initial}
[space]
filters_1 = {{ values = [4, 8] }}
dense_units = {{ values = [8, 16, 32] }}
learning_rate = {{ {rate} }}
[hyperparameters]
filters_1 = 8
filters_2 = 8
dense_units = 16
batch_size = 8
""")
    return config


def start_search(config: Path, project: Path, *words: str, **variables: str) -> subprocess.Popen[bytes]:
    """Start `tune` in `project`, which is made where it is missing, with further words and variables."""
    (project / "experiments").mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "FAKEFACE_"))}
    environment |= {"PYTHONPATH": str(PROJECT), "FAKEFACE_CACHE": str(config.parent / "cache")} | variables
    command = [sys.executable, "-m", "fakeface_lab.tune", "--config", str(config), *words]
    with (project / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=project, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def run_undisturbed(config: Path, project: Path) -> float:
    """Run a search to its end and return the seconds that took."""
    started = time.monotonic()
    if start_search(config, project).wait() != 0:
        raise RuntimeError((project / "log.txt").read_text(errors="replace"))
    return time.monotonic() - started


def run_killed(config: Path, project: Path, num_kills: int, life_secs: float, seed: int) -> Counter[str]:
    """Run a search to its end through at most `num_kills` kills; return how often which victim was hit.

    The moments are uniform over `life_secs` from each start, and from each kill of a worker.
    """
    rng = random.Random(seed)
    hits: Counter[str] = Counter()
    process = start_search(config, project)
    while hits.total() < num_kills and process.poll() is None:
        moment = time.monotonic() + rng.uniform(0, life_secs)
        while process.poll() is None and time.monotonic() < moment:
            time.sleep(0.02)
        if process.poll() is not None:
            break
        victim = rng.choice(("driver", "worker", "both"))
        workers = _workers_of(process.pid)
        if victim != "driver":
            for worker in workers:
                worker.kill()
        if workers or victim != "worker":
            hits[victim if workers else "driver"] += 1
        if victim != "worker":
            process.kill()
            process.wait()
            orphans = psutil.wait_procs(workers, timeout=10)[1]
            if orphans:
                raise RuntimeError(f"{len(orphans)} workers outlived their driver by 10 s")
            process = start_search(config, project)
    if process.wait() != 0:
        raise RuntimeError((project / "log.txt").read_text(errors="replace")[-5000:])
    return hits


def _workers_of(pid: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(pid).children(recursive=True)
        return [child for child in children if "fakeface_lab.search.run.worker" in " ".join(child.cmdline())]
    except psutil.Error:
        return []


def read_search(project: Path) -> tuple[MlflowClient, Run, list[Run], list[Run]]:
    """Return a client, the parent run, the trials by their number, and the finals by their name."""
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = list(client.search_runs(experiments, max_results=1000))
    parents = [run for run in runs if run.data.tags.get("role") == "search"]
    assert len(parents) == 1, f"{len(parents)} parent runs"
    trials = [run for run in runs if run.data.tags.get("role") == "trial"]
    finals = [run for run in runs if run.data.tags.get("role") == "final"]
    return (
        client,
        parents[0],
        sorted(trials, key=lambda run: int(run.data.tags["trial"])),
        sorted(finals, key=lambda run: str(run.data.tags["final"])),
    )


def faults(project: Path) -> list[str]:
    """Return what is wrong with a search by itself: trials missing or open, points written twice, half models."""
    client, parent, trials, finals = read_search(project)
    found = []
    numbers = [int(run.data.tags["trial"]) for run in trials]
    if numbers != list(range(len(numbers))):
        found.append(f"trials are {numbers}")
    registered = {version.run_id for version in client.search_model_versions()}
    for run in [parent, *trials, *finals]:
        name = run.info.run_name
        if run.info.status != "FINISHED":
            found.append(f"{name}: {run.info.status} ({run.data.tags.get('status_reason')})")
        for key in run.data.metrics:
            steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
            if len(steps) != len(set(steps)):
                found.append(f"{name}: {key} has steps {steps}")
            epochs = int(run.data.metrics.get("num_epochs", 0))
            if key == "loss" and sorted(steps) != list(range(1, epochs + 1)):
                found.append(f"{name}: {key} has steps {steps} for {epochs} epochs")
        if run is parent:
            continue
        models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
        states = sorted((model.name, model.status) for model in models)
        is_repeat = "duplicate_of" in run.data.tags
        forms = [] if is_repeat else [MODEL_NAME, SERVED_NAME] if run.info.run_id in registered else [MODEL_NAME]
        if states != [(form, LoggedModelStatus.READY) for form in forms]:
            found.append(f"{name}: models {states}")
        if not is_repeat and len(run.inputs.dataset_inputs) != 1:
            found.append(f"{name}: {len(run.inputs.dataset_inputs)} data sets")
    leftovers = [path.name for path in (project / "mlruns" / ".work").glob("*/epoch.ckpt")]
    return found + [f"left on disk: {name}" for name in leftovers]


def summary(project: Path) -> dict[str, dict[str, Any]]:
    """Return everything of a search that must not depend on kills, by trial and final."""
    client, _, trials, finals = read_search(project)
    facts: dict[str, dict[str, Any]] = {}
    for run in [*trials, *finals]:
        tags = run.data.tags
        name = f"trial {tags['trial']}" if "trial" in tags else f"final {tags['final']}"
        facts[name] = {
            key: tags.get(key)
            for key in ("values", "bracket_values", "created_order", "ended_order", "score", "outcome", "kept_epoch")
        }
        facts[name]["params"] = dict(run.data.params)
        facts[name]["metrics"] = {
            key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
            for key in sorted(run.data.metrics)
            if key not in MEASURED
        }
    return facts


def differences(undisturbed: Path, killed: Path, workers: int) -> list[str]:
    """Return how two searches differ; with several workers only equal configurations are compared."""
    first, second = summary(undisturbed), summary(killed)
    if workers > 1:
        return _different_scores(first, second)
    found = [f"{name}: in one search only" for name in sorted(set(first) ^ set(second))]
    for name in sorted(set(first) & set(second)):
        for key, value in first[name].items():
            other = second[name][key]
            if value != other:
                if isinstance(value, dict):
                    changed = sorted(part for part in {**value, **other} if value.get(part) != other.get(part))
                    part = changed[0]
                    found.append(f"{name}: {key} {changed}: {part} {value.get(part)} / {other.get(part)}")
                else:
                    found.append(f"{name}: {key} {value} / {other}")
    return found


def _different_scores(first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]) -> list[str]:
    scores = {_configuration(facts): facts["score"] for name, facts in first.items() if name.startswith("trial")}
    return [
        f"{name}: score {facts['score']}, the same configuration had {scores[_configuration(facts)]}"
        for name, facts in second.items()
        if name.startswith("trial") and scores.get(_configuration(facts), facts["score"]) != facts["score"]
    ]


def _configuration(facts: dict[str, Any]) -> tuple[str, str]:
    return facts["values"], facts["params"]["epochs"]


def main() -> int:
    """Run the test that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=sorted(SIZES), default="random")
    parser.add_argument("--kills", type=int, default=50, help="how many (default 50)")
    parser.add_argument("--workers", type=int, default=1, help="trials at the same time (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    parser.add_argument("--final-seeds", type=int, default=1, help="retrained at the end (default 1)")
    parser.add_argument("--life-secs", type=float, help="kills are uniform in it; default: an undisturbed run's")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = given.folder or Path(temporary)
        config = write_project(root, given.algorithm, given.workers, given.final_seeds)
        undisturbed = root / "undisturbed"
        needed_secs = run_undisturbed(config, undisturbed)
        print(f"{given.algorithm}: undisturbed {needed_secs:.0f} s", flush=True)
        found = faults(undisturbed)
        hits: Counter[str] = Counter()
        started = time.monotonic()
        num_searches = 0
        while hits.total() < given.kills:
            killed = root / f"killed-{num_searches}"
            life_secs = given.life_secs or needed_secs / 2
            hits += run_killed(config, killed, given.kills - hits.total(), life_secs, given.seed + num_searches)
            num_searches += 1
            found += faults(killed) + differences(undisturbed, killed, given.workers)
            print(f"after {time.monotonic() - started:.0f} s: {dict(hits)}, {len(found)} differences", flush=True)
        for line in found:
            print(f"DIFFERENT {line}")
        return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
