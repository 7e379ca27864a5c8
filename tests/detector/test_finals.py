from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fakeface_lab.detector.finals import Finals, explain, run_finals
from fakeface_lab.errors import SearchError
from fakeface_lab.evaluation.comparison import compare
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.run.engine import InlineEngine
from fakeface_lab.tracking.datasets import num_openings, seal_key
from fakeface_lab.tracking.store import Store
from tests.search.curve_work import CurveWork
from tests.search.run.test_trials import run

SEEDS = range(3, 5)
TEST_SET = seal_key("d" * 64, "sealed", 3)


def finals(ledger: Ledger, best: int, work: CurveWork, shown: list[str] | None = None) -> Finals:
    lines = [] if shown is None else shown
    trials = ledger.trials
    return run_finals(
        ledger,
        work,
        lambda handler: InlineEngine(work, handler),
        trials[best],
        trials[0],
        SEEDS,
        TEST_SET,
        lines.append,
    )


def openings(ledger: Ledger) -> int:
    return num_openings(ledger.parent.store, TEST_SET)


def test_finals_are_trained_once_and_others_after_the_best_has_changed(
    new_store: Callable[[str], Store], tmp_path: Path
) -> None:
    ledger = run(new_store("finals"))
    work = CurveWork(tmp_path / "trained.txt")
    first = finals(ledger, 1, work)
    assert [run.data.tags["final"] for run in first.best] == ["best-3", "best-4"]
    assert [run.data.tags["final"] for run in first.documented] == ["documented-3", "documented-4"]
    assert all(run.info.status == "FINISHED" for run in (*first.best, *first.documented))
    # As many epochs as the trial kept, with each seed.
    trained = (tmp_path / "trained.txt").read_text().splitlines()
    assert sorted(trained) == [
        f"final-trial-{trial}-seed-{seed} {epoch}" for trial in (0, 1) for seed in SEEDS for epoch in (1, 2, 3, 4)
    ]
    shown: list[str] = []
    again = finals(ledger, 1, work, shown)
    assert shown == []
    assert [run.info.run_id for run in again.best] == [run.info.run_id for run in first.best]

    changed = finals(ledger, 2, work, shown)
    assert shown == ["final trial 2 seed 3: 4 epochs on train + validation",
                     "final trial 2 seed 4: 4 epochs on train + validation"]  # fmt: skip
    assert [run.info.run_id for run in changed.documented] == [run.info.run_id for run in first.documented]
    roles = [ledger.parent.store.client.get_run(run.info.run_id).data.tags["role"] for run in first.best]
    assert roles == ["former-final", "former-final"]

    alone = finals(ledger, 0, work)
    assert alone.best == alone.documented
    assert (
        explain(alone, None, 6)
        == "The documented configuration (trial 0) is the best of 6 trials: there is nothing to compare."
    )
    assert len(list(ledger.parent.store.work_folder.glob("*/epoch.ckpt"))) == 0


def test_a_failed_final_is_told_and_can_be_tried_again(new_store: Callable[[str], Store], tmp_path: Path) -> None:
    ledger = run(new_store("failed"))
    faulty = CurveWork(tmp_path / "trained.txt", {"final-trial-1-seed-4": "error"})
    with pytest.raises(SearchError, match="final trial 1 seed 4 failed: ValueError: a shape does not fit; the"):
        finals(ledger, 1, faulty)
    assert openings(ledger) == 1, "an opening counts before it happens"
    assert len(finals(ledger, 1, CurveWork(tmp_path / "trained.txt")).best) == 2
    assert openings(ledger) == 1, "the same finals go on"


def test_a_final_that_died_once_is_finished_without_a_reason(new_store: Callable[[str], Store], tmp_path: Path) -> None:
    ledger = run(new_store("died"))
    stumbling = CurveWork(tmp_path / "trained.txt", {"final-trial-1-seed-4": "once stumble"})
    shown: list[str] = []
    final = finals(ledger, 1, stumbling, shown).best[1]
    assert [line for line in shown if "cuDNN is out of order; trying again" in line]
    assert (final.info.status, final.data.tags["status_reason"]) == ("FINISHED", "")


def test_an_opening_counts_once_for_the_same_finals(new_store: Callable[[str], Store], tmp_path: Path) -> None:
    ledger = run(new_store("openings"))
    work = CurveWork(tmp_path / "trained.txt")
    counts = []
    for best in (1, 1, 2, 1):
        finals(ledger, best, work)
        counts.append(openings(ledger))
    assert counts == [1, 1, 2, 2]


def test_the_verdict_in_words() -> None:
    truth = np.array([True, False] * 10)
    scores = np.where(truth, 0.9, 0.1)[None]
    text = explain(Finals((), ()), compare(truth, scores, 1 - scores), 6)
    assert text.startswith("The best configuration is better than the documented one: of 20 images")
    assert explain(Finals((), ()), None, 6).startswith("There is no verdict: the documented configuration (trial 0)")
