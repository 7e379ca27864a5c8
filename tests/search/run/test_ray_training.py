"""A training as Ray does it on a node, without a cluster: its messages, whatever the user's code does."""

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fakeface_lab.backend import tf
from fakeface_lab.search.run import ray_engine
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.training.epochs import Listener
from fakeface_lab.training.outcome import Outcome
from tests.search.curve_work import CurveWork


class Exiting(CurveWork):
    """Exits, as `argparse` does in a build function that reads the command line."""

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        sys.exit("unknown flag")


def test_an_exit_of_the_users_code_ends_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    # It cannot be undone, and this is not a process of Ray's.
    monkeypatch.setattr(ray_engine, "_end_forks_with_this_process", lambda: None)
    messages: list[dict[str, Any]] = []
    num_threads = tf.config.threading.get_intra_op_parallelism_threads()
    settings = {"num_threads": num_threads, "memory_bytes": None, "checkpoints": None}

    def train() -> None:
        messages.extend(ray_engine._train(Exiting(tmp_path), Assignment("t", {}, 1, 0), "run", {}, settings))

    # Not waited for without end: this is what would hang.
    training = threading.Thread(target=train, daemon=True)
    training.start()
    training.join(60)
    assert not training.is_alive()
    assert messages[-1] == {"kind": "died", "reason": "SystemExit: unknown flag"}
