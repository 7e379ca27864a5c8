"""A replay is a cache: dropping it changes no answer. Contradictory ledgers and those of another search are refused."""

import gc
import itertools
import json
import math
import random
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from keras_tuner import oracles as kt_oracles

from fakeface_lab.detector.space import build_oracle
from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggest import replay
from fakeface_lab.search.suggest.oracle_copy import OracleCopy
from fakeface_lab.search.suggest.suggestion import Exhausted, Suggestion, TrialRecord, Wait, failed_parent, suggest
from fakeface_lab.settings import Algorithm
from tests.search.suggest.simulated_search import (
    ALGORITHMS,
    Table,
    cut,
    ended,
    first_rung,
    num_events,
    score,
    score_or_fail,
    search,
    shuffled,
    small_space,
    spec_of,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*")

REPLAYED: tuple[Algorithm, ...] = ("random", "grid", "hyperband")
LARGER: dict[Algorithm, dict[str, Any]] = {
    "random": {"max_trials": 30},
    "grid": {},
    "bayesian": {},
    "hyperband": {"max_epochs": 9, "factor": 3, "iterations": 2},
}


def wander(spec: Any, seed: int, num_workers: int, failing_fraction: float) -> Iterator[Table]:
    """Yield the ledger at each question of a search that asks at random times, and sometimes drops an answer."""
    rng, template, table = random.Random(seed), build_oracle(spec), list[TrialRecord]()
    while True:
        yield list(table)
        answer = suggest(template, table)
        running = [trial for trial in table if trial.status == "running"]
        if isinstance(answer, Suggestion) and len(running) < num_workers and (not running or rng.random() < 0.7):
            new = TrialRecord(
                len(table), answer.values, answer.bracket_values, num_events(table), None, "running", None
            )
            table.append(new)
        elif running:
            trial = rng.choice(running)
            is_failed = failed_parent(trial.bracket_values, table) is not None or rng.random() < failing_fraction
            table[trial.sequence] = ended(trial, num_events(table), None if is_failed else rng.random())
        else:
            assert isinstance(answer, Exhausted)
            return


@pytest.mark.parametrize(
    ("algorithm", "seed", "num_workers", "failing_fraction"),
    [
        *itertools.product(REPLAYED, [0], [1], [0.3]),
        *itertools.product(REPLAYED, [1], [3], [0.0]),
        *itertools.product(REPLAYED, [2], [5], [0.6]),
        ("bayesian", 3, 3, 0.3),
    ],
)
def test_dropping_the_cache_at_random_moments_changes_no_answer(
    algorithm: Algorithm, seed: int, num_workers: int, failing_fraction: float
) -> None:
    spec, rng = spec_of(algorithm, **LARGER[algorithm]), random.Random(seed)
    template, kinds = build_oracle(spec), Counter[str]()
    for table in wander(spec, seed, num_workers, failing_fraction):
        if rng.random() < 0.1:
            replay._cached.clear()
        answer = suggest(template, table)
        assert answer == suggest(build_oracle(spec), table)
        kinds[type(answer).__name__] += 1
    assert kinds["Suggestion"] >= 6
    if algorithm == "hyperband" and num_workers > 1:
        assert kinds["Wait"]


def outcome(template: Any, table: Table) -> Suggestion | Wait | Exhausted | str:
    """Return the answer, or the text of the error."""
    try:
        return suggest(template, table)
    except SearchError as error:
        return str(error)


def forgeries(table: Table, middle: int) -> list[Table]:
    """Ledgers, consistent or not, that do not continue the ledger of the last question."""
    trial, num = table[middle], num_events(table)
    values = {**trial.values, "units": 96 if trial.values["units"] != 96 else 64}
    running = replace(trial, status="running", ended_order=None, score=None)
    altered = [
        replace(trial, values=values),
        replace(trial, score=1e-9, status="finished"),
        replace(trial, status="failed", score=None),
        running,
        replace(trial, ended_order=num + 3),
        replace(trial, created_order=num + 3, ended_order=num + 4),
        replace(trial, ended_order=trial.created_order),
        replace(trial, sequence=middle + 1),
    ]
    late = TrialRecord(len(table), trial.values, trial.bracket_values, num + 1, num, "finished", 0.5)
    later = replace(late, created_order=num + 2, ended_order=num + 3)
    return [
        *([*table[:middle], other, *table[middle + 1 :]] for other in altered),
        cut(table, num // 2),
        [],
        [*table, late],
        [*table, replace(late, created_order=num - 1, ended_order=num)],
        [*table, replace(late, sequence=len(table) + 1, ended_order=num + 2)],
        [*table, replace(late, ended_order=num + 2)],
        [*table, later, replace(later, sequence=len(table) + 1, created_order=num, ended_order=num + 1)],
    ]


@pytest.mark.parametrize("algorithm", REPLAYED)
@pytest.mark.parametrize("num_kept", [9, 14])
def test_another_ledger_gets_no_stale_answer(algorithm: Algorithm, num_kept: int) -> None:
    spec = spec_of(algorithm)
    table = cut(search(build_oracle(spec), score_or_fail, num_workers=2, pick=shuffled), num_kept)
    middle = next(trial.sequence for trial in table[1:] if trial.status == "finished")
    template = build_oracle(spec)
    right = suggest(template, table)
    for forged in forgeries(table, middle):
        assert outcome(template, forged) == outcome(build_oracle(spec), forged)
        assert suggest(template, table) == right
        assert suggest(template, list(table)) == right


@pytest.mark.parametrize("algorithm", REPLAYED)
def test_a_template_whose_settings_change_gets_no_stale_answer(algorithm: Algorithm) -> None:
    spec = spec_of(algorithm, max_trials=None)
    table = cut(search(build_oracle(spec_of(algorithm)), num_workers=2), 11)
    template = build_oracle(spec)
    right = suggest(template, table)

    def agrees() -> bool:
        fresh = build_oracle(spec)
        vars(fresh).update({name: value for name, value in vars(template).items() if name != "_display"})
        return outcome(template, table) == outcome(fresh, table)

    template.max_trials = len(table)
    assert outcome(template, table) == Exhausted()
    template.max_trials = None
    assert suggest(template, table) == right
    template._seed_state += 1
    assert agrees()
    template._seed_state -= 1
    template.hyperparameters = small_space()
    assert agrees()
    if algorithm == "hyperband":
        assert str(outcome(template, table)).startswith("recorded trial")


def test_a_users_own_oracle_is_not_cached() -> None:
    changed = build_oracle(spec_of("random"))
    changed.populate_space = lambda trial_id: {"status": "RUNNING", "values": {"units": 64}}
    subclass = type("Mine", (kt_oracles.RandomSearchOracle,), {})("val_loss", hyperparameters=small_space())
    for template in (changed, subclass):
        assert isinstance(suggest(template, []), Suggestion)
        assert template not in replay._cached


@pytest.mark.parametrize("algorithm", REPLAYED)
@pytest.mark.parametrize("num_workers", [1, 3])
def test_each_event_is_replayed_once(algorithm: Algorithm, num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Because of this the cost of a search is linear in its events."""
    calls = Counter[str]()

    def count(name: str) -> None:
        real = getattr(OracleCopy, name)

        def counted(*args: Any) -> Any:
            calls[name] += 1
            return real(*args)

        monkeypatch.setattr(OracleCopy, name, counted)

    for name in ("__init__", "ask", "take_back", "tell"):
        count(name)
    spec = spec_of(algorithm, **LARGER[algorithm])
    table = search(build_oracle(spec), score_or_fail, num_workers=num_workers, pick=shuffled)
    assert calls["__init__"] == 1
    assert calls["tell"] <= len(table)
    assert calls["ask"] - calls["take_back"] <= len(table) + 1
    assert calls["take_back"] == 0 or (algorithm == "hyperband" and calls["take_back"] < len(table) / 2)


def num_lines_run(template: Any, table: Table) -> int:
    """Return how many lines of Python a question executes."""
    num = 0

    def trace(frame: Any, event: str, arg: object) -> Any:
        nonlocal num
        num += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        suggest(template, table)
    finally:
        sys.settrace(before)
    return num


@pytest.mark.parametrize("algorithm", REPLAYED)
def test_a_replay_takes_linear_time_and_a_cached_answer_nearly_constant_time(algorithm: Algorithm) -> None:
    wide = {"random": {}, "grid": {"space": large_grid()}, "hyperband": {"max_epochs": 9, "iterations": 20}}[algorithm]
    spec = spec_of(algorithm, max_trials=None, **wide)
    table: Table = []
    template = build_oracle(spec)
    while len(table) < 400:
        answer = suggest(template, table)
        assert isinstance(answer, Suggestion)
        num = num_events(table)
        new = TrialRecord(len(table), answer.values, answer.bracket_values, num, num + 1, "finished", 0.0)
        table.append(replace(new, score=score(new)))
    assert num_lines_run(build_oracle(spec), table) < 2.1 * num_lines_run(build_oracle(spec), table[:200])
    suggest(template, table[:-1])
    assert num_lines_run(template, table) < num_lines_run(build_oracle(spec), table[:20])


def large_grid() -> Any:
    space = small_space()
    space.Int("depth", 1, 50)
    return space


def test_replays_are_freed_with_their_templates() -> None:
    template = build_oracle(spec_of("hyperband"))
    search(template)
    assert template in replay._cached
    kept, gone = weakref.ref(replay._cached[template]), weakref.ref(template)
    del template
    gc.collect()
    assert gone() is None
    assert kept() is None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_question_can_come_from_another_thread(algorithm: Algorithm) -> None:
    spec = spec_of(algorithm, **({"max_trials": 4} if algorithm == "bayesian" else {}))
    template, answers = build_oracle(spec), list[object]()
    whole = search(build_oracle(spec), score_or_fail)
    tables = [cut(whole, num_kept) for num_kept in range(0, num_events(whole), 2)]
    for table in tables:
        thread = threading.Thread(target=lambda table=table: answers.append(suggest(template, table)))
        thread.start()
        thread.join(timeout=60)
    assert answers == [suggest(build_oracle(spec), table) for table in tables]


@pytest.mark.parametrize("algorithm", REPLAYED)
def test_suggestions_equal_those_of_recorded_searches(algorithm: Algorithm) -> None:
    """Stored ledgers of three workers with a third of the trials failed: later versions must suggest the same."""
    recorded = json.loads((Path(__file__).parent / "recorded_searches.json").read_text())[algorithm]
    table = search(build_oracle(spec_of(algorithm)), score_or_fail, num_workers=3, pick=shuffled)
    assert table == [TrialRecord(**record) for record in recorded]


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
