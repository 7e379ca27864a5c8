"""Ledgers that contradict themselves or belong to another search are refused."""

import math
import sys
from dataclasses import replace
from typing import Any

import pytest

from fakeface_lab.config import Value
from fakeface_lab.detector.space import build_oracle
from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggest.suggestion import suggest
from fakeface_lab.settings import Algorithm
from tests.search.suggest.simulated_search import cut, first_rung, search, small_space, spec_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*")


@pytest.mark.parametrize("algorithm", ["random", "hyperband"])
def test_another_seed_is_refused(algorithm: Algorithm) -> None:
    table = cut(search(build_oracle(spec_of(algorithm))), 6)
    with pytest.raises(SearchError, match=r"recorded trial 1 belongs to another search: \w+ with seed \d+ suggests"):
        suggest(build_oracle(spec_of(algorithm, seed=4)), table)


@pytest.mark.parametrize("algorithm", ["random", "grid", "hyperband"])
def test_a_changed_value_is_refused(algorithm: Algorithm) -> None:
    table = search(build_oracle(spec_of(algorithm)))[:5]
    units = table[3].values["units"]
    table[3] = replace(table[3], values={**table[3].values, "units": 33})
    message = rf"trial 3 belongs to another search.*units={units} but the record has units=33; use the settings"
    with pytest.raises(SearchError, match=message):
        suggest(build_oracle(spec_of(algorithm)), table)


def test_hyperband_refuses_a_dropped_end_a_rounded_score_and_moved_ends() -> None:
    spec = spec_of("hyperband")
    table = search(build_oracle(spec))
    rung = first_rung(table)
    best, worst = (f(rung, key=lambda trial: trial.score or 0.0) for f in (min, max))
    forged = list(table)
    forged[best.sequence] = replace(best, score=worst.score)
    forged[worst.sequence] = replace(worst, score=best.score)
    with pytest.raises(SearchError, match=r"tuner/trial_id=\d+ but the record has .*tuner/trial_id=\d+"):
        suggest(build_oracle(spec), forged)
    unfinished = list(table)
    unfinished[rung[0].sequence] = replace(rung[0], ended_order=None, status="running", score=None)
    with pytest.raises(SearchError, match="belongs to another search"):
        suggest(build_oracle(spec), unfinished)


def test_more_trials_than_a_grid_has_are_refused() -> None:
    table = search(build_oracle(spec_of("grid")))
    extra = replace(table[-1], sequence=len(table), created_order=100, ended_order=101)
    with pytest.raises(SearchError, match=r"trial 12 belongs to another search: .* suggests no further trial"):
        suggest(build_oracle(spec_of("grid")), [*table, extra])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": 500}, "suggests Int.*but the record has 500"),
        ({"rate": 0.5}, "suggests Choice.*but the record has 0.5"),
        ({"rate": "fast"}, "but the record has fast"),
        ({"units": "many"}, "but the record has many"),
        ({"extra": 1}, "suggests the hyperparameters units, rate;"),
    ],
)
def test_bayesian_refuses_values_outside_its_space(changes: dict[str, Value], message: str) -> None:
    template = build_oracle(spec_of("bayesian", space=small_space()))
    table = search(build_oracle(spec_of("bayesian", space=small_space(), max_trials=3)))
    table[2] = replace(table[2], values={**table[2].values, **changes})
    with pytest.raises(SearchError, match=f"trial 2 belongs to another search.*{message}"):
        suggest(template, table)


def test_bayesian_refuses_another_trial_zero() -> None:
    template = build_oracle(spec_of("bayesian", space=small_space()))
    table = search(build_oracle(spec_of("bayesian", space=small_space(), max_trials=1)))
    with pytest.raises(SearchError, match=r"trial 0 belongs to another search.*suggests all defaults;"):
        suggest(template, [replace(table[0], values={"units": 32, "rate": 0.01})])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": 2}, r"sequences \[0, 2\] have gaps or repeats"),
        ({"created_order": 0}, "two events have the same number"),
        ({"ended_order": 1}, "recorded trial 1: ends at event 1, before its creation at event 2"),
        ({"ended_order": None}, "recorded trial 1: is finished, but its end is event None"),
        ({"score": None}, "recorded trial 1: is finished, but its score is None"),
        ({"status": "failed"}, "recorded trial 1: is failed, but its score is 0.5"),
        ({"score": math.nan}, "its score nan is not finite"),
        ({"score": -math.inf}, "its score -inf is not finite"),
        ({"score": sys.float_info.max}, "its score 1.797.*e.308 is not finite"),
    ],
)
@pytest.mark.parametrize("algorithm", ["random", "bayesian"])
def test_a_ledger_that_contradicts_itself_is_refused(
    algorithm: Algorithm, changes: dict[str, Any], message: str
) -> None:
    template = build_oracle(spec_of(algorithm))
    table = [replace(trial, score=0.5) for trial in search(build_oracle(spec_of(algorithm, max_trials=2)))]
    if changes.get("ended_order") == 1:
        table[0] = replace(table[0], ended_order=5)
    table[1] = replace(table[1], **changes)
    with pytest.raises(SearchError, match=message):
        suggest(template, table)
