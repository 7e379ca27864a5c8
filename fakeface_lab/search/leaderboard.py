"""The trials of a search as a table, best first, from the runs that the store has. Loads no TensorFlow."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from fakeface_lab.tracking.finding import Run

__all__ = ["direction_of", "leaderboard", "searched_names"]


def direction_of(parent: Run) -> Literal["min", "max"]:
    """Return whether a larger or a smaller score is better, as the parent run of a search says."""
    tags = parent.data.tags
    return "max" if tags.get("direction") == "max" else "min"


def leaderboard(trials: Sequence[Run], direction: Literal["min", "max"]) -> pd.DataFrame:
    """Return one row a trial, best first, trials without a score last.

    Args:
        trials: runs with the role `trial`.
        direction: whether a larger or a smaller score is better.

    Returns:
        `rank` (from 1, missing without a score; of equal scores the earlier trial is first), `trial` (from 0, the
        documented configuration), `run` (name), `score`, the hyperparameters by name, `epochs` (finished),
        `kept_epoch` (from 1), `train_secs` (spent on this trial: nothing for a repeated one, and without the epochs
        that Hyperband took over from another trial),
        `num_params`, `status` (finished, failed or running), `reason` (why it failed), `run_id`.
    """
    by_trial = {run.data.tags["trial"]: run for run in trials}
    table = pd.DataFrame([_row(run, by_trial) for run in trials])
    if table.empty:
        return table
    signed = table["score"] if direction == "min" else -table["score"]
    table = table.assign(signed=signed).sort_values(["signed", "trial"], na_position="last").drop(columns="signed")
    table["num_params"] = table["num_params"].astype("Int64")
    has_score = table["score"].notna()
    rank = pd.Series(np.where(has_score, np.arange(1, len(table) + 1), 0), index=table.index, dtype="Int64")
    table.insert(0, "rank", rank.mask(~has_score))
    return table.reset_index(drop=True)


def searched_names(table: pd.DataFrame) -> list[str]:
    """Return the hyperparameters that differ between the trials of a leaderboard."""
    return [name for name in _value_names(table) if table[name].astype(str).nunique() > 1]


def _value_names(table: pd.DataFrame) -> list[str]:
    columns = list(table.columns)
    return columns[columns.index("score") + 1 : columns.index("epochs")]


def _row(run: Run, by_trial: Mapping[str, Run]) -> dict[str, Any]:
    tags, metrics = run.data.tags, run.data.metrics
    finished = tags.get("outcome") == "finished"
    return {
        "trial": int(tags["trial"]),
        "run": run.info.run_name,
        "score": float(tags["score"]) if finished and "score" in tags else float("nan"),
        **json.loads(tags["values"]),
        "epochs": int(tags.get("epochs_done", "0")),
        "kept_epoch": int(tags.get("kept_epoch", "0")),
        "train_secs": _secs_spent(run, by_trial),
        "num_params": metrics.get("num_params", float("nan")),
        "status": tags.get("outcome", "running"),
        "reason": tags.get("status_reason", ""),
        "run_id": run.info.run_id,
    }


def _secs_spent(run: Run, by_trial: Mapping[str, Run]) -> float:
    if "duplicate_of" in run.data.tags:
        return 0.0
    secs = float(run.data.metrics.get("train_secs", "nan"))
    # The figures of a promoted trial begin with the epochs of the one that it goes on from.
    source = json.loads(run.data.tags["bracket_values"]).get("tuner/trial_id")
    if source is not None:
        secs -= float(by_trial[str(int(source))].data.metrics["train_secs"])
    return secs
