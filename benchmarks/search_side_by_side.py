"""A search here beside plain KerasTuner, Optuna and Ray Tune, each with its tracking in MLflow.

    python benchmarks/search_side_by_side.py data/hardfakevsrealfaces --image-size 96 --output FOLDER
    python benchmarks/search_side_by_side.py demo --trials 3 --epochs 2 --seeds 1

The same network (`build_model`), space, images and threads on all sides; fresh processes and stores, all sides in turn.
`tune` has the images in its cache from the second seed on; the others are scripts that decode them as documented.
*Overhead* is the time from the end of one training to the start of the next one: the suggestion, files, runs in MLflow,
and the building of the next model; the median over a search. What is written beside a training counts as training, so
*trials an hour* has all of it; it is measured from the start of the first training to that of the last one. *Beaten
after* is the time from the start of the process to the first epoch whose validation loss is below the best one of the
documented configuration, trained for as many epochs with the seed and split of the search by a script that does nothing
else; - if none is. `tune` begins with the documented configuration: that trial takes its time and beats nothing. With
`--algorithm random` all sides draw at random; with `model`, the sides here and KerasTuner take Gaussian processes, the
others Optuna's TPE. The model is a file of the run on the other sides, here it is packaged for MLflow as well. Needs
the extra `bench`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient
from processes import measure
from results import need, side_environment, table, write_results

from fakeface_lab.data.sources import find_source

__all__: list[str] = []

HERE = Path(__file__).resolve().parent
SIDES = ("tune", "one changed line", "KerasTuner", "Optuna", "Ray Tune")


@dataclass(frozen=True)
class SearchCost:
    """What a search took.

    Attributes:
        first_secs: from the start of its process to the start of its first training.
        overhead_secs: between two trainings, the median.
        training_secs: of a training, the median.
        trials_per_hour: from the start of the first training to that of the last one.
        beaten_secs: from the start of its process to the first epoch better than the documented configuration.
        wall_secs: of the process.
        peak_private_bytes: of the process and its workers.
    """

    first_secs: float
    overhead_secs: float
    training_secs: float
    trials_per_hour: float
    beaten_secs: float | None
    wall_secs: float
    peak_private_bytes: int


def run(side: str, seed: int, options: argparse.Namespace, cache: Path) -> tuple[list[dict[str, Any]], float, Any]:
    """Run one search in an empty folder; return its journal, the Unix time of its start, and what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "experiments").mkdir()
        task = {
            "side": side, "algorithm": options.algorithm, "data": options.data, "size_px": options.image_size,
            "num_trials": options.trials, "num_epochs": options.epochs, "seed": seed,
            "journal": str(folder / "journal.jsonl"),
        }  # fmt: skip
        (folder / "task.json").write_text(json.dumps(task))
        (folder / "search.toml").write_text(_as_config(task))
        program = ["-m", "fakeface_lab.tune", "--config", "search.toml"]
        command = [sys.executable, *(program if side == "tune" else [str(HERE / "search_sides.py"), "task.json"])]
        began = time.time()
        try:
            cost = measure(command, folder, side_environment(FAKEFACE_CACHE=str(cache)))
        except SystemExit:
            sys.exit(f"{side} failed:\n{(folder / 'output.log').read_text()[-3000:]}")
        if side == "tune":
            return read_store(f"sqlite:///{folder / 'mlflow.db'}"), began, cost
        journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return journal, began, cost


def _as_config(task: dict[str, Any]) -> str:
    """Return the task as a configuration of `tune`; the space is that of `search_sides.build`."""
    return f"""
data = "{task["data"]}"
split = "documented"
image_size = {task["size_px"]}
algorithm = "{"random" if task["algorithm"] == "random" else "bayesian"}"
trials = {task["num_trials"]}
epochs = {task["num_epochs"]}
seed = {task["seed"]}
final_seeds = 0
[space]
filters_1 = {{ values = [16, 24, 32] }}
dense_units = {{ values = [32, 64, 128] }}
conv_dropout = {{ values = [0.0, 0.1, 0.25, 0.4] }}
learning_rate = {{ min = 1e-4, max = 1e-2, sampling = "log" }}
"""


def read_store(uri: str) -> list[dict[str, Any]]:
    """Return the journal of a search of `tune` from its store; the losses of trial 0 are left out."""
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    journal: list[dict[str, Any]] = []
    for run in client.search_runs(experiments, "tags.role = 'trial'", order_by=["start_time"]):
        losses, took = (client.get_metric_history(run.info.run_id, name) for name in ("val_loss", "epoch_secs"))
        losses.sort(key=lambda point: point.timestamp)
        first_secs = min(took, key=lambda point: point.timestamp).value
        journal.append({"event": "begin", "at": losses[0].timestamp / 1000 - first_secs})
        if "t000" not in run.info.run_name:
            journal += [{"event": "epoch", "at": one.timestamp / 1000, "val_loss": one.value} for one in losses]
        journal.append({"event": "end", "at": losses[-1].timestamp / 1000})
    return journal


def measure_search(side: str, seed: int, target: float, options: argparse.Namespace, cache: Path) -> SearchCost:
    """Run one search and read its journal."""
    journal, began, cost = run(side, seed, options, cache)
    begins = [line["at"] for line in journal if line["event"] == "begin"]
    ends = [line["at"] for line in journal if line["event"] == "end"]
    if len(ends) != options.trials:
        sys.exit(f"{side}: {len(ends)} trainings, not {options.trials}")
    beaten = [line["at"] - began for line in journal if line["event"] == "epoch" and line["val_loss"] < target]
    return SearchCost(
        first_secs=begins[0] - began,
        overhead_secs=statistics.median(begin - end for end, begin in zip(ends, begins[1:], strict=False)),
        training_secs=statistics.median(end - begin for begin, end in zip(begins, ends, strict=True)),
        trials_per_hour=3600 / statistics.mean(after - before for before, after in pairwise(begins)),
        beaten_secs=min(beaten, default=None),
        wall_secs=cost.wall_secs,
        peak_private_bytes=cost.peak_private_bytes,
    )


def row(side: str, searches: Sequence[SearchCost]) -> list[str]:
    """Return a side's row: medians over the seeds."""

    def median(name: str, digits: int, scale: float = 1.0) -> str:
        return f"{statistics.median(getattr(one, name) for one in searches) * scale:.{digits}f}"

    # A search that never beats it counts as infinitely long.
    beaten = statistics.median(float("inf") if one.beaten_secs is None else one.beaten_secs for one in searches)
    num_beaten = sum(one.beaten_secs is not None for one in searches)
    return [
        side,
        median("overhead_secs", 2),
        median("training_secs", 2),
        median("trials_per_hour", 0),
        "-" if beaten == float("inf") else f"{beaten:.0f}",
        f"{num_beaten} of {len(searches)}",
        median("first_secs", 1),
        median("wall_secs", 0),
        median("peak_private_bytes", 2, 1e-9),
    ]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder with two class folders, or demo")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--algorithm", choices=("random", "model"), default="random")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--output", type=Path, help="folder for the results as Markdown and JSON")
    options = parser.parse_args()
    if options.trials < 2:
        parser.error("--trials: at least 2, for there is nothing between the trainings of one")
    options.data = str(find_source(options.data, None, Path.cwd(), options.image_size).root)
    need("optuna", "optuna-integration", "ray")
    searches: dict[str, list[SearchCost]] = {side: [] for side in options.sides}
    targets: list[float] = []
    alone_secs: list[float] = []
    with tempfile.TemporaryDirectory() as cache:
        for seed in range(options.seeds):
            journal, began, _ = run("documented", seed, options, Path(cache))
            alone_secs.append(journal[0]["at"] - began)
            targets.append(min(line["val_loss"] for line in journal if line["event"] == "epoch"))
            for side in options.sides:
                searches[side].append(measure_search(side, seed, targets[-1], options, Path(cache)))
            # After each: ten seeds take an hour, and none of them should be lost with the last.
            write_searches(searches, targets, alone_secs, options)


def write_searches(
    searches: dict[str, list[SearchCost]], targets: list[float], alone_secs: list[float], options: argparse.Namespace
) -> None:
    """Print and write what has been measured so far."""
    columns = (
        "", "overhead of a trial, s", "training, s", "trials an hour", "documented beaten after, s", "beaten",
        "first training begins after, s", "whole search, s", "peak private memory, GB",
    )  # fmt: skip
    shown = ", ".join(f"{target:.4f}" for target in targets)
    text = (
        f"{options.trials} trials of {options.epochs} epochs at {options.image_size} px, {options.algorithm}, medians "
        f"of {len(targets)} searches; validation loss of the documented configuration: {shown}; a script that only "
        f"trains it starts training after {statistics.median(alone_secs):.1f} s\n\n"
        + table(columns, [row(side, some) for side, some in searches.items()])
    )
    costs = {side: [asdict(one) for one in some] for side, some in searches.items()}
    results = {"targets": targets, "alone_secs": alone_secs, "searches": costs}
    write_results(options.output, "search_side_by_side", text, results, ["optuna", "optuna-integration", "ray"])


if __name__ == "__main__":
    main()
