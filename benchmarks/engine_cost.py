"""What a trial costs beside its training with each engine, and how many an hour: worker processes, Ray, this process.

    python benchmarks/engine_cost.py --trials 40 --rounds 3
    python benchmarks/engine_cost.py --trials 40 --rounds 3 --result-mb 50

A trial trains nothing and leaves a result of the given size; a search of them runs in a fresh process, sides in turn,
on a store of its own. The time of a trial is from the end of the fifth to the end of the last one, by their number: the
start of processes and of Ray is in a column of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from keras_tuner.oracles import RandomSearchOracle

from fakeface_lab.backend import keras_tuner
from fakeface_lab.search.ledger.ledger import LedgerTrial
from fakeface_lab.search.ledger.resume import open_search
from fakeface_lab.search.run.engine import Assignment, Event
from fakeface_lab.search.run.placement import EngineKind, EngineSettings, open_engine
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import open_store
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.epochs import EpochRecord, Listener
from fakeface_lab.training.objective import VAL_LOSS
from fakeface_lab.training.outcome import Outcome, write_outcome

__all__: list[str] = []

SIDES: dict[str, tuple[EngineKind, int]] = {
    "this process": ("inline", 1),
    "worker process, 1": ("local", 1),
    "worker processes, 2": ("local", 2),
    "Ray, 1": ("ray", 1),
    "Ray, 2": ("ray", 2),
}
_NUM_WARM_UP = 5


@dataclass(frozen=True)
class Nothing:
    """A work that trains nothing: one epoch, and a result of a given size."""

    result_bytes: int
    execution_names: ClassVar[Sequence[str]] = ()

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        record = EpochRecord(1, time.time_ns() // 1_000_000, {"val_loss": float(assignment.values["x"])})
        (folder / "result.bin").write_bytes(bytes(self.result_bytes))
        listener.epoch_ended(record)
        outcome = Outcome([record], 1, {})
        write_outcome(outcome, folder)
        return outcome

    def params(self, assignment: Assignment) -> dict[str, object]:
        return dict(assignment.values)

    def label(self, values: Mapping[str, Any]) -> str:
        return ""

    def begin(self, run: TrackedRun, assignment: Assignment) -> None:
        run.log_params(self.params(assignment))

    def finish(self, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool) -> None:
        run.log_metrics(outcome.records[0].metrics, 1, outcome.ended_at_ms)


class Ends:
    """Notes when trials end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def started(self, trial: LedgerTrial, epochs: int) -> None: ...

    def progressed(self, trial: LedgerTrial, event: Event) -> None: ...

    def printed(self, trial: LedgerTrial, line: str) -> None: ...

    def retrying(self, trial: LedgerTrial, reason: str) -> None: ...

    def ended(self, trial: LedgerTrial) -> None:
        self.times.append(time.perf_counter())


def run_side(side: str, num_trials: int, result_bytes: int) -> dict[str, float]:
    """Run one search in the current, empty folder; return seconds per trial, and until the first one ended."""
    kind, workers = SIDES[side]
    space = keras_tuner.HyperParameters()
    space.Float("x", 0.0, 1.0)
    oracle = RandomSearchOracle(
        keras_tuner.Objective("val_loss", "min"), max_trials=num_trials, hyperparameters=space, seed=1
    )
    work, ends = Nothing(result_bytes), Ends()
    tags = {**VAL_LOSS.tags(), "algorithm": "random"}
    ledger = open_search(open_store(None, Path.cwd(), "cost"), PatientWriter(60), "cost", {}, tags, restart=False)
    began = time.perf_counter()
    with open_engine(EngineSettings(kind, workers, 1, 600), work, ledger) as engine:
        Trials(ledger, oracle, work, engine, ends, epochs=1, seed=0).run()
    measured = ends.times[-1] - ends.times[_NUM_WARM_UP - 1]
    return {"trial": measured / (num_trials - _NUM_WARM_UP), "start": ends.times[0] - began}


def measure(side: str, given: argparse.Namespace) -> dict[str, float]:
    """Run one side in a process and a folder of its own."""
    words = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--trials", str(given.trials),
             "--result-mb", str(given.result_mb)]  # fmt: skip
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "experiments").mkdir()
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    secs: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return secs


def main() -> None:
    """Measure all sides in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--result-mb", type=float, default=0.0)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(run_side(given.side, given.trials, int(1e6 * given.result_mb))))
        return
    rounds = []
    for number in range(given.rounds):
        rounds.append({side: measure(side, given) for side in SIDES})
        shown = ", ".join(f"{side} {secs['trial']:.2f} s" for side, secs in rounds[-1].items())
        print(f"round {number + 1}: {shown}", flush=True)
    print(f"\nmedians of {given.rounds} rounds, {given.trials} trials each, results of {given.result_mb:g} MB\n")
    print("| engine, trials at a time | between two ends, s | trials an hour | first end after, s |\n|---|---|---|---|")
    for side in SIDES:
        trial, start = (statistics.median(one[side][part] for one in rounds) for part in ("trial", "start"))
        print(f"| {side} | {trial:.3f} | {3600 / trial:,.0f} | {start:.1f} |")


if __name__ == "__main__":
    main()
