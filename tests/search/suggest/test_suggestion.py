"""A search cut at every event and continued is the same; defaults come first, nothing twice, nothing is missing."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import keras_tuner
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_tuner.src.engine.oracle import LOCKS, THREADS

from fakeface_lab.config import Value
from fakeface_lab.detector.space import build_oracle
from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggest.oracles import (
    num_configurations,
    num_grid_combinations,
    num_hyperband_trials,
    num_trials_at_most,
)
from fakeface_lab.search.suggest.suggestion import Exhausted, Suggestion, TrialRecord, Wait, failed_parent, suggest
from fakeface_lab.settings import Algorithm
from fakeface_lab.training.objective import Objective
from tests.search.suggest.simulated_search import (
    ALGORITHMS,
    Table,
    configurations,
    cut,
    ended,
    first_rung,
    fraction,
    newest,
    num_events,
    score,
    score_or_fail,
    search,
    shuffled,
    small_space,
    spec_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_search_cut_at_every_event_gives_the_same_table(algorithm: Algorithm, num_workers: int) -> None:
    template = build_oracle(spec_of(algorithm))
    whole = search(template, score_or_fail, num_workers=num_workers, pick=shuffled)

    assert {trial.status for trial in whole} == {"finished", "failed"}
    for num_kept in range(num_events(whole) + 1):
        again = build_oracle(spec_of(algorithm))
        continued = search(again, score_or_fail, cut(whole, num_kept), num_workers, shuffled)
        assert continued == whole, f"cut after {num_kept} events"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("num_workers", [1, 3, 5])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_larger_search_cut_at_every_event_gives_the_same_table(
    algorithm: Algorithm, num_workers: int, seed: int
) -> None:
    larger: dict[str, dict[str, Any]] = {
        "random": {"max_trials": 40},
        "grid": {"space": wide_grid()},
        "bayesian": {"max_trials": 8},
        "hyperband": {"max_epochs": 9, "factor": 3},
    }
    spec = spec_of(algorithm, seed=seed, objective=Objective("val_loss", "max"), **larger[algorithm])
    whole = search(build_oracle(spec), score_or_fail, num_workers=num_workers, pick=shuffled)
    for num_kept in range(num_events(whole) + 1):
        continued = search(build_oracle(spec), score_or_fail, cut(whole, num_kept), num_workers, shuffled)
        assert continued == whole, f"cut after {num_kept} events"


def wide_grid() -> keras_tuner.HyperParameters:
    space = small_space()
    space.Boolean("flip", default=True)
    return space


@pytest.mark.parametrize("algorithm", ["random", "grid", "hyperband"])
def test_recorded_trials_remain_when_trials_end_in_another_order(algorithm: Algorithm) -> None:
    template = build_oracle(spec_of(algorithm))
    whole = search(template, score_or_fail, num_workers=3, pick=shuffled)
    for num_kept in range(num_events(whole) + 1):
        begun = cut(whole, num_kept)
        continued = search(template, score_or_fail, begun, num_workers=3, pick=newest)
        for before, after in zip(begun, continued, strict=False):
            assert (after.values, after.bracket_values) == (before.values, before.bracket_values)
            if before.status != "running":
                assert after == before


@st.composite
def spaces(draw: st.DrawFn) -> keras_tuner.HyperParameters:
    """Up to 48 configurations: every type, any defaults, one conditional part."""
    space = keras_tuner.HyperParameters()
    space.Int("units", 8, 24, step=8, default=draw(st.sampled_from([8, 16, 24])))
    kinds = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    space.Choice("kind", kinds, default=draw(st.sampled_from(kinds)))
    with space.conditional_scope("kind", [kinds[0]]):
        space.Boolean("flip", default=draw(st.booleans()))
    if draw(st.booleans()):
        space.Float("rate", 1e-3, 1e-2, step=10, sampling="log")
    space.Fixed("image_size", 300)
    return space


@settings(max_examples=15, deadline=None)
@given(
    space=spaces(),
    algorithm=st.sampled_from(["random", "grid", "hyperband"]),
    direction=st.sampled_from(["min", "max"]),
    seed=st.integers(0, 2**40),
    num_workers=st.integers(1, 4),
    failing_fraction=st.sampled_from([0.0, 0.3, 0.8]),
    kept_fraction=st.floats(0, 1),
)
def test_any_search_resumes_repeats_nothing_and_has_the_predicted_size(
    space: keras_tuner.HyperParameters,
    algorithm: Algorithm,
    direction: Literal["min", "max"],
    seed: int,
    num_workers: int,
    failing_fraction: float,
    kept_fraction: float,
) -> None:
    def some_fail(trial: TrialRecord) -> float | None:
        return None if fraction("fails", trial.sequence) < failing_fraction else score(trial)

    spec = spec_of(algorithm, space=space, objective=Objective("val_loss", direction), seed=seed, max_trials=None)
    whole = search(build_oracle(spec), some_fail, num_workers=num_workers, pick=shuffled)
    begun = cut(whole, round(kept_fraction * num_events(whole)))
    assert search(build_oracle(spec), some_fail, begun, num_workers, shuffled) == whole
    if algorithm == "hyperband":
        whole = [trial for trial in whole if "tuner/trial_id" not in trial.bracket_values]
    else:
        assert len(whole) == num_trials_at_most(build_oracle(spec)) == num_grid_combinations(space)
    assert len(set(configurations(whole))) == len(whole)


@pytest.mark.slow
def test_suggestions_are_the_same_in_another_process() -> None:
    """Covers what differs between processes: hash seeds, orders of sets, module state."""
    program = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\n"
        "from tests.search.suggest import test_suggestion as t\n"
        "print(json.dumps(t.every_table_as_json()))"
    )
    project = str(Path(__file__).parents[3])
    run = subprocess.run(
        [sys.executable, "-c", program, project],
        env=os.environ | {"PYTHONHASHSEED": "11"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout.splitlines()[-1]) == every_table_as_json()


def every_table_as_json() -> dict[str, Any]:
    tables = {name: search(build_oracle(spec_of(name)), score_or_fail) for name in ALGORITHMS}
    return {
        name: [[dict(trial.values), dict(trial.bracket_values)] for trial in table] for name, table in tables.items()
    }


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_suggest_changes_none_of_its_arguments(algorithm: Algorithm) -> None:
    template = build_oracle(spec_of(algorithm))
    before = template.get_state()
    ledger = cut(search(template), 7)
    copy = list(ledger)
    assert suggest(template, ledger) == suggest(template, ledger[::-1])
    assert ledger == copy
    assert template.get_state() == before
    assert not template.trials


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_suggest_writes_prints_and_keeps_alive_nothing(
    algorithm: Algorithm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    num_locks = len(LOCKS), len(THREADS)
    template = build_oracle(spec_of(algorithm))
    ledger = cut(search(template), 8)
    threads = [threading.Thread(target=suggest, args=(template, ledger)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert (len(LOCKS), len(THREADS)) == num_locks
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_trial_zero_has_all_defaults(algorithm: Algorithm) -> None:
    spec = spec_of(algorithm)
    first = suggest(build_oracle(spec), [])
    assert isinstance(first, Suggestion)
    assert first.values == {hp.name: hp.default for hp in spec.space.space}
    full_budget = {"tuner/epochs": 4, "tuner/initial_epoch": 0, "tuner/bracket": -1, "tuner/round": 0}
    assert first.bracket_values == (full_budget if algorithm == "hyperband" else {})


@pytest.mark.parametrize("num_workers", [1, 3])
def test_grid_is_complete(num_workers: int) -> None:
    spec = spec_of("grid")
    table = search(build_oracle(spec), score_or_fail, num_workers=num_workers, pick=newest)
    expected = {(("rate", rate), ("units", units)) for rate in (0.01, 0.001, 0.0001) for units in (32, 64, 96, 128)}
    assert len(table) == len(expected) == num_grid_combinations(spec.space)
    assert set(configurations(table)) == expected


@pytest.mark.parametrize("algorithm", ["random", "bayesian"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_small_space_is_tried_completely_without_repeats(algorithm: Algorithm, seed: int) -> None:
    spec = spec_of(algorithm, space=small_space(), seed=seed, max_trials=50)
    table = search(build_oracle(spec), score_or_fail)
    assert len(set(configurations(table))) == len(table) == num_configurations(spec.space) == 12
    assert suggest(build_oracle(spec), table) == Exhausted()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_trial_limit_holds_and_can_be_raised(algorithm: Algorithm) -> None:
    table = search(build_oracle(spec_of(algorithm, max_trials=4)))
    assert len(table) == 4
    assert suggest(build_oracle(spec_of(algorithm, max_trials=4)), table) == Exhausted()
    assert isinstance(suggest(build_oracle(spec_of(algorithm, max_trials=3)), table), Exhausted)
    assert search(build_oracle(spec_of(algorithm, max_trials=10)), begun=table)[:4] == table


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_search_with_only_failures_continues(algorithm: Algorithm) -> None:
    table = search(build_oracle(spec_of(algorithm, max_trials=8)), lambda trial: None)
    assert [trial.status for trial in table] == ["failed"] * 8


@pytest.mark.parametrize("algorithm", ["random", "grid"])
def test_any_number_of_trials_can_run_at_the_same_time(algorithm: Algorithm) -> None:
    """KerasTuner's own grid continues only after a trial has ended."""
    table = search(build_oracle(spec_of(algorithm)), num_workers=100)
    assert all(trial.created_order == trial.sequence for trial in table)
    assert len(table) == num_trials_at_most(build_oracle(spec_of(algorithm)))


@pytest.mark.parametrize("algorithm", ["random", "bayesian", "hyperband"])
def test_seed_zero_is_an_ordinary_seed(algorithm: Algorithm) -> None:
    tables = {seed: search(build_oracle(spec_of(algorithm, seed=seed, max_trials=5))) for seed in (0, 1)}
    assert search(build_oracle(spec_of(algorithm, seed=0, max_trials=5))) == tables[0]
    shared = set(configurations(tables[0])) & set(configurations(tables[1]))
    assert shared == {configurations(tables[0])[0]}, "only trial 0 is common to both"


def test_each_bayesian_question_has_its_own_seed() -> None:
    template = build_oracle(spec_of("bayesian"))
    first, second = search(build_oracle(spec_of("bayesian", max_trials=2)))
    forged = replace(second, values={"dropout": 0.125, "units": 96})
    answer = suggest(template, [first, forged])
    assert isinstance(answer, Suggestion)
    assert answer.values["dropout"] != second.values["dropout"]


def test_bayesian_avoids_failures() -> None:
    """The search leaves the failing half of a range; an unreported failure would attract it again."""
    space = keras_tuner.HyperParameters()
    space.Float("x", 0.0, 1.0, default=0.5)
    template = build_oracle(spec_of("bayesian", space=space, max_trials=14, num_initial_points=6))
    table = search(template, lambda trial: None if float(trial.values["x"]) > 0.6 else 1 - float(trial.values["x"]))
    assert sum(trial.status == "failed" for trial in table[6:]) <= 3


@pytest.mark.parametrize("direction", ["min", "max"])
def test_bayesian_moves_towards_the_better_scores(direction: Literal["min", "max"]) -> None:
    space = keras_tuner.HyperParameters()
    space.Float("x", 0.0, 1.0, default=0.5)
    spec = spec_of(
        "bayesian", space=space, max_trials=10, num_initial_points=4, objective=Objective("val_loss", direction)
    )
    sign = 1 if direction == "min" else -1
    table = search(build_oracle(spec), lambda trial: sign * (float(trial.values["x"]) - 0.83) ** 2)
    best = min(table[4:], key=lambda trial: abs(float(trial.values["x"]) - 0.83))
    assert abs(float(best.values["x"]) - 0.83) < 0.05


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


@pytest.mark.parametrize("direction", ["min", "max"])
def test_a_rung_of_nine_with_three_failures_still_promotes(direction: Literal["min", "max"]) -> None:
    spec = spec_of("hyperband", max_epochs=9, factor=3, objective=Objective("val_loss", direction))

    def three_fail(trial: TrialRecord) -> float | None:
        return None if trial.sequence in (2, 5, 8) else score(trial)

    table = search(build_oracle(spec), three_fail)
    rung = first_rung(table)
    assert len(rung) == 9
    assert sum(trial.status == "failed" for trial in rung) == 3
    ranked = sorted(
        (trial for trial in rung if trial.score is not None),
        key=lambda trial: trial.score or 0.0,
        reverse=direction == "max",
    )
    promoted = [t.bracket_values["tuner/trial_id"] for t in table[10:] if t.bracket_values["tuner/round"] == 1]
    assert promoted[:3] == [trial.sequence for trial in ranked[:3]]
    assert all(failed_parent(trial.bracket_values, table) is None for trial in table)


def test_hyperband_with_failures_only_ends_and_every_promotion_has_a_failed_parent() -> None:
    template = build_oracle(spec_of("hyperband"))
    table = search(template, lambda trial: None)
    assert len(table) == num_hyperband_trials(template)
    promoted = [trial for trial in table if trial.bracket_values["tuner/round"] != 0]
    assert promoted
    for trial in promoted:
        before = table[: trial.sequence]
        answer = suggest(template, before)
        assert isinstance(answer, Suggestion)
        assert failed_parent(answer.bracket_values, before) == trial.bracket_values["tuner/trial_id"]


def test_hyperband_waits_for_the_round_before() -> None:
    template = build_oracle(spec_of("hyperband", max_epochs=2))
    table: Table = []
    while isinstance(answer := suggest(template, table), Suggestion):
        table.append(TrialRecord(len(table), answer.values, answer.bracket_values, len(table), None, "running", None))
    assert answer == Wait()
    for trial in list(table):
        table[trial.sequence] = ended(trial, num_events(table), score(trial))
    assert isinstance(suggest(template, table), Suggestion)
