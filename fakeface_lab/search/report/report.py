"""The report of a search: leaderboard, history, importance, cost, how to train the winner, the views in MLflow's page.

Everything is computed from what the store has recorded.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from keras_tuner import oracles as kt_oracles

from fakeface_lab.backend import keras_tuner
from fakeface_lab.figures import save_figures
from fakeface_lab.figures.search import cost_figure, history_figure, importance_figure
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.report.importance import Importance, measure_importance
from fakeface_lab.search.report.leaderboard import (
    format_cell,
    read_leaderboard,
    searched_names,
    trial_0_name,
    value_column,
)
from fakeface_lab.search.suggest.oracles import searched_hyperparameters
from fakeface_lab.search.suggest.template import grown_space, growth_of
from fakeface_lab.terminal import format_secs
from fakeface_lab.tracking.runs import Run, StoredRun
from fakeface_lab.tracking.store import param_name
from fakeface_lab.tracking.views import save_views

__all__ = ["publish_report", "save_search_views"]

_NUM_SHOWN = 10

WriteBest = Callable[[Ledger, Run, Path], str]


def publish_report(
    ledger: Ledger,
    template: keras_tuner.Oracle,
    metrics: Mapping[str, float],
    verdict: str = "",
    write_best: WriteBest | None = None,
) -> pd.DataFrame:
    """Write the report to the parent run: metrics, artifacts, description; repeated after each restart.

    The artifacts are `leaderboard.csv`, `history.png`, `cost.png`, `summary.md` (the description) and, with four scored
    trials with different values, `importance.png`. They are made in the folder `report` of the parent run's files. The
    saved views are written again, with the hyperparameters in the order of their importance.

    Args:
        ledger: of the search.
        template: the oracle.
        metrics: of the search so far; their step is its number of trials.
        verdict: what the best score is worth, in sentences; may be empty.
        write_best: called with the ledger, the best trial's run and the folder; leaves files about it there and
            returns a sentence about them.

    Returns:
        The leaderboard.
    """
    parent, objective = ledger.parent, ledger.objective
    # At a time that a restart does not change, so that the points stay the same.
    parent.log_metrics(metrics, len(ledger.trials), int(parent.run.info.start_time))
    folder = parent.folder / "report"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    # Read again: the ledger's copies of the runs lack metrics written after their creation.
    table = parent.writer.call(lambda: read_leaderboard(parent.store, parent.run))
    table.to_csv(folder / "leaderboard.csv", index=False)
    trial_0 = trial_0_name(parent.run)
    by_trial = table.sort_values("trial")
    scores = [None if pd.isna(score) else float(score) for score in by_trial["score"]]
    figures = {
        "history": history_figure(scores, objective.name, objective.direction, trial_0),
        "cost": cost_figure([float(secs) for secs in by_trial["train_secs"]]),
    }
    importance = measure_importance(table, searched_names(table[table["score"].notna()]))
    if importance is not None:
        figures["importance"] = importance_figure(
            importance.names, importance.means.tolist(), importance.spreads.tolist(), importance.warning
        )
    save_figures(figures, folder)
    best = ledger.best_first()
    on_best = ""
    if write_best is not None and best:
        on_best = write_best(ledger, StoredRun(parent.store, parent.writer, best[0].run).read(), folder)
    summary = _summary(table, objective.name, verdict, importance, trial_0, on_best)
    (folder / "summary.md").write_text(summary, encoding="utf-8")
    parent.upload(folder)
    parent.set_tags({"mlflow.note.content": summary})
    save_search_views(ledger, template, importance)
    return table


def save_search_views(ledger: Ledger, template: keras_tuner.Oracle, importance: Importance | None = None) -> None:
    """Write the saved views of a search in MLflow's page, the most important hyperparameters first.

    Args:
        ledger: of the search.
        template: the oracle, whose space has the hyperparameters.
        importance: of the hyperparameters; None if it is not known, which leaves them in the order of the space.
    """
    searched = searched_hyperparameters(grown_space(template))
    # What trials have found is missing in those before.
    searched |= {hp.name: True for found in growth_of(template).values() for hp in found if hp.name in searched}
    columns = {name: value_column(name) for name in searched}
    if isinstance(template, kt_oracles.HyperbandOracle):
        columns["epochs"] = "epochs_planned"
    means = {} if importance is None else dict(zip(importance.names, importance.means.tolist(), strict=True))
    names = sorted(columns, key=lambda name: -means.get(columns[name], 0.0))
    conditional = {param_name(name) for name, is_conditional in searched.items() if is_conditional}
    params = list(dict.fromkeys(map(param_name, names)))
    save_views(ledger.parent, ledger.objective.name, ledger.objective.direction, params, conditional)


def _summary(
    table: pd.DataFrame, objective: str, verdict: str, importance: Importance | None, trial_0: str, on_best: str
) -> str:
    """Return the description of the parent run in Markdown."""
    num_failed = int((table["status"] == "failed").sum())
    total_secs = float(table["train_secs"].sum())
    unmeasured = f", {num_failed} failed ones not counted" if num_failed else ""
    parts = [
        verdict,
        _markdown_table(table, objective, trial_0),
        f"{len(table)} trials, {num_failed} failed; {format_secs(total_secs)} of training{unmeasured}.",
    ]
    if importance is not None:
        order = importance.means.argsort()[::-1]
        ranking = ", ".join(f"{importance.names[index]} {importance.means[index]:.2f}" for index in order)
        warning = f" **{importance.warning}.**" if importance.warning else ""
        parts.append(f"Importance (drop of R² in a forest over the trials): {ranking}.{warning}")
    parts.append(on_best)
    files = ["leaderboard.csv", "history.png", "cost.png", *(["importance.png"] if importance is not None else [])]
    parts.append(f"Among the artifacts: {', '.join(f'`{name}`' for name in files)}.")
    return "\n\n".join(filter(None, parts)) + "\n"


def _markdown_table(table: pd.DataFrame, objective: str, trial_0: str) -> str:
    """Return the best trials, and trial 0 if it is not among them."""
    names = searched_names(table)
    shown = table[(table.index < _NUM_SHOWN) | (table["trial"] == 0)]
    lines = [
        "| " + " | ".join(["rank", "trial", objective, *names, "epoch", "parameters"]) + " |",
        "|" + "---|" * (5 + len(names)),
    ]
    for row in shown.to_dict("records"):
        has_score = not pd.isna(row["score"])
        cells = [
            str(row["rank"]) if has_score else row["status"],
            f"0 ({trial_0})" if row["trial"] == 0 else str(row["trial"]),
            f"{row['score']:.4f}" if has_score else "",
            *(format_cell(row[name]) for name in names),
            f"{row['kept_epoch']} of {row['epochs']}",
            "" if pd.isna(row["num_params"]) else f"{row['num_params']:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
