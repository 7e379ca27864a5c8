"""Trials in a table: the best first, failures last, each second of training counted once."""

import pandas as pd
from rich.table import Table

from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.report.leaderboard import leaderboard, searched_names, trials_table
from fakeface_lab.search.suggest.suggestion import Suggestion
from fakeface_lab.tracking.lookup import children_of
from tests.search.report.recorded_trials import add


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
    ledger.stored(again).copy_results(first.run)
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


def test_of_many_trials_the_best_ones_and_trial_0_are_shown() -> None:
    def trials(num: int) -> pd.DataFrame:
        facts = {"run": "", "epochs": 1, "epochs_planned": 1, "kept_epoch": 1, "train_secs": 1.0, "num_params": 5}
        rows = [
            {"rank": number, "trial": num - number, "score": number / 1000, "units": number, **facts,
             "status": "failed" if number % 50 == 0 else "finished", "reason": "", "run_id": f"run{number}"}
            for number in range(1, num + 1)
        ]  # fmt: skip
        columns = ("rank", "trial", "run", "score", "units", "epochs", "epochs_planned", "kept_epoch", "train_secs",
                   "num_params", "status", "reason", "run_id")  # fmt: skip
        return pd.DataFrame(rows, columns=list(columns))

    table = trials_table(trials(1500), "defaults")
    assert [cells[0] for cells in _cells(table)] == [*map(str, range(1, 101)), "1500"]
    assert _cells(table)[-1][1] == "0 defaults"
    # Of 101 to 1,499 the multiples of 50.
    assert table.caption == "and 1,399 more, 27 of them failed: all are in MLflow's leaderboard"
    assert len(_cells(trials_table(trials(100), "defaults"))) == 100
    assert trials_table(trials(101), "defaults").caption is None


def _cells(table: Table) -> list[list[str]]:
    """Return the displayed cells of a table, row by row."""
    return [list(map(str, row)) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_cost_of_a_promoted_trial_whose_parent_failed_is_unknown(ledger: Ledger) -> None:
    add(ledger, None, reason="no memory", units=8)
    add(ledger, None, reason="its parent, trial 0, failed", units=8, bracket={"tuner/trial_id": "0"})
    assert table_of(ledger)["train_secs"].isna().all()
