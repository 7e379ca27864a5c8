"""The report of a search says what the store holds, and its settings train the winner again."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import pandas as pd
import pytest
from keras_tuner import oracles
from PIL import Image
from rich.table import Table

from fakeface_lab.config import load_settings
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.ledger.resume import open_search
from fakeface_lab.search.report.leaderboard import leaderboard, searched_names, trials_table
from fakeface_lab.search.report.report import measure_importance, publish_report, save_search_views
from fakeface_lab.search.suggest.suggestion import Suggestion
from fakeface_lab.settings import BaselineSettings, Hyperparameters
from fakeface_lab.tracking.lookup import children_of, find_run
from fakeface_lab.tracking.store import open_store
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.objective import VAL_LOSS
from tests.saved_views import read_views
from tests.tiny_store import TinyStore, tiny_store


@pytest.fixture
def ledger(project: Path) -> Iterator[Ledger]:
    store = open_store(None, project, "faces")
    ledger = open_search(store, PatientWriter(5), "by hand", {}, VAL_LOSS.tags(), restart=False)
    yield ledger
    ledger.parent.lock.release()


def add(
    ledger: Ledger,
    score: float | None,
    *,
    secs: float | None = None,
    reason: str = "",
    bracket: dict[str, object] | None = None,
    epochs: int = 5,
    **values: object,
) -> LedgerTrial:
    """Record an ended trial as the driver does."""
    suggestion = Suggestion(values=values, bracket_values=bracket or {})  # type: ignore[arg-type]
    trial = ledger.create(suggestion, f"t{len(ledger.trials):03d}", {})
    metrics = {"num_params": 1000.0} | ({} if secs is None else {"train_secs": secs})
    client = ledger.parent.store.client
    for name, value in metrics.items():
        client.log_metric(trial.run_id, name, value)
    trial = ledger.count_epoch(trial, epochs)
    outcome = "failed" if score is None else "finished"
    return ledger.end(trial, outcome, score, reason, {"kept_epoch": "4"})  # type: ignore[arg-type]


def table_of(ledger: Ledger, direction: str = "min") -> pd.DataFrame:
    ledger.parent.writer.drain()
    runs = children_of(ledger.parent.store, ledger.parent.run, "trial")
    return leaderboard(runs, direction)  # type: ignore[arg-type]


def test_leaderboard_ranks_scores_and_puts_failures_last(ledger: Ledger) -> None:
    add(ledger, 0.5, secs=10, units=8, rate=0.1)
    add(ledger, None, reason="out of memory", units=4096, rate=0.1)
    add(ledger, 0.3, secs=20, units=16, rate=0.1)
    add(ledger, 0.3, secs=5, units=32, rate=0.1)
    table = table_of(ledger)
    assert table["trial"].tolist() == [2, 3, 0, 1]
    assert table["rank"].tolist()[:3] == [1, 2, 3]
    assert table["rank"].isna().tolist() == [False, False, False, True]
    assert table_of(ledger, "max")["trial"].tolist() == [0, 2, 3, 1]
    last = table.iloc[3]
    assert (last["status"], last["reason"], last["run"]) == ("failed", "out of memory", "t001")
    assert searched_names(table) == ["units"]
    assert list(table.columns) == [
        "rank", "trial", "run", "score", "units", "rate", "epochs", "epochs_planned", "kept_epoch", "train_secs",
        "num_params", "status", "reason", "run_id",
    ]  # fmt: skip


def test_cost_counts_each_second_once(ledger: Ledger) -> None:
    first = add(ledger, 0.5, secs=10, units=8)
    add(ledger, 0.4, secs=30, units=8, bracket={"tuner/trial_id": "0", "tuner/epochs": 10})
    again = ledger.create(Suggestion(values={"units": 8}, bracket_values={}), "t002", {})
    ledger.stored(again).copy_figures(first.run)
    ledger.end(again, "finished", first.record.score, tags={"duplicate_of": "0"})
    table = table_of(ledger).sort_values("trial")
    assert table["train_secs"].tolist() == [10, 20, 0]


def test_columns_of_values_that_appear_late_or_have_the_name_of_another_column(ledger: Ledger) -> None:
    add(ledger, 0.5, secs=1, kind="plain", status=3)
    add(ledger, 0.4, secs=1, kind="leaky", slope=0.1, status=3)
    add(ledger, 0.6, secs=1, kind="leaky", slope=0.3, status=4)
    table = table_of(ledger)
    assert set(table["status"]) == {"finished"}
    assert searched_names(table) == ["kind", "hp.status", "slope"]
    parts = _cells(trials_table(table, "defaults"))
    assert [cells[3:6] for cells in parts] == [["leaky", "3", "0.1"], ["plain", "3", "-"], ["leaky", "4", "0.3"]]
    assert [cells[1] for cells in parts] == ["1", "0 defaults", "2"]


def _cells(table: Table) -> list[list[str]]:
    """Return the displayed cells of a table, row by row."""
    return [list(map(str, row)) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_cost_of_a_promoted_trial_whose_parent_failed_is_unknown(ledger: Ledger) -> None:
    add(ledger, None, reason="no memory", units=8)
    add(ledger, None, reason="its parent, trial 0, failed", units=8, bracket={"tuner/trial_id": "0"})
    assert table_of(ledger)["train_secs"].isna().all()


def test_importance_counts_inactive_values_and_ignores_early_stops() -> None:
    table = trials_frame(40)
    table.loc[table["word"] == "a", "noise"] = None
    table["epochs"] = [3, 5] * 20
    found = measure_importance(table)
    assert found is not None
    assert found.names == ("units", "noise", "word")
    table["epochs_planned"] = table["epochs"]
    promoted = measure_importance(table)
    assert promoted is not None
    assert promoted.names[-1] == "epochs_planned"


def trials_frame(num: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    units, words = rng.integers(1, 100, num), rng.choice(["a", "b"], num)
    return pd.DataFrame(
        {
            "trial": range(num),
            "run": "t",
            "score": units / 100 + 0.001 * rng.normal(size=num),
            "units": units,
            "noise": rng.uniform(size=num),
            "word": words,
            "fixed": 1,
            "epochs": 5,
            "epochs_planned": 5,
        }
    )


def test_importance_finds_the_hyperparameters_that_determine_the_score() -> None:
    found = measure_importance(trials_frame(60))
    assert found is not None
    assert found.names == ("units", "noise", "word")
    assert found.means[0] > 1
    assert max(found.means[1:]) < 0.05
    assert found.warning == ""


def test_importance_warns_of_few_trials_and_of_a_forest_that_cannot_predict() -> None:
    few = measure_importance(trials_frame(19))
    assert few is not None
    assert few.warning == "only 19 trials, fewer than 20: a hint at best"
    blind = trials_frame(30)
    blind["score"] = np.random.default_rng(1).permutation(blind["score"].to_numpy())
    nothing = measure_importance(blind.drop(columns="word").assign(units=blind["noise"] > 0.5))
    assert nothing is not None
    assert nothing.warning == "the forest cannot predict unseen trials"


def test_importance_needs_enough_trials_and_differences() -> None:
    assert measure_importance(trials_frame(3)) is None
    assert measure_importance(trials_frame(8).assign(score=0.5)) is None
    same = trials_frame(8)[["trial", "run", "score", "fixed", "epochs", "epochs_planned"]]
    assert measure_importance(same) is None
    doubled = pd.concat([trials_frame(3)] * 4, ignore_index=True)
    assert measure_importance(doubled) is None


def test_report_of_any_search_has_no_settings_of_the_detector(ledger: Ledger) -> None:
    for number in range(12):
        add(ledger, 0.5 - number / 100, secs=1, units=number)
    add(ledger, None, reason="NaN", units=99)
    publish_report(ledger, template())
    folder = ledger.parent.folder / "report"
    written = {path.name for path in folder.iterdir()}
    assert written == {"leaderboard.csv", "history.png", "importance.png", "cost.png", "summary.md"}
    summary = (folder / "summary.md").read_text()
    assert summary.startswith("| rank |")
    assert "13 trials, 1 failed; 12 s of training, 1 failed ones not counted" in summary
    assert "| 12 | 0 (defaults) | 0.5000 |" in summary, "trial 0 is shown although it is not among ten"
    assert len(re.findall(r"^\| \d+ \|", summary, flags=re.M)) == 11
    assert "only 12 trials" in summary
    assert "best.toml" not in summary


def template(kind: type[keras_tuner.Oracle] = oracles.RandomSearchOracle) -> keras_tuner.Oracle:
    space = keras_tuner.HyperParameters()
    space.Int("units", 1, 99)
    space.Fixed("depth", 3)
    space.Float("rate (log)", 1e-4, 1e-1, sampling="log")
    if space.Choice("activation", ["relu", "leaky"], default="leaky") == "leaky":
        with space.conditional_scope("activation", ["leaky"]):
            space.Float("slope", 0.1, 0.3)
    return kind(objective="val_loss", hyperparameters=space)


def columns_and_axes(ledger: Ledger) -> tuple[list[str], list[str]]:
    """Return the hyperparameters in the saved table and in its parallel coordinates."""
    parent = ledger.parent
    tags = parent.store.client.get_experiment(parent.run.info.experiment_id).tags
    state = read_views(tags)["Leaderboard: by hand"]["state"]
    columns = [column.removeprefix("params.").strip("`") for column in state["selectedColumns"][1:-1]]
    return columns, state["compareRunCharts"][0]["selectedParams"]


def test_saved_views_have_the_searched_hyperparameters_and_after_the_search_the_most_important_first(
    ledger: Ledger,
) -> None:
    save_search_views(ledger, template())
    assert columns_and_axes(ledger) == (
        ["units", "rate _log_", "activation", "slope"],
        ["units", "rate _log_", "activation"],
    )
    rng = np.random.default_rng(0)
    for _ in range(25):
        units, rate = int(rng.integers(1, 99)), float(rng.uniform(1e-4, 1e-1))
        values: dict[str, Any] = {"units": units, "depth": 3, "rate (log)": rate, "activation": "relu"}
        add(ledger, 10 * rate + units / 1000, **values)
    publish_report(ledger, template())
    columns, axes = columns_and_axes(ledger)
    assert columns == ["rate _log_", "units", "activation", "slope"]
    assert axes == ["rate _log_", "units", "activation"]


def test_saved_views_of_hyperband_have_the_epochs(ledger: Ledger) -> None:
    save_search_views(ledger, template(oracles.HyperbandOracle))
    assert columns_and_axes(ledger)[0] == ["units", "rate _log_", "activation", "slope", "epochs"]


def test_report_before_any_trial_has_a_score(ledger: Ledger) -> None:
    add(ledger, None, reason="NaN", units=99)
    publish_report(ledger, template())
    folder = ledger.parent.folder / "report"
    assert not (folder / "importance.png").exists()
    assert "1 trials, 1 failed" in (folder / "summary.md").read_text()


@pytest.fixture(scope="module")
def tiny() -> TinyStore:
    return tiny_store()


@pytest.fixture
def published(tiny: TinyStore, tmp_path: Path) -> Path:
    """The artifacts of the tiny search's parent; the store is shared and only read."""
    store = open_store(tiny.uri, tiny.project, "images")
    return Path(store.client.download_artifacts(tiny.search_run_id, "", str(tmp_path)))


def test_published_report_is_on_the_parent(tiny: TinyStore, published: Path) -> None:
    table = pd.read_csv(published / "leaderboard.csv")
    assert sorted(table["trial"]) == [0, 1, 2]
    assert table["score"].iloc[0] == tiny.best_score
    assert table["train_secs"].gt(0).all()
    assert Image.open(published / "history.png").size == (800, 450)
    note = find_run(open_store(tiny.uri, tiny.project, "images"), tiny.search_run_id).data.tags["mlflow.note.content"]
    assert note == (published / "summary.md").read_text()
    assert note.startswith(tiny.verdict)
    assert len(note) < 5000, "longer descriptions are cut"


def test_settings_of_the_winner_train_it_again(
    tiny: TinyStore, published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fakeface_lab.baseline import run_baseline

    settings = load_settings(BaselineSettings, ["--config", str(published / "best.toml")], "baseline")
    assert settings.hyperparameters == Hyperparameters(**tiny.best_values)
    assert (settings.split, settings.image_size, settings.seed) == ("sealed", 24, 0)
    assert Path(settings.data) == tiny.images
    (tmp_path / "other" / "experiments").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setenv("FAKEFACE_CACHE", str(tmp_path / "cache"))
    again = run_baseline(settings)
    store = open_store(None, tmp_path / "other", "images")
    assert find_run(store, again.run_id).data.metrics["val_loss"] == tiny.best_score


def test_best_settings_follow_recorded_values(tiny: TinyStore, published: Path) -> None:
    text = (published / "best.toml").read_text()
    for name, value in tiny.best_values.items():
        assert f"{name} = {json.dumps(value)}" in text
