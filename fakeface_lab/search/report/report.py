"""What a search shows at its end, on its parent run: leaderboard, history, importance, cost, how to train the winner.

Everything is made from what the store has recorded.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse
from urllib.request import url2pathname

import pandas as pd

from fakeface_lab.config import Hyperparameters
from fakeface_lab.data.sources import DOCUMENTED_NAME
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.report.figures import cost_figure, history_figure, importance_figure
from fakeface_lab.search.report.importance import Importance, measure_importance
from fakeface_lab.search.report.leaderboard import format_value, leaderboard, searched_names, trial_0_name
from fakeface_lab.terminal import format_secs
from fakeface_lab.tracking.finding import Run, children_of
from fakeface_lab.tracking.tags import join_text

__all__ = ["publish_report", "write_report"]

_FIGURE_DPI = 100
_NUM_SHOWN = 10


def publish_report(ledger: Ledger, objective: str, direction: Literal["min", "max"], verdict: str = "") -> None:
    """Put the report on the parent run, as artifacts and as its description; again after each restart.

    Args:
        ledger: of the search.
        objective: name of the score.
        direction: whether a larger or a smaller score is better.
        verdict: what the best score is worth, in sentences; of the detector: of the best against the documented
            configuration, empty without a final.
    """
    parent = ledger.parent
    folder = parent.folder / "report"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_report(ledger, objective, direction, verdict, folder)
    parent.upload(folder)
    parent.set_tags({"mlflow.note.content": (folder / "summary.md").read_text(encoding="utf-8")})


def write_report(ledger: Ledger, objective: str, direction: Literal["min", "max"], verdict: str, folder: Path) -> None:
    """Write `leaderboard.csv`, `history.png`, `importance.png`, `cost.png`, `best.toml` and `summary.md` to `folder`.

    `importance.png` needs four scored trials with different values, `best.toml` a finished trial of the detector.
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
    has_settings = False
    if best is not None and pd.notna(table["score"].iloc[0]):
        has_settings = _write_settings(ledger, best, folder / "best.toml")
    summary = _summary(table, objective, verdict, importance, trial_0, has_settings=has_settings)
    (folder / "summary.md").write_text(summary, encoding="utf-8")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=_FIGURE_DPI)


def _write_settings(ledger: Ledger, best: Run, path: Path) -> bool:
    """Write the settings that train the best trial again; return False where it is no detector's trial.

    The baseline keeps its last epoch, so the epochs are those up to the one that the trial kept: equal weights.
    """
    values = json.loads(join_text(best.data.tags, "values"))
    if not set(Hyperparameters.model_fields) <= set(values) or not best.inputs.dataset_inputs:
        return False
    params = best.data.params
    parent = ledger.parent
    with tempfile.TemporaryDirectory() as partial:
        client = parent.store.client
        copy = parent.writer.call(lambda: client.download_artifacts(best.info.run_id, "settings.json", partial))
        recorded = json.loads(Path(copy).read_text(encoding="utf-8"))
    settings: dict[str, str | int | float | None] = {
        "name": f"best of {parent.name}"[:200],
        "data": _data_setting(best),
        "positive": recorded["positive"],
        "split": params["split"],
        "image_size": int(params["image_size"]),
        "seed": int(params["seed"]),
        "epochs": int(best.data.tags["kept_epoch"]),
        "threads": int(params["num_threads"]),
    }
    lines = [
        f"# Trial {best.data.tags['trial']} of the search {json.dumps(parent.name)}, score {best.data.tags['score']}:",
        "#     python -m fakeface_lab.baseline --config best.toml",
        "# trains it again up to the epoch whose weights it kept; on the same machine to the same weights.",
        *(f"{key} = {_toml(value)}" for key, value in settings.items() if value is not None),
        "",
        "[hyperparameters]",
        *(f"{key} = {_toml(values[key])}" for key in Hyperparameters.model_fields),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    return True


def _data_setting(run: Run) -> str:
    """Return what to say for `--data` to get the images of a run."""
    dataset = run.inputs.dataset_inputs[0].dataset
    address = json.loads(dataset.source)["uri"]
    if address.startswith("kaggle:"):
        return DOCUMENTED_NAME
    folder = Path(url2pathname(urlparse(address).path))
    # The demo faces are drawn into a cache folder, whose place is no setting.
    return "demo" if dataset.name == "demo" and folder.name.startswith("demo-") else str(folder)


def _toml(value: str | int | float) -> str:
    """Return a value as TOML; JSON's strings are TOML's, as long as no letter is split into two escapes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _summary(
    table: pd.DataFrame,
    objective: str,
    verdict: str,
    importance: Importance | None,
    trial_0: str,
    *,
    has_settings: bool,
) -> str:
    """Return the description of the parent run, Markdown."""
    num_failed = int((table["status"] == "failed").sum())
    total_secs = float(table["train_secs"].sum())
    unmeasured = f", {num_failed} failed ones not counted" if num_failed else ""
    parts = [
        verdict or "No final was run: nothing is said about the test images.",
        _markdown_table(table, objective, trial_0),
        f"{len(table)} trials, {num_failed} failed; {format_secs(total_secs)} of training{unmeasured}.",
    ]
    if importance is not None:
        order = importance.means.argsort()[::-1]
        ranking = ", ".join(f"{importance.names[index]} {importance.means[index]:.2f}" for index in order)
        warning = f" **{importance.warning}.**" if importance.warning else ""
        parts.append(f"Importance (drop of R² in a forest over the trials): {ranking}.{warning}")
    if has_settings:
        parts.append(
            "Train the winner again: download `best.toml`, then `python -m fakeface_lab.baseline --config best.toml`."
        )
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
