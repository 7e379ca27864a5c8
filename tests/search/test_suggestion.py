"""A simulated search, cut at every event and continued, against the whole one and KerasTuner alone."""

import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import keras_tuner
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_tuner import oracles as kt_oracles
from keras_tuner.src.engine.oracle import LOCKS, THREADS

from fakeface_lab.errors import SearchError
from fakeface_lab.search.counts import (
    Value,
    num_configurations,
    num_grid_combinations,
    num_hyperband_trials,
    num_trials_at_most,
)
from fakeface_lab.search.oracles import Algorithm, OracleSpec, build_oracle, far_apart_seed, reseeded
from fakeface_lab.search.suggestion import (
    Exhausted,
    Suggestion,
    TrialRecord,
    Wait,
    failed_parent,
    suggest,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*")

Table = list[TrialRecord]
Score = Callable[[TrialRecord], float | None]
Pick = Callable[[Table], TrialRecord]
ALGORITHMS: tuple[Algorithm, ...] = ("random", "grid", "bayesian", "hyperband")


def small_space() -> keras_tuner.HyperParameters:
    """12 configurations; the defaults are first in none of the lists."""
    space = keras_tuner.HyperParameters()
    space.Int("units", 32, 128, step=32, default=64)
    space.Choice("rate", [0.01, 0.001, 0.0001], default=0.001)
    return space


def wide_space() -> keras_tuner.HyperParameters:
    space = small_space()
    space.Float("dropout", 0.0, 0.5, default=0.25)
    space.Boolean("flip", default=True)
    space.Fixed("image_size", 300)
    return space


def plane() -> keras_tuner.HyperParameters:
    """Two dimensions only: the Gaussian process is what takes the time in these tests."""
    space = keras_tuner.HyperParameters()
    space.Float("dropout", 0.0, 0.5, default=0.25)
    space.Int("units", 32, 128, step=32, default=64)
    return space


def spec_of(algorithm: Algorithm, **changes: Any) -> OracleSpec:
    fields: dict[str, Any] = {"seed": 3}
    match algorithm:
        case "random":
            fields |= {"space": wide_space(), "max_trials": 9}
        case "grid":
            fields |= {"space": small_space()}
        case "bayesian":
            fields |= {"space": plane(), "max_trials": 6, "num_initial_points": 3}
        case "hyperband":
            fields |= {"space": wide_space(), "max_epochs": 4, "factor": 2}
    return OracleSpec(algorithm=algorithm, **(fields | changes))


def fraction(*parts: object) -> float:
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=dict).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def score(trial: TrialRecord) -> float:
    """A value in [0, 1) that depends on the configuration and its epochs only."""
    return fraction(trial.values, trial.bracket_values.get("tuner/epochs", 0))


def score_or_fail(trial: TrialRecord) -> float | None:
    value = score(trial)
    return None if value < 0.3 else value


def oldest(running: Table) -> TrialRecord:
    return running[0]


def newest(running: Table) -> TrialRecord:
    return running[-1]


def shuffled(running: Table) -> TrialRecord:
    """End trials in an order that is not the one of creation, yet the same in every simulation."""
    return min(running, key=lambda trial: fraction("order", trial.sequence))


def num_events(table: Table) -> int:
    return len(table) + sum(trial.ended_order is not None for trial in table)


def cut(table: Table, num_kept: int) -> Table:
    """Return the ledger as it was after its first events."""
    kept = [trial for trial in table if trial.created_order < num_kept]
    return [
        trial
        if trial.ended_order is not None and trial.ended_order < num_kept
        else replace(trial, ended_order=None, status="running", score=None)
        for trial in kept
    ]


def ended(trial: TrialRecord, order: int, value: float | None) -> TrialRecord:
    status: Literal["finished", "failed"] = "failed" if value is None else "finished"
    return replace(trial, ended_order=order, status=status, score=value)


def search(
    template: keras_tuner.Oracle,
    score_of: Score = score,
    begun: Sequence[TrialRecord] = (),
    num_workers: int = 1,
    pick: Pick = oldest,
) -> Table:
    """Run a search to its end, from the beginning or from a ledger that was cut."""
    table = list(begun)
    while True:
        answer: Suggestion | Wait | Exhausted | None = None
        while sum(trial.status == "running" for trial in table) < num_workers:
            answer = suggest(template, table)
            if not isinstance(answer, Suggestion):
                break
            table.append(
                TrialRecord(len(table), answer.values, answer.bracket_values, num_events(table), None, "running", None)
            )
        running = [trial for trial in table if trial.status == "running"]
        if not running:
            assert isinstance(answer, Exhausted)
            return table
        trial = pick(running)
        is_doomed = failed_parent(trial.bracket_values, table) is not None
        table[trial.sequence] = ended(trial, num_events(table), None if is_doomed else score_of(trial))


def kerastuner_alone(oracle: keras_tuner.Oracle, folder: Path, num_trials: int | None = None) -> list[dict[str, Any]]:
    """Run one long-lived oracle in its own way, and return the values of its trials."""
    oracle._set_project_dir(str(folder), "alone")
    oracle.verbose = 0
    table: list[dict[str, Any]] = []
    while num_trials is None or len(table) < num_trials:
        trial = oracle.create_trial("tuner0")
        if trial.status == "STOPPED":
            break
        values = dict(trial.hyperparameters.values)
        own = {name: values.pop(name) for name in list(values) if name.startswith("tuner/")}
        record = TrialRecord(len(table), values, own, 0, None, "running", None)
        oracle.update_trial(trial.trial_id, {oracle.objective.name: score(record)})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
        table.append(values | own)
    return table


def configurations(table: Table) -> list[tuple[tuple[str, Value], ...]]:
    return [tuple(sorted(trial.values.items())) for trial in table]


# --- continued equals uninterrupted --------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("num_workers", [1, 3])
def test_search_cut_at_every_event_gives_the_same_table(algorithm: Algorithm, num_workers: int) -> None:
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
def test_larger_search_cut_at_every_event_gives_the_same_table(
    algorithm: Algorithm, num_workers: int, seed: int
) -> None:
    larger: dict[str, dict[str, Any]] = {
        "random": {"max_trials": 40},
        "grid": {"space": wide_grid()},
        "bayesian": {"max_trials": 8},
        "hyperband": {"max_epochs": 9, "factor": 3},
    }
    spec = spec_of(algorithm, seed=seed, direction="max", **larger[algorithm])
    whole = search(build_oracle(spec), score_or_fail, num_workers=num_workers, pick=shuffled)
    for num_kept in range(num_events(whole) + 1):
        continued = search(build_oracle(spec), score_or_fail, cut(whole, num_kept), num_workers, shuffled)
        assert continued == whole, f"cut after {num_kept} events"


def wide_grid() -> keras_tuner.HyperParameters:
    space = small_space()
    space.Boolean("flip", default=True)
    return space


@pytest.mark.parametrize("algorithm", ["random", "grid", "hyperband"])
def test_recorded_trials_stay_when_trials_end_in_another_order(algorithm: Algorithm) -> None:
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
    """Up to 48 configurations: every type, defaults anywhere, one part that depends on another."""
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
def test_any_search_is_continued_repeats_nothing_and_has_the_announced_size(
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

    spec = spec_of(algorithm, space=space, direction=direction, seed=seed, max_trials=None)
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
    """Guards against what a process draws anew: hash seeds, orders of sets, module state."""
    program = (
        "import sys, json; sys.path[:0] = sys.argv[1:3]\n"
        "import test_suggestion as t\n"
        "print(json.dumps(t.every_table_as_json()))"
    )
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    run = subprocess.run(
        [sys.executable, "-c", program, *folders],
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
def test_nothing_is_written_printed_or_kept_alive(
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


# --- against KerasTuner's own long-lived oracles -----------------------------------------------------


def test_random_equals_a_long_lived_oracle_after_the_defaults(tmp_path: Path) -> None:
    template = build_oracle(spec_of("random", max_trials=12))
    alone = kerastuner_alone(build_oracle(spec_of("random", max_trials=None)), tmp_path, 11)
    assert [dict(trial.values) for trial in search(template)[1:]] == alone


@pytest.mark.parametrize("num_workers", [1, 3])
def test_grid_equals_a_long_lived_oracle(tmp_path: Path, num_workers: int) -> None:
    alone = kerastuner_alone(build_oracle(spec_of("grid")), tmp_path)
    table = search(build_oracle(spec_of("grid")), score_or_fail, num_workers=num_workers)
    assert sorted(configurations(table)) == sorted(tuple(sorted(values.items())) for values in alone)
    assert [dict(trial.values) for trial in table] == alone


def test_hyperband_equals_a_long_lived_oracle_after_the_defaults(tmp_path: Path) -> None:
    alone = kerastuner_alone(build_oracle(spec_of("hyperband")), tmp_path)
    for values in alone:
        if "tuner/trial_id" in values:
            values["tuner/trial_id"] = int(values["tuner/trial_id"]) + 1  # ours counts the defaults as trial 0
    table = search(build_oracle(spec_of("hyperband")))
    assert [dict(trial.values) | dict(trial.bracket_values) for trial in table[1:]] == alone


# --- trial 0 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_trial_zero_has_all_defaults(algorithm: Algorithm) -> None:
    spec = spec_of(algorithm)
    first = suggest(build_oracle(spec), [])
    assert isinstance(first, Suggestion)
    assert first.values == {hp.name: hp.default for hp in spec.space.space}
    assert first.failed_parent is None
    full_budget = {"tuner/epochs": 4, "tuner/initial_epoch": 0, "tuner/bracket": -1, "tuner/round": 0}
    assert first.bracket_values == (full_budget if algorithm == "hyperband" else {})


def test_inactive_hyperparameters_have_no_value() -> None:
    for algorithm in ALGORITHMS:
        space = keras_tuner.HyperParameters()
        space.Choice("kind", ["plain", "deep"])
        with space.conditional_scope("kind", ["deep"]):
            space.Int("depth", 2, 4)
        spec = spec_of(algorithm, space=space, max_trials=None if algorithm == "grid" else 4)
        table = search(build_oracle(spec))
        assert dict(table[0].values) == {"kind": "plain"}
        assert all(("depth" in trial.values) == (trial.values["kind"] == "deep") for trial in table)
        if algorithm != "hyperband":
            assert len(set(configurations(table))) == num_configurations(space) == 4


# --- hyperband -------------------------------------------------------------------------------------


def first_rung(table: Table) -> Table:
    bracket = table[1].bracket_values["tuner/bracket"]
    return [t for t in table if (t.bracket_values["tuner/bracket"], t.bracket_values["tuner/round"]) == (bracket, 0)]


@pytest.mark.parametrize("direction", ["min", "max"])
def test_three_failures_in_a_rung_of_nine_still_promote(direction: Literal["min", "max"]) -> None:
    spec = spec_of("hyperband", max_epochs=9, factor=3, direction=direction)

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


def test_hyperband_with_failures_only_ends_and_dooms_each_promotion() -> None:
    template = build_oracle(spec_of("hyperband"))
    table = search(template, lambda trial: None)
    assert len(table) == num_hyperband_trials(template)
    promoted = [trial for trial in table if trial.bracket_values["tuner/round"] != 0]
    assert promoted
    for trial in promoted:
        answer = suggest(template, table[: trial.sequence])
        assert isinstance(answer, Suggestion)
        assert answer.failed_parent == trial.bracket_values["tuner/trial_id"]


def test_a_promotion_has_the_values_of_its_parent_and_goes_on_where_it_ended() -> None:
    table = search(build_oracle(spec_of("hyperband")), num_workers=3, pick=shuffled)
    promoted = [trial for trial in table if "tuner/trial_id" in trial.bracket_values]
    assert promoted
    for trial in promoted:
        parent = table[int(trial.bracket_values["tuner/trial_id"])]
        assert trial.values == parent.values
        assert trial.bracket_values["tuner/initial_epoch"] == parent.bracket_values["tuner/epochs"]


def test_hyperband_waits_for_the_round_before() -> None:
    template = build_oracle(spec_of("hyperband", max_epochs=2))
    table: Table = []
    while isinstance(answer := suggest(template, table), Suggestion):
        table.append(TrialRecord(len(table), answer.values, answer.bracket_values, len(table), None, "running", None))
    assert answer == Wait()
    for trial in list(table):
        table[trial.sequence] = ended(trial, num_events(table), score(trial))
    assert isinstance(suggest(template, table), Suggestion)


# --- nothing twice, nothing missing, an end --------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 3])
def test_grid_is_complete(num_workers: int) -> None:
    spec = spec_of("grid")
    table = search(build_oracle(spec), score_or_fail, num_workers=num_workers, pick=newest)
    expected = {(("rate", rate), ("units", units)) for rate in (0.01, 0.001, 0.0001) for units in (32, 64, 96, 128)}
    assert len(table) == len(expected) == num_grid_combinations(spec.space)
    assert set(configurations(table)) == expected


@pytest.mark.parametrize("algorithm", ["random", "bayesian"])
@pytest.mark.parametrize("seed", [0, 1])
def test_small_space_is_tried_completely_without_a_repeat(algorithm: Algorithm, seed: int) -> None:
    spec = spec_of(algorithm, space=small_space(), seed=seed, max_trials=50)
    table = search(build_oracle(spec), score_or_fail)
    assert len(set(configurations(table))) == len(table) == num_configurations(spec.space) == 12
    assert suggest(build_oracle(spec), table) == Exhausted(
        f"{type(build_oracle(spec)).__name__} has nothing new to try"
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_trial_limit_holds_and_can_be_raised(algorithm: Algorithm) -> None:
    table = search(build_oracle(spec_of(algorithm, max_trials=4)))
    assert len(table) == 4
    assert suggest(build_oracle(spec_of(algorithm, max_trials=4)), table) == Exhausted("all 4 trials have been started")
    assert isinstance(suggest(build_oracle(spec_of(algorithm, max_trials=3)), table), Exhausted)
    assert search(build_oracle(spec_of(algorithm, max_trials=10)), begun=table)[:4] == table


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_failures_alone_do_not_end_a_search(algorithm: Algorithm) -> None:
    table = search(build_oracle(spec_of(algorithm, max_trials=8)), lambda trial: None)
    assert [trial.status for trial in table] == ["failed"] * 8


@pytest.mark.parametrize("algorithm", ["random", "grid"])
def test_any_number_of_trials_can_run_at_a_time(algorithm: Algorithm) -> None:
    """KerasTuner's own grid goes on only after an end."""
    table = search(build_oracle(spec_of(algorithm)), num_workers=100)
    assert all(trial.created_order == trial.sequence for trial in table)
    assert len(table) == num_trials_at_most(build_oracle(spec_of(algorithm)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_values_are_plain_python(algorithm: Algorithm) -> None:
    for trial in search(build_oracle(spec_of(algorithm))):
        for value in [*trial.values.values(), *trial.bracket_values.values()]:
            assert type(value) in (int, float, str, bool)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_hyperband_ends_when_a_small_space_has_no_more_for_its_rounds(num_workers: int) -> None:
    spec = spec_of("hyperband", space=small_space(), max_epochs=9, factor=3)
    table = search(build_oracle(spec), score_or_fail, num_workers=num_workers)
    begun = [trial for trial in table if trial.bracket_values["tuner/round"] == 0]
    assert len(begun) == len(set(configurations(begun))) == 12


def test_bayesian_takes_a_running_trial_for_a_poor_one() -> None:
    """Without a fit to the real scores it would count as about 1, the best of all."""
    space = keras_tuner.HyperParameters()
    space.Float("x", 0.0, 1.0, default=0.5)
    template = build_oracle(spec_of("bayesian", space=space, max_trials=9, num_initial_points=4))
    table = search(template, lambda trial: 1000 + (float(trial.values["x"]) - 0.8) ** 2)[:8]
    running = replace(table[7], values={"x": 0.05}, status="running", ended_order=None, score=None)
    answer = suggest(template, [*table[:7], running])
    assert isinstance(answer, Suggestion)
    assert float(answer.values["x"]) > 0.4


def test_bayesian_stays_away_from_failures() -> None:
    """The failing half of a range is left; a failure untold would draw the search back to it."""
    space = keras_tuner.HyperParameters()
    space.Float("x", 0.0, 1.0, default=0.5)
    template = build_oracle(spec_of("bayesian", space=space, max_trials=14, num_initial_points=6))
    table = search(template, lambda trial: None if float(trial.values["x"]) > 0.6 else 1 - float(trial.values["x"]))
    assert sum(trial.status == "failed" for trial in table[6:]) <= 3


@pytest.mark.parametrize("direction", ["min", "max"])
def test_bayesian_moves_towards_the_better_scores(direction: Literal["min", "max"]) -> None:
    space = keras_tuner.HyperParameters()
    space.Float("x", 0.0, 1.0, default=0.5)
    spec = spec_of("bayesian", space=space, max_trials=10, num_initial_points=4, direction=direction)
    sign = 1 if direction == "min" else -1
    table = search(build_oracle(spec), lambda trial: sign * (float(trial.values["x"]) - 0.83) ** 2)
    best = min(table[4:], key=lambda trial: abs(float(trial.values["x"]) - 0.83))
    assert abs(float(best.values["x"]) - 0.83) < 0.05


# --- seeds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["random", "bayesian", "hyperband"])
def test_seed_zero_is_a_seed_like_any_other(algorithm: Algorithm) -> None:
    tables = {seed: search(build_oracle(spec_of(algorithm, seed=seed, max_trials=5))) for seed in (0, 1)}
    assert search(build_oracle(spec_of(algorithm, seed=0, max_trials=5))) == tables[0]
    shared = set(configurations(tables[0])) & set(configurations(tables[1]))
    assert shared == {configurations(tables[0])[0]}, "only trial 0 is common to both"


def test_each_bayesian_question_draws_from_a_seed_of_its_own() -> None:
    template = build_oracle(spec_of("bayesian"))
    first, second = search(build_oracle(spec_of("bayesian", max_trials=2)))
    forged = replace(second, values={"dropout": 0.125, "units": 96})
    answer = suggest(template, [first, forged])
    assert isinstance(answer, Suggestion)
    assert answer.values["dropout"] != second.values["dropout"]


def test_seeds_are_never_zero_and_far_apart() -> None:
    seeds = sorted(far_apart_seed(5, sequence) for sequence in range(10_000))
    assert seeds[0] > 0
    assert seeds[-1] < 2**32
    assert min(after - before for before, after in itertools.pairwise(seeds)) > 100_000


# --- the ledger of another search ------------------------------------------------------------------


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
    message = rf"trial 3 belongs to another search.*units={units} where it has units=33; go on with"
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
    with pytest.raises(SearchError, match=r"tuner/trial_id=\d+ where it has .*tuner/trial_id=\d+"):
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
        ({"units": 500}, "suggests Int.*where it has 500"),
        ({"rate": 0.5}, "suggests Choice.*where it has 0.5"),
        ({"rate": "fast"}, "where it has fast"),
        ({"units": "many"}, "where it has many"),
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


# --- the user's own oracle -------------------------------------------------------------------------


class Countdown(keras_tuner.Oracle):
    """A user's oracle: from the largest number of units down, once each trial before has ended."""

    def populate_space(self, trial_id: str) -> dict[str, Any]:
        if self.ongoing_trials:
            return {"status": "IDLE"}
        units = 128 - 32 * (len(self.trials) - 1)
        if units < 32:
            return {"status": "STOPPED"}
        return {"status": "RUNNING", "values": {"units": units, "rate": 0.01}}


def users_oracles() -> list[keras_tuner.Oracle]:
    objective = keras_tuner.Objective("f1", "max")
    return [
        kt_oracles.RandomSearchOracle(objective, max_trials=6, seed=5, hyperparameters=wide_space()),
        kt_oracles.GridSearchOracle(objective, hyperparameters=small_space()),
        kt_oracles.BayesianOptimizationOracle(objective, 5, 3, seed=5, hyperparameters=wide_space()),
        kt_oracles.HyperbandOracle(objective, 4, 2, seed=5, hyperparameters=wide_space()),
        Countdown(["val_loss", objective], hyperparameters=small_space()),
    ]


@pytest.mark.parametrize("index", range(5))
def test_users_oracle_is_continued_from_every_event(index: int) -> None:
    whole = search(users_oracles()[index], score_or_fail, num_workers=2, pick=shuffled)
    assert len(whole) > 4
    for num_kept in range(0, num_events(whole) + 1, 3):
        again = users_oracles()[index]
        assert search(again, score_or_fail, cut(whole, num_kept), 2, shuffled) == whole


@pytest.mark.parametrize("kind", [kt_oracles.RandomSearchOracle, kt_oracles.BayesianOptimizationOracle])
def test_users_oracle_that_was_given_no_seed_is_continued_with_the_recorded_one(kind: type[keras_tuner.Oracle]) -> None:
    first, second = (kind("val_loss", 6, hyperparameters=plane()) for _ in range(2))
    first.num_initial_points = second.num_initial_points = 3
    table = search(reseeded(first, 71))
    assert search(reseeded(second, 71), begun=table[:3]) == table


def test_error_in_a_users_oracle_reaches_the_user_and_holds_no_lock() -> None:
    class Broken(keras_tuner.Oracle):
        def populate_space(self, trial_id: str) -> dict[str, Any]:
            raise RuntimeError("out of ideas")

    template = Broken("val_loss", hyperparameters=small_space())
    table = [ended(TrialRecord(0, {"units": 64, "rate": 0.001}, {}, 0, None, "running", None), 1, 0.5)]
    num_locks = len(LOCKS), len(THREADS)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of ideas"):
            suggest(template, table)
    assert (len(LOCKS), len(THREADS)) == num_locks


def test_oracle_with_trials_of_its_own_is_refused(tmp_path: Path) -> None:
    oracle = users_oracles()[0]
    kerastuner_alone(oracle, tmp_path, 2)
    with pytest.raises(SearchError, match=r"RandomSearchOracle: already holds 2 trials, .*; pass a new oracle"):
        suggest(oracle, [])


def test_oracle_that_cannot_be_copied_is_refused() -> None:
    oracle = users_oracles()[0]
    oracle.guard = threading.Lock()
    with pytest.raises(SearchError, match=r"RandomSearchOracle: cannot be copied .*; keep open files, locks"):
        suggest(oracle, [])


# --- settings and sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (spec_of("random", seed=-1), "search seed: -1 is negative; give 0 or a larger integer"),
        (
            spec_of("hyperband", max_epochs=None),
            "hyperband: max_epochs None, .*give max_epochs of at least 1",
        ),
        (spec_of("hyperband", factor=1), "a factor of at least 2"),
        (spec_of("hyperband", iterations=0), "at least 1 iteration"),
    ],
)
def test_wrong_settings_are_refused(spec: OracleSpec, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        build_oracle(spec)


def test_unknown_algorithm_is_refused() -> None:
    unknown: Any = "genetic"
    message = "algorithm: 'genetic' is unknown; choose one of random, grid, bayesian, hyperband"
    with pytest.raises(SearchError, match=message):
        build_oracle(OracleSpec(unknown, small_space()))


def test_grid_with_a_repeated_choice_is_refused() -> None:
    space = keras_tuner.HyperParameters()
    space.Choice("units", [32, 64, 32])
    with pytest.raises(SearchError, match="search space: units lists 32 twice; a grid needs each value once"):
        build_oracle(spec_of("grid", space=space))
    with pytest.raises(SearchError, match="units lists 32 twice"):
        suggest(kt_oracles.GridSearchOracle("val_loss", hyperparameters=space), [])


def test_grid_over_log_steps_keeps_integers() -> None:
    space = keras_tuner.HyperParameters()
    space.Int("batch_size", 2, 32, step=2, sampling="log", default=8)
    values = [trial.values["batch_size"] for trial in search(build_oracle(spec_of("grid", space=space)))]
    assert sorted(values) == [2, 4, 8, 16, 32]
    assert all(type(value) is int for value in values)


def odd_space() -> keras_tuner.HyperParameters:
    """Ranges whose sizes are easy to get wrong: off-grid defaults, no steps, a dependent hyperparameter."""
    space = keras_tuner.HyperParameters()
    space.Int("units", 10, 40, step=20, default=15)  # 10, 30 and the default 15
    space.Choice("kind", ["a", "b", "c"])
    with space.conditional_scope("kind", ["b", "c"]):
        space.Int("depth", 1, 4, sampling="log")  # 1, 2, 3, 4
    return space


def test_sizes_of_a_space_equal_what_a_search_tries() -> None:
    grid = search(build_oracle(spec_of("grid", space=odd_space())))
    assert num_grid_combinations(odd_space()) == len(grid) == len(set(configurations(grid))) == 3 * (1 + 2 * 4)
    drawn = search(build_oracle(spec_of("random", space=odd_space(), max_trials=None)))
    # The default 15 is no value that can be drawn: it is tried in trial 0 only.
    assert len(drawn) == 2 * (1 + 2 * 4) + 1
    assert num_configurations(odd_space()) == 3 * (1 + 2 * 4)
    assert num_configurations(wide_space()) is None


@pytest.mark.parametrize(
    ("max_epochs", "factor", "iterations"), [(1, 3, 1), (4, 2, 1), (9, 3, 2), (10, 3, 1), (27, 3, 1)]
)
def test_hyperband_runs_as_many_trials_as_announced(max_epochs: int, factor: int, iterations: int) -> None:
    spec = spec_of("hyperband", max_epochs=max_epochs, factor=factor, iterations=iterations)
    template = build_oracle(spec)
    assert num_hyperband_trials(template) == num_trials_at_most(template) == len(search(template))


def test_most_trials_of_a_search() -> None:
    assert num_trials_at_most(build_oracle(spec_of("grid"))) == 12
    assert num_trials_at_most(build_oracle(spec_of("grid", max_trials=5))) == 5
    assert num_trials_at_most(build_oracle(spec_of("random", space=small_space(), max_trials=50))) == 12
    assert num_trials_at_most(build_oracle(spec_of("bayesian"))) == 6
    assert num_trials_at_most(build_oracle(spec_of("random", max_trials=None))) is None
    endless = kt_oracles.HyperbandOracle("val_loss", hyperband_iterations=None, hyperparameters=small_space())
    assert num_hyperband_trials(endless) is None
