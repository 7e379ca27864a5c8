"""Importance of hyperparameters: found where it is, and not where there is none or too little to tell."""

import numpy as np
import pandas as pd

from fakeface_lab.search.report.importance import Importance, measure_importance


def test_importance_counts_inactive_values_and_ignores_early_stops() -> None:
    table = trials_frame(40)
    table.loc[table["word"] == "a", "noise"] = None
    table["epochs"] = [3, 5] * 20
    found = importance_of(table)
    assert found is not None
    assert found.names == ("units", "noise", "word")
    table["epochs_planned"] = table["epochs"]
    promoted = importance_of(table)
    assert promoted is not None
    assert promoted.names[-1] == "epochs_planned"


def importance_of(table: pd.DataFrame) -> Importance | None:
    names = [name for name in ("units", "noise", "word") if name in table and table[name].astype(str).nunique() > 1]
    return measure_importance(table, names)


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
    found = importance_of(trials_frame(60))
    assert found is not None
    assert found.names == ("units", "noise", "word")
    assert found.means[0] > 1
    assert max(found.means[1:]) < 0.05
    assert found.warning == ""


def test_importance_warns_of_few_trials_and_of_a_forest_that_cannot_predict() -> None:
    few = importance_of(trials_frame(19))
    assert few is not None
    assert few.warning == "only 19 trials, fewer than 20: a hint at best"
    blind = trials_frame(30)
    blind["score"] = np.random.default_rng(1).permutation(blind["score"].to_numpy())
    nothing = importance_of(blind.drop(columns="word").assign(units=blind["noise"] > 0.5))
    assert nothing is not None
    assert nothing.warning == "the forest cannot predict unseen trials"


def test_importance_needs_enough_trials_and_differences() -> None:
    assert importance_of(trials_frame(3)) is None
    assert importance_of(trials_frame(8).assign(score=0.5)) is None
    same = trials_frame(8)[["trial", "run", "score", "fixed", "epochs", "epochs_planned"]]
    assert importance_of(same) is None
    doubled = pd.concat([trials_frame(3)] * 4, ignore_index=True)
    assert importance_of(doubled) is None
