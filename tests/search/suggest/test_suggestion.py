"""A simulated search, cut at every event and continued, against the whole one and KerasTuner alone."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import keras_tuner
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras_tuner.src.engine.oracle import LOCKS, THREADS

from fakeface_lab.detector.space import build_oracle
from fakeface_lab.search.suggest.oracles import num_grid_combinations, num_trials_at_most
from fakeface_lab.search.suggest.suggestion import TrialRecord, suggest
from fakeface_lab.settings import Algorithm
from fakeface_lab.training.objective import Objective
from tests.search.suggest.simulated_search import (
    ALGORITHMS,
    configurations,
    cut,
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
        "from tests.search import test_suggestion as t\n"
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
