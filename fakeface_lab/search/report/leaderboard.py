"""The trials of a search as a table, best first, as the store has recorded them. Loads no TensorFlow."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from fakeface_lab.terminal import format_secs, format_value
from fakeface_lab.tracking.lookup import Run, children_of
from fakeface_lab.tracking.store import Store, join_text
from fakeface_lab.training.objective import SPREAD, Direction, Objective

__all__ = [
    "format_cell",
    "leaderboard",
    "plain_table",
    "read_leaderboard",
    "searched_names",
    "trial_0_name",
    "trials_table",
    "value_column",
]

_BEFORE_VALUES = ("trial", "run", "score")
_AFTER_VALUES = ("epochs", "epochs_planned", "kept_epoch", "train_secs", "num_params", "status", "reason", "run_id")

# Nobody reads more in a terminal, and 10,000 would take a quarter of the time of `compare`.
_MAX_SHOWN = 100


def trial_0_name(parent: Run) -> str:
    """Return the name of trial 0's configuration: what the other trials are compared with."""
    return str(parent.data.tags.get("trial_0", "defaults"))


def read_leaderboard(store: Store, search: Run) -> pd.DataFrame:
    """Return the current leaderboard of the search with this parent run."""
    return leaderboard(children_of(store, search, "trial"), Objective.from_tags(search.data.tags).direction)


def leaderboard(trials: Sequence[Run], direction: Direction) -> pd.DataFrame:
    """Return one row per trial, best first, trials without a score last.

    Args:
        trials: runs with the role `trial`.
        direction: whether a larger or a smaller score is better.

    Returns:
        `rank` (from 1, missing without a score; of equal scores the earlier trial is first), `trial` (from 0),
        `run` (name), `score`, the hyperparameters by name (`hp.NAME` if a column has that name; missing if inactive),
        `epochs` (finished), `epochs_planned`, `kept_epoch` (from 1), `train_secs` (spent on this trial: 0 for a
        repeated configuration, and without the epochs that Hyperband inherited from another trial), `num_params`,
        `status` (finished, failed or running), `reason` (why it failed), `run_id`; `score_std` if trials have several
        executions: the standard deviation of their scores.
    """
    by_trial = {run.data.tags["trial"]: run for run in trials}
    # In order of first appearance: some hyperparameters are inactive in the first trials.
    names = list(dict.fromkeys(name for run in trials for name in json.loads(join_text(run.data.tags, "values"))))
    spread = [SPREAD] if any(SPREAD in run.data.metrics for run in trials) else []
    columns = [*_BEFORE_VALUES, *map(value_column, names), *_AFTER_VALUES, *spread]
    table = pd.DataFrame([_row(run, by_trial) for run in trials], columns=columns)
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
    columns = list(table.columns)
    names = columns[columns.index("score") + 1 : columns.index("epochs")]
    return [name for name in names if table[name].astype(str).nunique() > 1]


def format_cell(value: object) -> str:
    """Return a hyperparameter of a leaderboard as a short text; `-` if it is inactive."""
    return "-" if pd.isna(value) else format_value(value, 3)  # type: ignore[call-overload]


def _row(run: Run, by_trial: Mapping[str, Run]) -> dict[str, Any]:
    tags, metrics = run.data.tags, run.data.metrics
    finished = tags.get("outcome") == "finished"
    return {
        "trial": int(tags["trial"]),
        "run": run.info.run_name,
        "score": float(tags["score"]) if finished and "score" in tags else float("nan"),
        **{value_column(name): value for name, value in json.loads(join_text(tags, "values")).items()},
        "epochs": int(tags.get("epochs_done", "0")),
        "epochs_planned": int(tags.get("epochs_planned", "0")),
        "kept_epoch": int(tags.get("kept_epoch", "0")),
        "train_secs": _secs_spent(run, by_trial),
        "num_params": metrics.get("num_params", float("nan")),
        "status": tags.get("outcome", "running"),
        "reason": tags.get("status_reason", ""),
        "run_id": run.info.run_id,
        SPREAD: metrics.get(SPREAD, float("nan")),
    }


def value_column(name: str) -> str:
    """Return the column of a leaderboard that has the values of this hyperparameter."""
    return f"hp.{name}" if name in ("rank", *_BEFORE_VALUES, *_AFTER_VALUES) else name


def _secs_spent(run: Run, by_trial: Mapping[str, Run]) -> float:
    if "duplicate_of" in run.data.tags:
        return 0.0
    secs = float(run.data.metrics.get("train_secs", "nan"))
    # The seconds of a promoted trial include those of the trial that it resumes.
    source = json.loads(join_text(run.data.tags, "bracket_values")).get("tuner/trial_id")
    if source is not None:
        secs -= float(by_trial[str(int(source))].data.metrics.get("train_secs", 0.0))
    return secs


def trials_table(trials: pd.DataFrame, trial_0: str) -> Table:
    """Return a leaderboard for the terminal, with the hyperparameters that differ; `trial_0` names trial 0.

    Of many trials it has the best ones and trial 0, and says how many are left out.
    """
    if trials.empty:
        return plain_table("trial")
    names = searched_names(trials)
    table = plain_table("rank", "trial", "score", *names, "epoch", "training", "parameters", "status", "run id")
    left_out = trials.iloc[_MAX_SHOWN:].query("trial != 0")
    if len(left_out):
        num_failed = int((left_out["status"] == "failed").sum())
        table.caption = f"and {len(left_out):,} more, {num_failed:,} of them failed: all are in MLflow's leaderboard"
        table.caption_justify = "left"
    for row in trials.drop(left_out.index).to_dict("records"):
        has_score = pd.notna(row["score"])
        status = f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]
        spread = f" ± {row[SPREAD]:.4f}" if pd.notna(row.get(SPREAD)) else ""
        table.add_row(
            str(row["rank"]) if has_score else "",
            f"0 {trial_0}" if row["trial"] == 0 else str(row["trial"]),
            f"{row['score']:.4f}{spread}" if has_score else "",
            *(format_cell(row[name]) for name in names),
            f"{row['kept_epoch']} of {row['epochs']}",
            format_secs(row["train_secs"]) if pd.notna(row["train_secs"]) else "",
            f"{row['num_params']:,}" if pd.notna(row["num_params"]) else "",
            status,
            row["run_id"],
        )
    return table


def plain_table(*headings: str) -> Table:
    """Return an empty table without lines; columns of numbers are right-aligned."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        is_number = heading in {"rank", "trial", "score", "seeds", "epochs", "epoch", "parameters", "training"}
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=True)
    return table
