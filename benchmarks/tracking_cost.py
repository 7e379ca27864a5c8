"""What tracking costs: logging a run, asking a search of thousands of trials, comparing it, and MLflow's page of it.

    python benchmarks/tracking_cost.py --output FOLDER
    python benchmarks/tracking_cost.py --trials 100 1000 --runs 20

Logging: whole runs of ten epochs on an SQLite store, with the project's writer and with MLflow's own functions, in
turn, in one process; no training, no files. The stores of many trials are made by `many_trials.py`. *Reading the
ledger* is what a search does when it is started again, *the next question* the oracle's first one after that, in CPU
seconds (`suggestion_cost.py` has the later ones). `compare` is the whole program. The page is the saved view
*leaderboard* of the largest store in a headless Chromium, from the request to the first rows.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlflow
from many_trials import SEARCH, make_search, multiply
from page_time import time_page
from processes import measure
from results import side_environment, table, write_results
from suggestion_cost import new_template, simulate, timed_ask

from fakeface_lab.search.search import Search
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store, open_store
from fakeface_lab.tracking.writer import PatientWriter

__all__: list[str] = []

NUM_EPOCHS = 10
PARAMS = {f"param_{number}": number for number in range(20)}
EPOCH = dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "epoch_secs"), 0.5)


def log_here(store: Store, number: int) -> tuple[float, float]:
    """Log a run with the project's writer; return the seconds of the run without its epochs, and of an epoch."""
    began = time.perf_counter()
    run = TrackedRun.create(store, PatientWriter(60.0), f"run {number}", {"role": "benchmark"})
    run.log_params(PARAMS)
    run.read()  # waits for what is queued
    before = time.perf_counter()
    for epoch in range(1, NUM_EPOCHS + 1):
        run.log_metrics(EPOCH, epoch, time.time_ns() // 1_000_000)
        run.writer.drain()
    after = time.perf_counter()
    run.end("FINISHED")
    run.remove_files()
    return time.perf_counter() - after + before - began, (after - before) / NUM_EPOCHS


def log_mlflow(number: int) -> tuple[float, float]:
    """Log the same with MLflow's functions."""
    began = time.perf_counter()
    with mlflow.start_run(run_name=f"run {number}"):
        mlflow.log_params(PARAMS)
        before = time.perf_counter()
        for epoch in range(1, NUM_EPOCHS + 1):
            mlflow.log_metrics(EPOCH, step=epoch)
        after = time.perf_counter()
    return time.perf_counter() - after + before - began, (after - before) / NUM_EPOCHS


def measure_logging(project: Path, num_runs: int) -> dict[str, list[tuple[float, float]]]:
    """Log runs with both, in turn; the first of each is not counted."""
    (project / "experiments").mkdir(parents=True)
    store = open_store(f"sqlite:///{project / 'mlflow.db'}", project, "logging")
    mlflow.set_experiment("logging")
    secs: dict[str, list[tuple[float, float]]] = {"here": [], "MLflow": []}
    for number in range(num_runs + 1):
        secs["here"].append(log_here(store, number))
        secs["MLflow"].append(log_mlflow(number))
    return {side: some[1:] for side, some in secs.items()}


def measure_store(project: Path, database: Path, num_trials: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of everything that is asked of a store of so many trials."""
    began = time.perf_counter()
    store = multiply(database, project / f"trials-{num_trials}.db", num_trials)
    written_secs, uri = time.perf_counter() - began, f"sqlite:///{store}"
    began = time.perf_counter()
    num_read = len(Search(SEARCH, tracking_uri=uri).trials)
    read_secs = time.perf_counter() - began
    if num_read != num_trials:
        sys.exit(f"{num_read} trials in the store, not {num_trials}")
    # Not the store's trials, which an oracle notices to be copies; a simulated search's.
    _, ask_secs = timed_ask(new_template("random"), simulate("random", num_trials, 1)[0])
    command = [sys.executable, "-m", "fakeface_lab.compare", SEARCH, "--tracking-uri", uri]
    costs = [measure(command, project, side_environment()) for _ in range(rounds)]
    return {
        "num_trials": num_trials, "store": str(store.name), "written_secs": written_secs, "read_secs": read_secs,
        "ask_secs": ask_secs, "compare_secs": [cost.wall_secs for cost in costs],
        "compare_cpu_secs": [cost.cpu_secs for cost in costs],
        "compare_private_bytes": [cost.peak_private_bytes for cost in costs],
    }  # fmt: skip


def logging_table(logged: dict[str, list[tuple[float, float]]]) -> str:
    """Return the table of logging, with the ratio to MLflow's functions in the same pair."""
    rows = []
    for side, some in logged.items():
        run_ms, epoch_ms = (1000 * statistics.median(secs[part] for secs in some) for part in (0, 1))
        ratios = [[a[part] / b[part] for a, b in zip(some, logged["MLflow"], strict=True)] for part in (0, 1)]
        run_ratio, epoch_ratio = (statistics.median(part) for part in ratios)
        rows.append([side, f"{run_ms:.0f}", f"{run_ratio:.2f}", f"{epoch_ms:.1f}", f"{epoch_ratio:.2f}"])
    return table(["", "a run, ms", "ratio", "an epoch of six metrics, ms", "ratio"], rows)


def stores_table(stores: list[dict[str, Any]]) -> str:
    """Return the table of the stores."""
    rows = [
        [
            f"{one['num_trials']:,}",
            f"{one['read_secs']:.2f}",
            f"{one['ask_secs']:.3f}",
            f"{statistics.median(one['compare_secs']):.1f}",
            f"{statistics.median(one['compare_cpu_secs']):.1f}",
            f"{statistics.median(one['compare_private_bytes']) / 1e9:.2f}",
        ]
        for one in stores
    ]
    headings = (
        "trials", "reading the ledger, s", "the next question, s", "compare, s", "its processor seconds",
        "its private memory, GB",
    )  # fmt: skip
    return table(headings, rows)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--runs", type=int, default=50, help="to log")
    parser.add_argument("--rounds", type=int, default=3, help="of compare and of the page")
    parser.add_argument("--no-page", action="store_true", help="without the browser")
    parser.add_argument("--output", type=Path, help="folder for the results as Markdown and JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch) / "search"
        logged = measure_logging(Path(scratch) / "logging", options.runs)
        database = make_search(project)
        stores = []
        for num_trials in options.trials:
            stores.append(measure_store(project, database, num_trials, options.rounds))
            print(stores[-1], flush=True)
        page_secs = None
        if not options.no_page:
            page_secs = time_page(project, project / stores[-1]["store"], SEARCH, options.rounds)
    page = "The page was not measured." if page_secs is None else (
        f"The saved view of {options.trials[-1]:,} trials shows its first rows after "
        f"{statistics.median(page_secs):.1f} s."
    )  # fmt: skip
    text = f"{options.runs} runs of {NUM_EPOCHS} epochs\n\n{logging_table(logged)}\n\n{stores_table(stores)}\n\n{page}"
    results = {"logging": logged, "stores": stores, "page_secs": page_secs}
    write_results(options.output, "tracking_cost", text, results)


if __name__ == "__main__":
    main()
