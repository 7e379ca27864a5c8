"""A search whose tracking server does what it is asked, and whose replies get lost."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


def lose(*words: str) -> None:
    command = [sys.executable, "-m", "tests.lost_replies", *words]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["drop", "503"])
def test_a_search_that_loses_one_reply_of_each_kind_is_the_same(mode: str) -> None:
    lose("--mode", mode, "--trials", "2")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("mode", ["drop", "503"])
def test_a_search_that_loses_one_reply_is_the_same(mode: str) -> None:
    lose("--mode", mode, "--one-by-one")
