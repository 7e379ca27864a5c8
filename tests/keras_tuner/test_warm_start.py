"""A search that is told the trials of an earlier one."""

from pathlib import Path
from typing import Any

import keras_tuner as kerastuners
import pytest
from mlflow.tracking import MlflowClient

from fakeface_lab import Search, keras_tuner
from fakeface_lab.errors import ConfigError, NotFoundError, SearchError
from fakeface_lab.keras_tuner.warm_start import prior_in
from fakeface_lab.search.suggest.suggestion import TrialRecord
from fakeface_lab.search.suggest.template import PriorTrial
from tests.keras_tuner.conftest import RunsOf


def space() -> kerastuners.HyperParameters:
    hp = kerastuners.HyperParameters()
    hp.Float("x", 0.0, 1.0, default=0.5)
    hp.Int("n", 1, 8, default=4)
    return hp


class Valley(keras_tuner.BayesianOptimization):
    """Minimizes a function without a model."""

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
        values = trial.hyperparameters.values
        return float((values["x"] - 0.3) ** 2 + (values["n"] - 6) ** 2 / 50)


def valley(name: str, max_trials: int, **given: Any) -> Valley:
    return Valley(
        objective=given.pop("objective", kerastuners.Objective("value", "min")),
        max_trials=max_trials, hyperparameters=given.pop("hyperparameters", space()), seed=1, project_name=name,
        num_initial_points=5, **given,
    )  # fmt: skip


def tried(name: str) -> list[dict[str, Any]]:
    return [dict(trial.record.values) for trial in Search(name).trials]


@pytest.mark.slow
def test_a_warm_start_is_kept_with_the_search_which_resumes_the_same_when_the_older_one_has_grown(
    project: Path, runs_of: RunsOf, client: MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    valley("older", 6).search()
    cold = valley("cold", 4)
    cold.search()
    for name in ("whole", "cut"):
        tuner = valley(name, 4 if name == "whole" else 2)
        tuner.warm_start("older")
        tuner.search()
    printed = capsys.readouterr().out
    assert "6 finished trials of older" in printed
    assert printed.count("all of them are drawn at random") == 1, "in the cold search"
    assert tried("cut") == tried("whole")[:2]
    assert tried("whole")[0] == {"x": 0.5, "n": 4}, "the defaults, as a reference"
    assert tried("whole")[1] != tried("cold")[1], "the cold search draws at random"
    assert not [values for values in tried("whole")[1:] if values in tried("older")]
    valley("older", 8).search()
    resumed = valley("cut", 4)
    resumed.warm_start(Search("older"))
    resumed.search()
    assert tried("cut") == tried("whole")
    assert len(resumed.oracle.trials) == 4


def test_a_search_without_the_warm_start_that_it_began_with_is_refused(project: Path) -> None:
    valley("older", 2).search()
    tuner = valley("warm", 2)
    tuner.warm_start("older")
    tuner.search()
    with pytest.raises(SearchError, match=r"warm_start: .* recorded, absent given"):
        valley("warm", 3).search()


def test_what_tells_nothing_is_refused(project: Path) -> None:
    valley("older", 2).search()
    elsewhere = kerastuners.HyperParameters()
    elsewhere.Float("y", 0.0, 1.0)
    given: list[tuple[dict[str, Any], str]] = [
        (
            {"objective": kerastuners.Objective("value", "max")},
            r"has the objective value \(min\), this one value \(max\)",
        ),
        ({"hyperparameters": elsewhere}, "none of the 2 finished trials of search 'older' lies in this search's space"),
    ]
    for changes, message in given:
        tuner = valley("other", 2, **changes)
        tuner.warm_start("older")
        with pytest.raises(ConfigError, match=message):
            tuner.search()

    class Grid(keras_tuner.GridSearch):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> float:
            return 0.0

    grid = Grid(objective=kerastuners.Objective("value", "min"), hyperparameters=space(), project_name="grid")
    grid.warm_start("older")
    with pytest.raises(ConfigError, match="a grid tries every combination, whatever search 'older' has found"):
        grid.search()
    with pytest.raises(NotFoundError, match="nowhere"):
        grid.warm_start("nowhere")


def record(values: dict[str, Any], score: float | None, epochs: int | None = None) -> TrialRecord:
    bracket = {} if epochs is None else {"tuner/epochs": epochs}
    status: Any = "failed" if score is None else "finished"
    return TrialRecord(0, values, bracket, 0, 1, status, score)


def test_what_a_space_takes_from_another() -> None:
    hp = space()
    trials = [
        record({"x": 0.1, "n": 2}, 0.5),
        record({"x": 0.1, "n": 2}, 0.5),  # the same configuration again
        record({"x": 0.2, "n": 9}, 0.4),  # outside
        record({"x": 0.3, "n": 3, "older": "only"}, 0.3),
        record({"x": 0.4}, 0.2),  # n joined later
        record({"older": "only"}, 0.1),  # nothing in common
        record({"x": 0.6, "n": 1}, None),
        record({"x": 0.7, "n": 1}, float("inf")),
    ]
    expected = [({"x": 0.1, "n": 2}, 0.5), ({"x": 0.3, "n": 3}, 0.3), ({"x": 0.4, "n": 4}, 0.2)]
    assert prior_in(hp, trials) == [PriorTrial(values, score) for values, score in expected]


def test_of_a_hyperband_search_only_the_full_budget_is_comparable() -> None:
    trials = [
        record({"x": 0.1, "n": 1}, 0.9, 2),
        record({"x": 0.2, "n": 1}, 0.5, 6),
        record({"x": 0.3, "n": 1}, 0.4, 6),
    ]
    assert [trial.score for trial in prior_in(space(), trials)] == [0.5, 0.4]


def test_a_hyperparameter_counts_only_where_its_condition_holds() -> None:
    hp = kerastuners.HyperParameters()
    hp.Choice("kind", ["a", "b"])
    with hp.conditional_scope("kind", ["b"]):
        hp.Int("depth", 1, 3)
    found = prior_in(hp, [record({"kind": "a", "depth": 7}, 0.1), record({"kind": "b", "depth": 7}, 0.2)])
    assert found == [PriorTrial({"kind": "a"}, 0.1)]
