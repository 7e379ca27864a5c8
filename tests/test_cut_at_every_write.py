"""A search and a baseline killed after chosen writes; `cut_at_every_write` itself tries them all."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]

# In the order of a search's life: each kills one life of the same search.
MOMENTS = [
    r"INSERT runs .* create <- opening",
    r"INSERT runs .* find_or_make",
    r"count_start",
    r"UPDATE logged_models ",
    r"INSERT inputs .* _link",
    r"INSERT tags .* end <- driver",
    r"INSERT logged_models ",
    r"INSERT tags .* count_opening",
    r"INSERT model_versions",
    r"INSERT tags .* _register_once",
    r"UPDATE runs .* ending",
]


def cut(*words: str) -> None:
    command = [sys.executable, "-m", "tests.cut_at_every_write", "--engine", "inline", *words]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_a_search_killed_at_its_critical_moments_is_the_same() -> None:
    cut("--trials", "2", "--chain", *(f"--match={match}" for match in MOMENTS))
