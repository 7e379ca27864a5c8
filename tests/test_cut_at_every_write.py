"""A search and a baseline killed after chosen writes; `cut_at_every_write` itself tries them all."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

# In the order of a search's life: each kills one life of the same search.
CRITICAL = [
    r"INSERT runs .* find_or_create <- runs",  # the search's own
    r"INSERT runs .* child",
    r"INSERT tags .* end <- trials",  # the score is there, the files are not
    r"log_artifacts .* log_model",
    r"UPDATE logged_models ",
    r"INSERT params .* log_start",  # of a final: those of the trials are there
    r"INSERT model_versions",
]
OTHERS = [
    r"INSERT experiments ",
    r"INSERT experiment_tags .* save_views",
    r"count_start",
    r"INSERT logged_models ",
    r"INSERT inputs .* _link",
    r"INSERT tags .* close <- uploads",
    r"UPDATE runs .* close <- uploads",
    r"log_artifacts .* log_served_form",
    r"INSERT registered_model_aliases",
    r"INSERT tags .* _apply <- finals",
    r"UPDATE runs .* ending",
]


def cut(*words: str) -> None:
    command = [sys.executable, "-m", "tests.cut_at_every_write", "--engine", "inline", *words]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.timeout(600)
def test_a_search_killed_at_its_critical_moments_is_the_same() -> None:
    cut("--trials", "2", "--chain", *(f"--match={match}" for match in CRITICAL))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_killed_at_other_moments_is_the_same() -> None:
    cut("--trials", "2", "--chain", *(f"--match={match}" for match in OTHERS))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("algorithm", ["grid", "bayesian", "hyperband"])
def test_another_algorithm_killed_at_some_writes_is_the_same(algorithm: str) -> None:
    cut("--algorithm", algorithm, "--sample", "8")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_search_killed_at_some_writes_to_disk_is_the_same(when: str) -> None:
    cut("--kind", "disk", "--when", when, "--sample", "8")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("words", [(), ("--with-driver",)])
def test_a_search_whose_worker_is_killed_at_some_writes_is_the_same(words: tuple[str, ...]) -> None:
    cut("--engine", "local", "--kind", "worker", "--sample", "4", *words)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["store", "disk"])
def test_a_baseline_killed_at_some_writes_and_resumed_is_the_same(kind: str) -> None:
    cut("--program", "baseline", "--kind", kind, "--sample", "8")


@pytest.mark.slow
def test_a_baseline_killed_after_its_last_write_leaves_nothing() -> None:
    cut("--program", "baseline", "--match", "UPDATE runs .* end <- runs")
