"""Several trainings of one configuration, with other seeds or on other folds, whose mean is the trial's result."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fakeface_lab.training.objective import SPREAD, Objective, best_first
from fakeface_lab.training.outcome import Outcome, mean_metrics, write_outcome
from fakeface_lab.training.recorder import EpochRecord, Listener

__all__ = ["best_execution", "execution_folder", "execution_folders", "train_trial"]

Train = Callable[[int, Path, Listener], Outcome]


def execution_folder(folder: Path, number: int) -> Path:
    """Return the folder of one execution within that of its trial."""
    return folder / f"execution-{number}"


def execution_folders(folder: Path) -> list[Path]:
    """Return the existing folders of executions within that of their trial."""
    return sorted(folder.glob("execution-*"))


def train_trial(train: Train, num_executions: int, objective: Objective, folder: Path, listener: Listener) -> Outcome:
    """Train the only execution of a trial; or each that is not finished yet, in its own folder, and write their mean.

    Args:
        train: trains the execution with this number, or resumes it; returns its outcome at once if it is finished.
        num_executions: how many.
        objective: whose spread is measured.
        folder: of the trial.
        listener: is told each epoch with the number of its execution.
    """
    if num_executions == 1:
        return train(0, folder, listener)
    outcomes = []
    for number in range(num_executions):
        own = execution_folder(folder, number)
        own.mkdir(exist_ok=True)
        outcomes.append(train(number, own, _ExecutionListener(listener, number)))
    outcome = _mean_outcome(outcomes, objective)
    write_outcome(outcome, folder)
    return outcome


def best_execution(outcome: Outcome, objective: Objective) -> int:
    """Return the number of the execution with the best score; of equal ones the first."""
    scores = {number: _score(execution, objective) for number, execution in enumerate(outcome.executions)}
    return best_first(scores, objective.direction)[0]


def _mean_outcome(outcomes: Sequence[Outcome], objective: Objective) -> Outcome:
    """Return the mean curve, over the executions that reached an epoch, and the mean of what they measured at the end.

    As in KerasTuner, the kept epoch is the whole part of the mean of theirs, and a hyperparameter that several have
    found has the value of the first.
    """
    longest = max((outcome.records for outcome in outcomes), key=len)
    records = []
    for index, last in enumerate(longest):
        reached = [outcome.records[index] for outcome in outcomes if len(outcome.records) > index]
        records.append(EpochRecord(last.epoch, last.ended_at_ms, mean_metrics([record.metrics for record in reached])))
    scores = [_score(outcome, objective) for outcome in outcomes]
    metrics = mean_metrics([outcome.metrics for outcome in outcomes])
    kept_epoch = int(statistics.mean(outcome.kept_epoch for outcome in outcomes))
    metrics |= {SPREAD: statistics.stdev(scores), "kept_epoch": float(kept_epoch)}
    metrics["train_secs"] = sum(outcome.metrics["train_secs"] for outcome in outcomes)
    found = {json.dumps(new): new for outcome in outcomes for new in outcome.found}
    found_values = {name: value for outcome in reversed(outcomes) for name, value in outcome.found_values.items()}
    return Outcome(
        records, kept_epoch, metrics, executions=tuple(outcomes), found=[*found.values()], found_values=found_values
    )


def _score(outcome: Outcome, objective: Objective) -> float:
    return outcome.kept_metrics().get(objective.name, outcome.metrics.get(objective.name, float("nan")))


@dataclass(frozen=True)
class _ExecutionListener:
    """Adds the number of the execution to what is reported."""

    listener: Listener
    number: int

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        self.listener.step_ended(epoch, step, num_steps)

    def epoch_ended(self, record: EpochRecord) -> None:
        self.listener.epoch_ended(replace(record, execution=self.number))
