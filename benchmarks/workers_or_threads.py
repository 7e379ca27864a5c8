"""Two trials at a time with one core each, or one with two cores: how many trials an hour?

    python benchmarks/workers_or_threads.py data/hardfakevsrealfaces --image-size 96 --trials 8 --rounds 3

The same search of `fakeface_lab.tune` in fresh processes, in turn, without final trainings. The time is from the end of
the first epoch to the end of the last trial, so that the start of processes and of Ray is on no side.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow.tracking import MlflowClient
from results import side_environment, table

__all__: list[str] = []

# Name to workers, threads of each, and engine.
SIDES = {
    "1 worker, 2 threads": ("1", "2", "local"),
    "2 workers, 1 thread": ("2", "1", "local"),
    "2 workers, 1 thread, Ray": ("2", "1", "ray"),
}


def _search_secs(side: str, data: str, image_size: int, num_trials: int, epochs: int, folder: Path) -> float:
    """Run a search in an empty project and return how long its trials took."""
    (folder / "experiments").mkdir(parents=True)
    workers, threads, engine = SIDES[side]
    words = ["--data", data, "--image-size", str(image_size), "--trials", str(num_trials)]
    words += ["--epochs", str(epochs), "--algorithm", "random", "--final-seeds", "0", "--name", "search"]
    words += ["--workers", workers, "--threads", threads, "--engine", engine]
    command = [sys.executable, "-m", "fakeface_lab.tune", *words]
    environment = side_environment(FAKEFACE_CACHE=str(folder.parent / "cache"))
    with (folder / "output.log").open("w") as log:
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=True)
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    trials = client.search_runs(experiments, "tags.role = 'trial'")
    # From the end of the first epoch: before it a process has started, and Ray.
    started = min(client.get_metric_history(run.info.run_id, "val_loss")[0].timestamp for run in trials)
    return float(max(run.info.end_time for run in trials) - started) / 1000


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="holds fake/ and real/, or `demo`")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    data = given.data if given.data == "demo" else str(Path(given.data).resolve())
    secs: dict[str, list[float]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(given.rounds):
            for side in SIDES:
                folder = Path(scratch) / f"{side} {number}"
                secs[side].append(_search_secs(side, data, given.image_size, given.trials, given.epochs, folder))
            line = ", ".join(f"{side} {secs[side][-1]:.0f} s" for side in SIDES)
            print(f"round {number + 1}: {line}", flush=True)
    base = secs[next(iter(SIDES))]
    ratios = [statistics.median(one / first for one, first in zip(own, base, strict=True)) for own in secs.values()]
    rows = [
        (side, f"{statistics.median(own):.1f}", f"{ratio:.2f}")
        for (side, own), ratio in zip(secs.items(), ratios, strict=True)
    ]
    print("\n" + table(("side", f"{given.trials} trials, s, median of {given.rounds}", "to the first side"), rows))


if __name__ == "__main__":
    main()
