"""A work that takes milliseconds: a curve instead of a network, with checkpoints, faults and deaths."""

import errno
import json
import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import keras_tuner

from fakeface_lab.backend import tf
from fakeface_lab.detector.space import OracleSpec, build_oracle
from fakeface_lab.errors import TrainingDivergedError
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.ledger.resume import open_search
from fakeface_lab.search.run.engine import Assignment, Event
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.epochs import EpochRecord, Listener
from fakeface_lab.training.objective import VAL_LOSS
from fakeface_lab.training.outcome import Outcome

Algorithm = Literal["random", "grid", "bayesian", "hyperband"]


@dataclass(frozen=True)
class CurveWork:
    """The score falls with each epoch towards a floor that the values `x` and `kind` set.

    Attributes:
        faults: assignment key to what happens in its second (or only) epoch: `error`, `fatal`, `nan`, `memory`, `disk`,
            `stumble`, `exit`, `kill`, `hang`; with `once ` before it only in the first attempt.
        trained: file to which each trained epoch is appended.
    """

    trained: Path
    faults: dict[str, str] = field(default_factory=dict)
    execution_names: ClassVar[Sequence[str]] = ()

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        checkpoint = folder / "epoch.ckpt"
        records = []
        if checkpoint.exists():
            records = [EpochRecord(**record) for record in json.loads(checkpoint.read_text())]
        for epoch in range(len(records) + 1, assignment.epochs + 1):
            with self.trained.open("a") as file:
                file.write(f"{assignment.key} {epoch}\n")
            if epoch == min(2, assignment.epochs):
                self._fail(assignment.key, folder)
            value = self.value(assignment, epoch)
            metrics = {"loss": value + 0.1, "val_loss": value, "epoch_secs": 0.01}
            records.append(EpochRecord(epoch, time.time_ns() // 1_000_000, metrics))
            partial = folder / "epoch.partial"
            partial.write_text(json.dumps([asdict(record) for record in records]))
            partial.replace(checkpoint)
            (folder / f"kept-{epoch}.weights").write_text("kept")
            listener.step_ended(epoch, 1, 1)
            listener.epoch_ended(records[-1])
        outcome = Outcome(records, len(records), {"num_epochs": float(len(records)), "num_params": 10.0})
        (folder / "outcome.json").write_text(json.dumps(asdict(outcome)))
        return outcome

    @staticmethod
    def value(assignment: Assignment, epoch: int) -> float:
        x, kind = float(assignment.values["x"]), str(assignment.values["kind"])
        return (x - 0.3) ** 2 + {"a": 0.1, "b": 0.2, "c": 0.05}[kind] + math.exp(-epoch) + 1e-3 * assignment.seed

    def _fail(self, key: str, folder: Path) -> None:
        fault = self.faults.get(key, "")
        mark = folder / "failed-once"
        if fault.startswith("once "):
            if mark.exists():
                return
            mark.write_text("")
        match fault.removeprefix("once "):
            case "error":
                raise ValueError("a shape does not fit\nsecond line")
            case "fatal":
                raise keras_tuner.errors.FatalValueError("wrong data")
            case "nan":
                raise TrainingDivergedError("training diverged: loss became nan")
            case "memory":
                raise MemoryError("no room for the weights")
            case "disk":
                raise OSError(errno.ENOSPC, "No space left on device")
            case "stumble":
                raise tf.errors.InternalError(None, None, "cuDNN is out of order")
            case "exit":
                os._exit(7)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)

    def params(self, assignment: Assignment) -> dict[str, object]:
        return {**assignment.values, "epochs": assignment.epochs}

    def label(self, values: Mapping[str, Any]) -> str:
        return f"x{float(values['x']):.2g}"

    def begin(self, run: TrackedRun, assignment: Assignment) -> None:
        run.log_params(self.params(assignment))

    def finish(self, run: TrackedRun, assignment: Assignment, outcome: Outcome, *, keep_model: bool) -> None:
        for record in outcome.records:
            run.log_metrics(record.metrics, record.epoch, record.ended_at_ms)
        run.log_metrics(outcome.metrics, outcome.kept_epoch, outcome.ended_at_ms)
        if keep_model:
            _log_model(run)


def _log_model(run: TrackedRun) -> None:
    client, experiment_id, call = run.store.client, run.store.experiment_id, run.writer.call
    if call(lambda: client.search_logged_models([experiment_id], f"source_run_id = '{run.run_id}'")):
        return
    model = call(lambda: client.create_logged_model(experiment_id, name="model", source_run_id=run.run_id))
    weights = run.folder / "weights"
    weights.mkdir(exist_ok=True)
    (weights / "w.bin").write_bytes(b"0" * 1000)
    call(lambda: client.log_model_artifacts(model.model_id, str(weights)))
    call(lambda: client.finalize_logged_model(model.model_id, "READY"))


@dataclass
class Notes:
    """An observer that records its calls; at call `cut_at` it raises, like Ctrl-C."""

    cut_at: int = -1
    lines: list[str] = field(default_factory=list)

    def _note(self, text: str) -> None:
        self.lines.append(text)
        if len(self.lines) == self.cut_at:
            raise KeyboardInterrupt

    def started(self, trial: LedgerTrial, epochs: int) -> None:
        self._note(f"start {trial.record.sequence}")

    def progressed(self, trial: LedgerTrial, event: Event) -> None:
        self._note(f"{event.kind} {trial.record.sequence}")

    def ended(self, trial: LedgerTrial) -> None:
        self._note(f"end {trial.record.sequence} {trial.record.status}")

    def printed(self, trial: LedgerTrial, line: str) -> None: ...

    def retrying(self, trial: LedgerTrial, reason: str) -> None:
        self._note(f"retry {trial.record.sequence} {reason}")


def template(algorithm: Algorithm, max_trials: int | None = 6, max_epochs: int = 4) -> keras_tuner.Oracle:
    """An oracle over one continuous value and one choice."""
    space = keras_tuner.HyperParameters()
    if algorithm == "grid":
        space.Choice("x", [0.0, 0.5, 1.0], default=0.0)
    else:
        space.Float("x", 0.0, 1.0, default=0.0)
    space.Choice("kind", ["a", "b", "c"], default="a")
    limit = None if algorithm == "hyperband" else max_trials
    return build_oracle(
        OracleSpec(algorithm, space, seed=3, max_trials=limit, num_initial_points=3, max_epochs=max_epochs)
    )


def open_ledger(store: Store, name: str = "curves", restart: bool = False, **identity: Any) -> Ledger:
    """The ledger of a search, new or resumed."""
    writer = PatientWriter(120)
    return open_search(store, writer, name, {"seed": 3} | identity, VAL_LOSS.tags(), restart=restart)


def reopened(ledger: Ledger, **identity: Any) -> Ledger:
    """The same ledger, as another process reads it."""
    ledger.parent.lock.release()
    return open_ledger(ledger.parent.store, **identity)
