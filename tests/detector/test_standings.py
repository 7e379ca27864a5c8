"""Searches and runs are ranked by their recorded scores, each set of images separately."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakeface_lab.search.ledger.resume import open_search
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter
from tests.scored_runs import IS_POSITIVE, output_of, record, scores_with_wrong


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"split": "documented"}, "split documented seed 0"),
        ({"split_seed": 1}, "split sealed seed 1"),
        ({"digest": "e" * 64}, "faces eeeeeeee"),
        ({"part": "validation"}, "validation images"),
    ],
    ids=["split", "seed", "data", "part"],
)
def test_figures_of_different_images_are_not_ranked(
    local_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any], named: str
) -> None:
    record(local_store, tmp_path, "first", scores_with_wrong(range(2)))
    record(local_store, tmp_path, "second", scores_with_wrong(range(9)), **other)
    out, err = output_of(capsys, "first", "second", code=2)
    assert err.count("\n") == 1
    assert "first and second cannot be ranked" in err
    assert named in err
    assert len(re.findall(r"^rank", out, flags=re.M)) == 2, "each in a table of its own"
    assert "verdict" not in out


def test_same_split_by_name_but_other_images(
    local_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(local_store, tmp_path, "first", scores_with_wrong(range(2)))
    record(local_store, tmp_path, "second", scores_with_wrong(range(9)), first_image=1)
    _, err = output_of(capsys, "first", "second", code=2)
    assert "first and second: their scores are of different images" in err


def test_a_run_without_scores_is_left_out_or_refused(
    local_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(local_store, tmp_path, "whole", scores_with_wrong(range(2)))
    TrackedRun.create(local_store, PatientWriter(5), "cut off", {"role": "baseline"}).end("KILLED", "stopped by Ctrl-C")
    out, _ = output_of(capsys)
    assert "whole" in out
    assert re.search(r"left out\s+run cut off .*has no scores; was it stopped before its end\?", out)
    _, err = output_of(capsys, "whole", "cut off", code=2)
    assert "run cut off" in err


def test_a_search_stands_by_the_average_over_its_seeds(
    local_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = open_search(
        local_store, PatientWriter(5), "by hand", {}, {"direction": "max", "trial_0": "documented"}, restart=False
    )
    parent = ledger.parent.run_id
    for trial, score in enumerate((0.5, 0.9, 0.7)):
        tags: dict[str, Any] = {"trial": str(trial), "outcome": "finished", "score": str(score), "values": "{}"}
        record(
            local_store, tmp_path, f"t{trial}", scores_with_wrong(range(9)), part="validation", role="trial",
            parent=parent, bracket_values="{}", **tags,
        )  # fmt: skip
    ledger.parent.end("FINISHED")
    # Each seed is wrong about other images, and surer where it is right: their average is right about all.
    for seed in (0, 1, 2):
        scores = np.where(IS_POSITIVE, 0.9, 0.1)
        own = slice(10 * seed, 10 * seed + 10)
        scores[own] = np.where(IS_POSITIVE[own], 0.4, 0.6)
        record(
            local_store, tmp_path, f"f1-{seed}", scores, role="final", parent=parent, seed=seed,
            final_key=f"final-trial-1-seed-{seed}",
        )  # fmt: skip
        record(
            local_store, tmp_path, f"f0-{seed}", scores_with_wrong(range(20)), role="final", parent=parent, seed=seed,
            final_key=f"final-trial-0-seed-{seed}",
        )  # fmt: skip
    out, _ = output_of(capsys, "by hand", "--require", "better")
    assert "1.0000 (100/100" in out
    assert "0.8000 (80/100" in out
    assert "20 are right with the best configuration alone" in out
    assert "the best configuration 0.9000 to 0.9000 (3 seeds)" in out
    assert "trained models" not in out
    assert re.search(r"1\s+1\s+0.9000.*\n\s*2\s+2\s+0.7000.*\n\s*3\s+0 documented\s+0.5000", out), "larger is better"
    out, _ = output_of(capsys)
    assert re.search(r"1\s+by hand\s+search\s+1.0000", out)

    # A run of one seed beside it is compared with the search's final of that seed, not with the average of three.
    record(local_store, tmp_path, "one seed", scores_with_wrong(range(90, 92)), seed=1)
    out, _ = output_of(capsys, "by hand", "one seed", "--require", "better", code=3)
    assert "of 100 images 2 are right with by hand (seed 1 of its 3) alone, 10 with one seed alone" in out
    assert "about these two trained models, not about their configurations: for that, each needs at least 3" in out
    out, _ = output_of(capsys, "one seed", "by hand")
    assert "One seed is better than by hand (seed 1 of its 3): of 100 images 10" in out


def test_a_search_without_finals_stands_by_its_best_trial(
    local_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = open_search(local_store, PatientWriter(5), "open", {}, {"direction": "min"}, restart=False)
    _, err = output_of(capsys, "open", "open", code=2)
    assert "search open: no trial has a score yet" in err
    for trial, num_wrong in enumerate((4, 7)):
        record(
            local_store, tmp_path, f"t{trial}", scores_with_wrong(range(num_wrong)), part="validation", role="trial",
            parent=ledger.parent.run_id, trial=str(trial), outcome="finished", score=str(num_wrong), values="{}",
            bracket_values="{}",
        )  # fmt: skip
    out, _ = output_of(capsys)
    assert "these images chose epochs and trials: figures are too good" in out
    assert re.search(r"1\s+open: best trial\s+search\s+0.9600 \(96/100", out)
    out, _ = output_of(capsys, "open", "--require", "better", code=3)
    assert "none: no finals of both" in out
    ledger.parent.end("FINISHED")
