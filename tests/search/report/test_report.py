"""The report of a search says what the store holds, and its settings train the winner again."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import pandas as pd
import pytest
from keras_tuner import oracles
from PIL import Image

from fakeface_lab.config import load_settings
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.report.report import publish_report, save_search_views
from fakeface_lab.settings import BaselineSettings, Hyperparameters
from fakeface_lab.tracking.lookup import find_run
from fakeface_lab.tracking.store import open_store
from tests.made_once import empty_store
from tests.saved_views import read_views
from tests.search.report.recorded_trials import add
from tests.tiny_store import TinyStore, tiny_store


def test_report_of_any_search_has_no_settings_of_the_detector(ledger: Ledger) -> None:
    for number in range(12):
        add(ledger, 0.5 - number / 100, secs=1, units=number)
    add(ledger, None, reason="NaN", units=99)
    publish_report(ledger, template(), {})
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
    publish_report(ledger, template(), {})
    columns, axes = columns_and_axes(ledger)
    assert columns == ["rate _log_", "units", "activation", "slope"]
    assert axes == ["rate _log_", "units", "activation"]


def test_saved_views_of_hyperband_have_the_epochs(ledger: Ledger) -> None:
    save_search_views(ledger, template(oracles.HyperbandOracle))
    assert columns_and_axes(ledger)[0] == ["units", "rate _log_", "activation", "slope", "epochs"]


def test_report_before_any_trial_has_a_score(ledger: Ledger) -> None:
    add(ledger, None, reason="NaN", units=99)
    publish_report(ledger, template(), {})
    folder = ledger.parent.folder / "report"
    assert not (folder / "importance.png").exists()
    assert "1 trials, 1 failed" in (folder / "summary.md").read_text()


def test_metrics_of_a_search_that_goes_on_are_those_of_its_last_report(ledger: Ledger) -> None:
    parent = ledger.parent
    for num_trials, score in ((1, 0.5), (1, 0.5), (2, 0.4)):
        if len(ledger.trials) < num_trials:
            add(ledger, score, units=num_trials)
        publish_report(ledger, template(), {"best_score": score})
    parent.writer.drain()
    assert parent.read().data.metrics["best_score"] == 0.4
    points = parent.store.client.get_metric_history(parent.run_id, "best_score")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.4)]


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


@pytest.mark.usefixtures("eagerly")  # as the search
def test_settings_of_the_winner_train_it_again(
    tiny: TinyStore, published: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fakeface_lab.baseline import run_baseline

    settings = load_settings(BaselineSettings, ["--config", str(published / "best.toml")], "baseline")
    assert settings.hyperparameters == Hyperparameters(**tiny.best_values)
    assert (settings.split, settings.image_size, settings.seed) == ("sealed", 24, 0)
    assert Path(settings.data) == tiny.images
    (tmp_path / "other" / "experiments").mkdir(parents=True)
    shutil.copy(empty_store(), tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setenv("FAKEFACE_CACHE", str(tmp_path / "cache"))
    again = run_baseline(settings)
    store = open_store(None, tmp_path / "other", "images")
    assert find_run(store, again.run_id).data.metrics["val_loss"] == tiny.best_score


def test_best_settings_follow_recorded_values(tiny: TinyStore, published: Path) -> None:
    text = (published / "best.toml").read_text()
    for name, value in tiny.best_values.items():
        assert f"{name} = {json.dumps(value)}" in text
