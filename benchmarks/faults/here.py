"""Side: this project, with a worker process; the same command resumes."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from curve import EXPERIMENT, NUM_EPOCHS, NUM_TRIALS, SEED, Trial, run_side, train_epoch

from fakeface_lab import Search
from fakeface_lab.backend import keras_tuner
from fakeface_lab.files import replace_text
from fakeface_lab.search.ledger.resume import open_search
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.search.run.placement import EngineSettings, open_engine
from fakeface_lab.search.run.progress import run_trials
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import open_store
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.epochs import EpochRecord, Listener
from fakeface_lab.training.objective import VAL_LOSS
from fakeface_lab.training.outcome import Outcome, log_metrics, read_outcome, write_outcome

__all__: list[str] = []


class CurveWork:
    """Trains the curve, and keeps its finished epochs as a checkpoint."""

    execution_names: ClassVar[Sequence[str]] = ()

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        if (finished := read_outcome(folder)) is not None:
            return finished
        checkpoint, records = folder / "epochs.json", []
        if checkpoint.exists():
            records = [EpochRecord(**record) for record in json.loads(checkpoint.read_text())]
        for epoch in range(len(records) + 1, assignment.epochs + 1):
            loss = train_epoch(assignment.values["x"], epoch)
            records.append(EpochRecord(epoch, time.time_ns() // 1_000_000, {"val_loss": loss}))
            replace_text(checkpoint, json.dumps([asdict(record) for record in records]))
            listener.epoch_ended(records[-1])
        outcome = Outcome(records, len(records), {})
        write_outcome(outcome, folder)
        return outcome

    def params(self, assignment: Assignment) -> dict[str, object]:
        return dict(assignment.values)

    def label(self, values: Mapping[str, Any]) -> str:
        return f"x {values['x']:.3f}"

    def begin(self, run: TrackedRun, assignment: Assignment) -> None:
        run.log_params(self.params(assignment))

    def finish(self, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool) -> None:
        log_metrics(run, outcome)


def _search() -> None:
    space = keras_tuner.HyperParameters()
    space.Float("x", 0.0, 1.0)
    oracle = keras_tuner.oracles.RandomSearchOracle(
        keras_tuner.Objective("val_loss", "min"), max_trials=NUM_TRIALS, hyperparameters=space, seed=SEED
    )
    tags = {**VAL_LOSS.tags(), "algorithm": "random", "seed": str(SEED)}
    store = open_store(None, Path.cwd(), EXPERIMENT)
    ledger = open_search(store, PatientWriter(600.0), EXPERIMENT, {}, tags, restart=False)
    work = CurveWork()
    with ledger.driving(), open_engine(EngineSettings("local", 1, 1, 600.0), work, ledger) as engine:
        run_trials(ledger, oracle, work, engine, epochs=NUM_EPOCHS, seed=SEED)


def _trials() -> list[Trial]:
    return [
        Trial(float(trial.record.values["x"]), trial.record.score if trial.record.status == "finished" else None)
        for trial in Search(EXPERIMENT).trials
    ]


if __name__ == "__main__":
    run_side(_search, _trials)
