"""What a search shows at its end, on its parent run: leaderboard, history, importance, cost, how to train the winner.

Everything is made from what the store has recorded.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.report.figures import cost_figure, history_figure, importance_figure
from fakeface_lab.search.report.importance import Importance, measure_importance
from fakeface_lab.search.report.leaderboard import format_value, leaderboard, searched_names, trial_0_name
from fakeface_lab.terminal import format_secs
from fakeface_lab.tracking.finding import Run, children_of

__all__ = ["publish_report", "write_report"]

_FIGURE_DPI = 100
_NUM_SHOWN = 10

WriteBest = Callable[[Ledger, Run, Path], str]


def publish_report(
    ledger: Ledger,
    objective: str,
    direction: Literal["min", "max"],
    verdict: str = "",
    write_best: WriteBest | None = None,
) -> None:
    """Put the report on the parent run, as artifacts and as its description; again after each restart.

    Args:
        ledger: of the search.
        objective: name of the score.
        direction: whether a larger or a smaller score is better.
        verdict: what the best score is worth, in sentences; may be empty.
        write_best: called with the ledger, the best trial's run and a folder, leaves files about it there and returns
            a sentence on them.
    """
    parent = ledger.parent
    folder = parent.folder / "report"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_report(ledger, objective, direction, verdict, folder, write_best)
    parent.upload(folder)
    parent.set_tags({"mlflow.note.content": (folder / "summary.md").read_text(encoding="utf-8")})


def write_report(
    ledger: Ledger,
    objective: str,
    direction: Literal["min", "max"],
    verdict: str,
    folder: Path,
    write_best: WriteBest | None = None,
) -> None:
    """Write `leaderboard.csv`, `history.png`, `importance.png`, `cost.png` and `summary.md` to `folder`.

    `importance.png` needs four scored trials with different values.
    Arguments as in `publish_report`.
    """
    # Read again: the ledger's own copies of the runs have no metrics from after their creation.
    parent = ledger.parent
    runs = parent.writer.call(lambda: children_of(parent.store, parent.run, "trial"))
    table = leaderboard(runs, direction)
    table.to_csv(folder / "leaderboard.csv", index=False)
    trial_0 = trial_0_name(parent.run)
    by_trial = table.sort_values("trial")
    scores = [None if pd.isna(score) else float(score) for score in by_trial["score"]]
    _save(history_figure(scores, objective, direction, trial_0), folder / "history.png")
    _save(cost_figure([float(secs) for secs in by_trial["train_secs"]]), folder / "cost.png")
    importance = measure_importance(table)
    if importance is not None:
        picture = importance_figure(
            importance.names, importance.means.tolist(), importance.spreads.tolist(), importance.warning
        )
        _save(picture, folder / "importance.png")
    best = next((run for run in runs if run.info.run_id == table["run_id"].iloc[0]), None)
    on_best = ""
    if write_best is not None and best is not None and pd.notna(table["score"].iloc[0]):
        on_best = write_best(ledger, best, folder)
    summary = _summary(table, objective, verdict, importance, trial_0, on_best)
    (folder / "summary.md").write_text(summary, encoding="utf-8")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=_FIGURE_DPI)


def _summary(
    table: pd.DataFrame,
    objective: str,
    verdict: str,
    importance: Importance | None,
    trial_0: str,
    on_best: str,
) -> str:
    """Return the description of the parent run, Markdown."""
    num_failed = int((table["status"] == "failed").sum())
    total_secs = float(table["train_secs"].sum())
    unmeasured = f", {num_failed} failed ones not counted" if num_failed else ""
    parts = [
        *([verdict] if verdict else []),
        _markdown_table(table, objective, trial_0),
        f"{len(table)} trials, {num_failed} failed; {format_secs(total_secs)} of training{unmeasured}.",
    ]
    if importance is not None:
        order = importance.means.argsort()[::-1]
        ranking = ", ".join(f"{importance.names[index]} {importance.means[index]:.2f}" for index in order)
        warning = f" **{importance.warning}.**" if importance.warning else ""
        parts.append(f"Importance (drop of R² in a forest over the trials): {ranking}.{warning}")
    if on_best:
        parts.append(on_best)
    pictures = ["history.png", "cost.png", *(["importance.png"] if importance is not None else [])]
    parts.append(f"Among the artifacts: {', '.join(f'`{name}`' for name in ['leaderboard.csv', *pictures])}.")
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: pd.DataFrame, objective: str, trial_0: str) -> str:
    """Return the best trials, and trial 0 if it is not among them."""
    names = searched_names(table)
    shown = table[(table.index < _NUM_SHOWN) | (table["trial"] == 0)]
    lines = [
        "| " + " | ".join(["rank", "trial", objective, *names, "epoch", "parameters"]) + " |",
        "|" + "---|" * (5 + len(names)),
    ]
    for row in shown.to_dict("records"):
        values = [format_value(row[name]) for name in names]
        has_score = not pd.isna(row["score"])
        cells = [
            str(row["rank"]) if has_score else row["status"],
            f"0 ({trial_0})" if row["trial"] == 0 else str(row["trial"]),
            f"{row['score']:.4f}" if has_score else "",
            *values,
            f"{row['kept_epoch']} of {row['epochs']}",
            "" if pd.isna(row["num_params"]) else f"{row['num_params']:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
