"""Leaderboards as the terminal shows them. Loads no TensorFlow."""

import pandas as pd
from rich.table import Table

from fakeface_lab.search.report.leaderboard import format_value, searched_names
from fakeface_lab.terminal import format_secs

__all__ = ["plain_table", "trials_table"]


def trials_table(trials: pd.DataFrame, trial_0: str) -> Table:
    """Return one row a trial of a leaderboard, with the hyperparameters that differ; trial 0 is called `trial_0`."""
    if trials.empty:
        return plain_table("trial")
    names = searched_names(trials)
    table = plain_table("rank", "trial", "score", *names, "epoch", "training", "parameters", "status", "run id")
    for row in trials.to_dict("records"):
        has_score = pd.notna(row["score"])
        status = f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]
        table.add_row(
            str(row["rank"]) if has_score else "",
            f"0 {trial_0}" if row["trial"] == 0 else str(row["trial"]),
            f"{row['score']:.4f}" if has_score else "",
            *(format_value(row[name]) for name in names),
            f"{row['kept_epoch']} of {row['epochs']}",
            format_secs(row["train_secs"]) if pd.notna(row["train_secs"]) else "",
            f"{row['num_params']:,}" if pd.notna(row["num_params"]) else "",
            status,
            row["run_id"],
        )
    return table


def plain_table(*headings: str) -> Table:
    """Return an empty table without lines; columns of numbers are to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        is_number = heading in {"rank", "trial", "score", "seeds", "epochs", "epoch", "parameters", "training"}
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=True)
    return table
