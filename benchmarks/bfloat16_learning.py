"""Does the documented CNN learn in bfloat16 as it does in float32? Hours; can be interrupted and continued.

    python benchmarks/bfloat16_learning.py data/hardfakevsrealfaces --folder /tmp/bfloat16

Five seeds of the documented configuration in both precisions, and five other configurations with the first seed: how
far apart are loss and accuracy on the validation images, and how often do both precisions agree on the better one of
two configurations? As a yardstick, how often does float32 agree with itself if the seed is another one? A training
counts by its best epoch, as a trial does. Each is a run of `fakeface_lab.baseline` on the sealed split, as a search
trains it. Runs that the folder's store has already are not trained again.
"""

import argparse
import itertools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlflow.tracking import MlflowClient
from results import side_environment, table

__all__: list[str] = []

PRECISIONS = ("float32", "mixed_bfloat16")
# The documented one, and others of the default search space: smaller, larger, faster, slower, without dropout.
CONFIGURATIONS: dict[str, dict[str, float]] = {
    "documented": {},
    "small": {"filters-1": 16, "filters-2": 32, "dense-units": 64},
    "large dense": {"filters-1": 24, "filters-2": 48, "dense-units": 256},
    "fast": {"filters-1": 24, "learning-rate": 3e-4},
    "slow": {"filters-1": 16, "learning-rate": 3e-5},
    "no dropout": {"filters-1": 24, "filters-2": 32, "conv-dropout": 0.0, "dense-dropout": 0.0},
}


@dataclass(frozen=True)
class Cell:
    """One training."""

    configuration: str
    seed: int
    precision: str

    @property
    def name(self) -> str:
        """The run's name."""
        return f"{self.configuration} {self.seed} {self.precision}"


def _cells(num_seeds: int) -> Iterator[Cell]:
    for seed, precision in itertools.product(range(num_seeds), PRECISIONS):
        yield Cell("documented", seed, precision)
    for name, precision in itertools.product(list(CONFIGURATIONS)[1:], PRECISIONS):
        yield Cell(name, 0, precision)
    for name in list(CONFIGURATIONS)[1:]:
        yield Cell(name, 1, "float32")


def _train(cell: Cell, data: Path, epochs: int, folder: Path) -> dict[str, float]:
    """Return the metrics of the best epoch of a cell's run, after training it unless the store has it whole."""
    metrics = _read(cell, folder)
    if not metrics:
        words = ["--data", str(data), "--name", cell.name, "--seed", str(cell.seed), "--epochs", str(epochs)]
        words += ["--split", "sealed", "--step", "fast", "--threads", "2", "--resume"]
        values = CONFIGURATIONS[cell.configuration] | {"precision": cell.precision}
        for name, value in values.items():
            words += [f"--hyperparameters.{name}", str(value)]
        environment = side_environment(FAKEFACE_CACHE=str(folder / "cache"))
        log = (folder / f"{cell.name}.log").open("w")
        command = [sys.executable, "-m", "fakeface_lab.baseline", *words]
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
        metrics = _read(cell, folder)
    print(f"{cell.name}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()), flush=True)
    return metrics


def _read(cell: Cell, folder: Path) -> dict[str, float]:
    store = folder / "mlflow.db"
    if not store.exists():
        return {}
    client = MlflowClient(f"sqlite:///{store}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    query = f"attributes.run_name = '{cell.name}' and attributes.status = 'FINISHED'"
    runs = client.search_runs(experiments, query)
    if not runs:
        return {}
    curves = {
        name: {point.step: point.value for point in client.get_metric_history(runs[0].info.run_id, name)}
        for name in ("val_loss", "val_accuracy")
    }
    best = min(curves["val_loss"], key=lambda epoch: curves["val_loss"][epoch])
    return {name: curve[best] for name, curve in curves.items()}


def _agreement(results: dict[Cell, dict[str, float]], one: tuple[int, str], other: tuple[int, str]) -> str:
    """Return in how many pairs of configurations two of (seed, precision) call the same one better."""
    losses = np.array([[results[Cell(name, *side)]["val_loss"] for side in (one, other)] for name in CONFIGURATIONS])
    pairs = list(itertools.combinations(range(len(losses)), 2))
    agreed = sum(np.ptp(np.sign(losses[a] - losses[b])) == 0 for a, b in pairs)
    return f"{agreed} of {len(pairs)} pairs"


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="holds fake/ and real/")
    parser.add_argument("--folder", type=Path, required=True, help="where to work")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5, help="of the documented configuration, at least 2")
    given = parser.parse_args()
    folder = given.folder.resolve()
    (folder / "experiments").mkdir(parents=True, exist_ok=True)
    cells = list(_cells(given.seeds))
    # bfloat16 first: it takes half the time, and if it collapses the question is answered.
    in_order = sorted(cells, key=lambda cell: cell.precision, reverse=True)
    results = {cell: _train(cell, given.data.resolve(), given.epochs, folder) for cell in in_order}
    columns = ("configuration", "seed", "val_loss, float32", "bfloat16", "val_accuracy, float32", "bfloat16")
    rows = []
    in_both = [cell for cell in cells if Cell(cell.configuration, cell.seed, PRECISIONS[1]) in results]
    for one, other in zip(in_both[::2], in_both[1::2], strict=True):
        numbers = [results[cell][name] for name in ("val_loss", "val_accuracy") for cell in (one, other)]
        rows.append((one.configuration, one.seed, *(f"{number:.4f}" for number in numbers)))
    print("\n" + table(columns, rows))
    first = (0, "float32")
    print("\nthe same better one of two configurations")
    print(f"in both precisions: {_agreement(results, first, (0, PRECISIONS[1]))}")
    print(f"in float32 with two seeds: {_agreement(results, first, (1, 'float32'))}")


if __name__ == "__main__":
    main()
