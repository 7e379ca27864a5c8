"""What a fault has cost a side, read after the search from the side's own store, from MLflow and from the journal."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curve import EXPERIMENT, NUM_EPOCHS, Trial
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

__all__ = ["Losses", "read_journal", "read_losses"]

_METRICS = ("val_loss", "intermediate_value")  # the second is MlflowStorage's


@dataclass(frozen=True)
class Losses:
    """One cell of the table.

    Attributes:
        ended: whether the search came to its end.
        num_restarts: times the driver was started again by hand.
        num_replies_lost: replies that did not arrive.
        longest_pause_secs: between the ends of two epochs; an undisturbed epoch takes one second.
        num_finished: trials with a score in the side's own store.
        num_unfinished: trials that failed there, or still run.
        num_epochs_again: epochs trained more than once for the same x.
        num_trained_twice: values of x whose first epoch was trained more than once.
        num_runs_running: MLflow runs of trials that still run.
        num_runs_extra: MLflow runs beyond one for each x, and beyond one for the search.
        num_points_missing: of the curves of the finished trials in MLflow.
        num_points_twice: steps with more than one point.
        best: x of the best trial.
        best_score: its loss.
    """

    ended: bool
    num_restarts: int
    num_replies_lost: int
    longest_pause_secs: float
    num_finished: int
    num_unfinished: int
    num_epochs_again: int
    num_trained_twice: int
    num_runs_running: int
    num_runs_extra: int
    num_points_missing: int
    num_points_twice: int
    best: float | None
    best_score: float | None


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the epochs finished so far: `x`, `epoch` and `at`, Unix time in seconds."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_losses(
    uri: str, journal: Path, trials: Sequence[Trial], *, ended: bool, num_restarts: int, num_replies_lost: int
) -> Losses:
    """Return what was lost, from a server at `uri` that answers again."""
    epochs = read_journal(journal)
    counts = Counter((epoch["x"], epoch["epoch"]) for epoch in epochs)
    pauses = [after["at"] - before["at"] for before, after in itertools.pairwise(epochs)]
    finished = [trial for trial in trials if trial.score is not None]
    best = min(finished, key=lambda trial: trial.score or 0.0, default=Trial(None, None))
    return Losses(
        ended=ended,
        num_restarts=num_restarts,
        num_replies_lost=num_replies_lost,
        longest_pause_secs=round(max(pauses, default=0.0), 1),
        num_finished=len(finished),
        num_unfinished=len(trials) - len(finished),
        num_epochs_again=sum(counts.values()) - len(counts),
        num_trained_twice=sum(epoch == 1 and count > 1 for (_, epoch), count in counts.items()),
        **_read_runs(MlflowClient(uri), finished),
        best=best.x,
        best_score=best.score,
    )


def _read_runs(client: MlflowClient, finished: Sequence[Trial]) -> Mapping[str, int]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = list(client.search_runs([experiment.experiment_id], max_results=1000))
    searches = [
        run for run in runs if "optuna.study_direction" in run.data.tags or run.data.tags.get("role") == "search"
    ]
    of_trials = [run for run in runs if run not in searches]
    steps: dict[float, set[int]] = {}
    num_twice = 0
    for run in of_trials:
        found = _steps(client, run)
        num_twice += len(found) - len(set(found))
        if "x" in run.data.params:
            steps.setdefault(float(run.data.params["x"]), set()).update(found)
    missing = [set(range(1, NUM_EPOCHS + 1)) - steps.get(x or 0.0, set()) for x in {trial.x for trial in finished}]
    return {
        "num_runs_running": sum(run.info.status in ("RUNNING", "SCHEDULED") for run in of_trials),
        "num_runs_extra": len(of_trials) - len(steps) + max(len(searches) - 1, 0),
        "num_points_missing": sum(map(len, missing)),
        "num_points_twice": num_twice,
    }


def _steps(client: MlflowClient, run: Run) -> list[int]:
    """Return the steps of a run's curve, one for each point."""
    return [int(point.step) for name in _METRICS for point in client.get_metric_history(run.info.run_id, name)]
