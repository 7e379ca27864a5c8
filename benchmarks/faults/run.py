"""The same faults on this project, on Optuna with two storages, and on Ray Tune: what each lost.

    PYTHONPATH=. python benchmarks/faults/run.py --folder /tmp/faults
    PYTHONPATH=. python benchmarks/faults/run.py --folder /tmp/faults --faults kill --sides here ray_tune

Needs the extra `bench`. Each side runs the same search of 12 trials of 4 epochs of a second, on an MLflow server of its
own. `kill`: the driver is killed with SIGKILL in a trial, and its command started again. `outage`: the server is killed
and restarted after 60 s. `lost-reply`: one reply to each kind of changing request does not arrive. A driver that ends
with an error is started again. The folder keeps each cell's store and log, the table and `faults.json`;
cells that are finished there are not run again.
"""

import argparse
import json
import multiprocessing
import platform
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cell import FAULTS, SIDES, Fault, run_cell
from curve import NUM_EPOCHS, NUM_TRIALS
from losses import Losses, read_journal

__all__: list[str] = []

_PACKAGES = ("fakeface-lab", "keras-tuner", "mlflow", "optuna", "ray", "sqlalchemy")
_COLUMNS = {
    "trials finished": "num_finished",
    "failed or left running": "num_unfinished",
    "x trained twice": "num_trained_twice",
    "epochs again": "num_epochs_again",
    "runs left running": "num_runs_running",
    "runs too many": "num_runs_extra",
    "points missing": "num_points_missing",
    "points twice": "num_points_twice",
    "started again by hand": "num_restarts",
    "longest pause, s": "longest_pause_secs",
}
Rounds = dict[Fault, list[Losses]]
Trained = dict[tuple[str, Fault, int], set[float]]


def _run(side: str, fault: Fault, number: int, folder: Path) -> Losses:
    """Run a cell, or return what an earlier program has left of it."""
    place = _place(side, fault, number, folder)
    result = place / "losses.json"
    if not result.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        result.write_text(json.dumps(asdict(run_cell(side, fault, number, place))))
        print(f"{place.name}: {result.read_text()}", flush=True)
    return Losses(**json.loads(result.read_text()))


def _place(side: str, fault: Fault, number: int, folder: Path) -> Path:
    return folder / f"{side}-{fault}-{number + 1}"


def _table(fault: Fault, sides: dict[str, Rounds], trained: Trained) -> str:
    """Return one fault's table in Markdown; a cell has one number, or one for each round if they differ."""
    lines = [
        f"| {fault} | {' | '.join(_COLUMNS)} | x never trained | same best |",
        f"|---|{'---|' * len(_COLUMNS)}---|---|",
    ]
    for side, rounds in sides.items():
        undisturbed = rounds["none"][0]
        values: list[list[object]] = [[getattr(one, name) for one in rounds[fault]] for name in _COLUMNS.values()]
        values.append(
            [len(trained[side, "none", 0] - trained[side, fault, number]) for number in range(len(rounds[fault]))]
        )
        values.append(["yes" if one.best == undisturbed.best else "no" for one in rounds[fault]])
        cells = [", ".join(map(str, some if len(set(some)) > 1 else some[:1])) for some in values]
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _read_trained(journal: Path) -> set[float]:
    """Return the values of x that were trained to their last epoch."""
    return {epoch["x"] for epoch in read_journal(journal) if epoch["epoch"] == NUM_EPOCHS}


def main() -> None:
    """Run the cells that the command line names, sides side by side, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where to work")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=2, help="searches at the same time (default 2)")
    given = parser.parse_args()
    folder = given.folder.resolve()
    try:
        versions = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    except PackageNotFoundError as err:
        parser.error(f"{err.name} is not installed; pip install -e '.[bench]'")
    faults: list[Fault] = ["none", *(fault for fault in given.faults if fault != "none")]
    # Fresh processes: the proxy forks, and threads do not survive that.
    with ProcessPoolExecutor(given.jobs, multiprocessing.get_context("spawn")) as pool:
        # Sides in turn, so that the heaviest do not all run at the same time.
        futures = {
            (side, fault, number): pool.submit(_run, side, fault, number, folder)
            for number in range(given.rounds)
            for fault in faults
            for side in given.sides
            if fault != "none" or number == 0
        }
    sides: dict[str, Rounds] = {side: {fault: [] for fault in faults} for side in given.sides}
    for (side, fault, _), future in futures.items():
        sides[side][fault].append(future.result())
    trained = {key: _read_trained(_place(*key, folder) / "epochs.jsonl") for key in futures}
    tables = [f"{NUM_TRIALS} trials", *(_table(fault, sides, trained) for fault in faults)]
    tables.append(", ".join(f"{name} {number}" for name, number in versions.items()))
    (folder / "faults.md").write_text("\n\n".join(tables) + "\n")
    cells = {
        side: {fault: [asdict(one) for one in some] for fault, some in rounds.items()} for side, rounds in sides.items()
    }
    (folder / "faults.json").write_text(json.dumps({"versions": versions, "sides": cells}, indent=2))
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
