"""What a trial costs beside its epochs, here and in plain KerasTuner; and what its files cost, alone.

    python benchmarks/search_cost.py data/hardfakevsrealfaces --epochs 2 --pairs 3

Both sides train the same three configurations of the documented network at full size on the same 80 % of the images,
in turn, so that a machine whose speed drifts slows both. Here a trial beside its epochs is: choosing values, writing
metrics, per-image scores, figures and the whole model to MLflow; there it is KerasTuner's own files. It is measured
from the end of the first trial to that of the last one, so what a search does once (reading images, starting a worker
process) is not counted on either side.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow.tracking import MlflowClient
from processes import measure
from results import side_environment

from fakeface_lab.detector.fit import Training
from fakeface_lab.settings import Hyperparameters
from fakeface_lab.training.checkpoint import load_weights, save_checkpoint, save_weights

__all__: list[str] = []

BENCHMARKS = Path(__file__).resolve().parent
LEARNING_RATES = ("0.0001", "0.0002", "0.0004")
NUM_TRIALS = len(LEARNING_RATES)


@dataclass(frozen=True)
class SearchCost:
    """Seconds of a search's trials after the first one, and of their epochs."""

    later_secs: float
    epoch_secs: list[float]

    @property
    def beside_secs(self) -> float:
        """Seconds a trial that are not an epoch's."""
        return (self.later_secs - sum(self.epoch_secs)) / (NUM_TRIALS - 1)


def measure_ours(data: Path, epochs: int, folder: Path) -> SearchCost:
    """Run a search of `fakeface_lab.tune` in an empty project and read its runs."""
    (folder / "experiments").mkdir(parents=True)
    config = folder / "search.toml"
    config.write_text(
        f'data = "{data}"\nsplit = "documented"\nalgorithm = "grid"\nepochs = {epochs}\ntrials = {NUM_TRIALS}\n'
        f"final_seeds = 0\n[space]\nlearning_rate = {{ values = [{', '.join(LEARNING_RATES)}] }}\n"
    )
    measure([sys.executable, "-m", "fakeface_lab.tune", "--config", str(config)], folder, side_environment())
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    trials = list(client.search_runs(experiments, "tags.role = 'trial'"))
    if len(trials) != NUM_TRIALS:
        raise SystemExit(f"{len(trials)} trials, not {NUM_TRIALS}; see {folder / 'output.log'}")
    first, *later = sorted(trials, key=lambda run: run.info.start_time)
    epoch_secs = [point.value for run in later for point in client.get_metric_history(run.info.run_id, "epoch_secs")]
    return SearchCost((later[-1].info.end_time - first.info.end_time) / 1000, epoch_secs)


def measure_plain(data: Path, epochs: int, folder: Path) -> SearchCost:
    """Run the same configurations with KerasTuner alone."""
    folder.mkdir()
    result = folder / "result.json"
    words = [str(BENCHMARKS / "plain_tuner.py"), str(data), str(result), "--epochs", str(epochs), "--learning-rates"]
    measure([sys.executable, *words, *LEARNING_RATES], folder, side_environment())
    return SearchCost(**json.loads(result.read_text()))


def measure_files(folder: Path) -> dict[str, float]:
    """Return the median seconds of what is written and read of the documented network, with nothing beside it."""
    model = Training(Hyperparameters(), 300, seed=0, epochs=1).build()
    model.optimizer.build(model.trainable_variables)
    actions: dict[str, Callable[[], None]] = {
        "the checkpoint of an epoch, written": lambda: save_checkpoint(folder / "epoch.ckpt", model, {}),
        "the weights of the best epoch so far, written": lambda: save_weights(folder / "kept.weights", model),
        "the weights of the kept epoch, read": lambda: load_weights(folder / "kept.weights", model),
    }
    secs: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(6):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            secs[name].append(time.perf_counter() - started)
    return {name: statistics.median(some[1:]) for name, some in secs.items()}


def main() -> None:
    """Measure and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds fake/ and real/")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    data = options.folder.resolve()
    print(f"| pair | beside its epochs, s a trial | KerasTuner, s a trial | epoch, s | KerasTuner, s |\n|{'---|' * 5}")
    more_secs = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for number in range(1, options.pairs + 1):
            ours = measure_ours(data, options.epochs, root / f"ours-{number}")
            plain = measure_plain(data, options.epochs, root / f"plain-{number}")
            more_secs.append(ours.beside_secs - plain.beside_secs)
            print(
                f"| {number} | {ours.beside_secs:.2f} | {plain.beside_secs:.2f} "
                f"| {statistics.median(ours.epoch_secs):.2f} | {statistics.median(plain.epoch_secs):.2f} |",
                flush=True,
            )
        print(f"\nmore than KerasTuner, beside its epochs: median {statistics.median(more_secs):.2f} s a trial\n")
        for what, secs in measure_files(root).items():
            print(f"- {what}: {secs:.2f} s")


if __name__ == "__main__":
    main()
