"""`compare` ranks what was recorded, judges image by image, and refuses what cannot be compared."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from fakeface_lab.compare import main
from fakeface_lab.search.ledger.resume import open_search
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store, open_store
from fakeface_lab.tracking.writer import PatientWriter
from tests.scored_runs import IS_POSITIVE, NUM_IMAGES, record, scores_with_wrong
from tests.tiny_store import TinyStore, tiny_store


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables and nothing in them: making those takes longer than a whole test."""
    folder = tmp_path_factory.mktemp("empty")
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def store(project: Path, empty_database: Path) -> Store:
    shutil.copy(empty_database, project / "mlflow.db")
    return open_store(None, project, "faces")


def output_of(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    assert main(list(argv)) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_two_runs_are_judged_on_the_same_images(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(store, tmp_path, "good", scores_with_wrong(range(2)))
    record(store, tmp_path, "bad", scores_with_wrong(range(2, 22)))
    out, _ = output_of(capsys, "good", "bad")
    p_value = mcnemar([[78, 20], [2, 0]], exact=True).pvalue
    assert "Good is better than bad: of 100 images 20 are right with good alone, 2 with bad alone" in out
    assert f"(exact McNemar, p = {p_value:.2g})" in out
    for num_right in (98, 80):
        low, high = proportion_confint(num_right, NUM_IMAGES, method="wilson")
        assert f"{num_right / 100:.4f} ({num_right}/100, 95 % interval {low:.4f}-{high:.4f})" in out
    assert re.search(r"1\s+good.*\n\s+2\s+bad", out), "the better one first"
    out, _ = output_of(capsys, "bad", "good")
    assert "Bad is worse than good" in out
    assert re.search(r"1\s+good.*\n\s+2\s+bad", out), "ranked by accuracy, however they are given"


def test_several_comparisons_are_adjusted(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(store, tmp_path, "a", scores_with_wrong(range(0)))
    record(store, tmp_path, "b", scores_with_wrong(range(6)))
    record(store, tmp_path, "c", scores_with_wrong(range(8)))
    out, _ = output_of(capsys, "a", "b", "c")
    raw = [mcnemar([[0, num], [0, 0]], exact=True).pvalue for num in (6, 8)]
    adjusted = multipletests(raw, method="holm")[1]
    assert [float(p) for p in re.findall(r"p = ([\d.e-]+)\)", out)] == [float(f"{p:.2g}") for p in adjusted]
    assert "adjusted for 2 comparisons (Holm)" in out


def test_how_often_the_test_images_were_opened_is_said(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: dict[str, Any] = {"test_opened": f"{'d' * 32} sealed seed 0", "test_openings": "2"}
    record(store, tmp_path, "good", scores_with_wrong(range(2)), **opened)
    record(store, tmp_path, "bad", scores_with_wrong(range(2, 22)))
    record(store, tmp_path, "elsewhere", scores_with_wrong(range(2)), split_seed=1)
    record(store, tmp_path, "closed", scores_with_wrong(range(2)), part="validation")
    for names in (["good", "bad"], ["bad", "good"]):
        out, _ = output_of(capsys, *names)
        assert "The test images (sealed split, seed 0) have been opened 2 times in this store." in out
    out, _ = output_of(capsys, "elsewhere", "elsewhere")
    assert "The test images (sealed split, seed 1) have never been opened in this store." in out
    assert "opened" not in output_of(capsys, "closed", "closed")[0]


def test_require_better_is_a_gate(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(store, tmp_path, "good", scores_with_wrong(range(2)))
    record(store, tmp_path, "bad", scores_with_wrong(range(2, 22)))
    record(store, tmp_path, "similar", scores_with_wrong(range(3)))
    output_of(capsys, "good", "bad", "--require", "better", code=0)
    output_of(capsys, "bad", "good", "--require", "better", code=3)
    out, _ = output_of(capsys, "good", "similar", "--require", "better", code=3)
    assert "cannot be decided" in out


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
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: dict[str, Any], named: str
) -> None:
    record(store, tmp_path, "first", scores_with_wrong(range(2)))
    record(store, tmp_path, "second", scores_with_wrong(range(9)), **other)
    out, err = output_of(capsys, "first", "second", code=2)
    assert err.count("\n") == 1
    assert "first and second cannot be ranked" in err
    assert named in err
    assert len(re.findall(r"^rank", out, flags=re.M)) == 2, "each in a table of its own"
    assert "verdict" not in out


def test_same_split_by_name_but_other_images(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(store, tmp_path, "first", scores_with_wrong(range(2)))
    record(store, tmp_path, "second", scores_with_wrong(range(9)), first_image=1)
    _, err = output_of(capsys, "first", "second", code=2)
    assert "first and second: their scores are of different images" in err


def test_names_that_mean_nothing_or_too_much(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = record(store, tmp_path, "twin", scores_with_wrong(range(2)))
    second = record(store, tmp_path, "twin", scores_with_wrong(range(9)))
    _, err = output_of(capsys, "twin", code=2)
    assert "twin: 2 runs have that name; give the id of one of them" in err
    assert first in err
    assert second in err
    out, _ = output_of(capsys, first, second)
    assert out.count("verdict") == 1
    _, err = output_of(capsys, "it's", code=2)
    assert "it's: no search or run of that name" in err
    _, err = output_of(capsys, "f" * 32, code=2)
    assert "no such run" in err


def test_a_run_without_scores_is_left_out_or_refused(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(store, tmp_path, "whole", scores_with_wrong(range(2)))
    TrackedRun.create(store, PatientWriter(5), "cut off", {"role": "baseline"}).end("KILLED", "stopped by Ctrl-C")
    out, _ = output_of(capsys)
    assert "whole" in out
    assert re.search(r"left out\s+run cut off .*has no scores; was it stopped before its end\?", out)
    _, err = output_of(capsys, "whole", "cut off", code=2)
    assert "run cut off" in err


def test_without_a_store(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = output_of(capsys, code=1)
    assert "nothing has been recorded there yet; train a model or run a search first" in err
    assert not (project / "mlflow.db").exists(), "looking makes no store"


def test_a_search_stands_by_the_average_over_its_seeds(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = open_search(
        store, PatientWriter(5), "by hand", {}, {"direction": "max", "trial_0": "documented"}, restart=False
    )
    parent = ledger.parent.run_id
    for trial, score in enumerate((0.5, 0.9, 0.7)):
        tags: dict[str, Any] = {"trial": str(trial), "outcome": "finished", "score": str(score), "values": "{}"}
        record(
            store, tmp_path, f"t{trial}", scores_with_wrong(range(9)), part="validation", role="trial", parent=parent,
            bracket_values="{}", **tags,
        )  # fmt: skip
    ledger.parent.end("FINISHED")
    # Each seed is wrong about other images, and surer where it is right: their average is right about all.
    for seed in (0, 1, 2):
        scores = np.where(IS_POSITIVE, 0.9, 0.1)
        own = slice(10 * seed, 10 * seed + 10)
        scores[own] = np.where(IS_POSITIVE[own], 0.4, 0.6)
        record(
            store, tmp_path, f"f1-{seed}", scores, role="final", parent=parent, seed=seed,
            final_key=f"final-trial-1-seed-{seed}",
        )  # fmt: skip
        record(
            store, tmp_path, f"f0-{seed}", scores_with_wrong(range(20)), role="final", parent=parent, seed=seed,
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
    record(store, tmp_path, "one seed", scores_with_wrong(range(90, 92)), seed=1)
    out, _ = output_of(capsys, "by hand", "one seed", "--require", "better", code=3)
    assert "of 100 images 2 are right with by hand (seed 1 of its 3) alone, 10 with one seed alone" in out
    assert "about these two trained models, not about their configurations: for that, each needs at least 3" in out
    out, _ = output_of(capsys, "one seed", "by hand")
    assert "One seed is better than by hand (seed 1 of its 3): of 100 images 10" in out


def test_a_search_without_finals_stands_by_its_best_trial(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = open_search(store, PatientWriter(5), "open", {}, {"direction": "min"}, restart=False)
    _, err = output_of(capsys, "open", "open", code=2)
    assert "search open: no trial has a score yet" in err
    for trial, num_wrong in enumerate((4, 7)):
        record(
            store, tmp_path, f"t{trial}", scores_with_wrong(range(num_wrong)), part="validation", role="trial",
            parent=ledger.parent.run_id, trial=str(trial), outcome="finished", score=str(num_wrong), values="{}",
            bracket_values="{}",
        )  # fmt: skip
    out, _ = output_of(capsys)
    assert "these images chose epochs and trials: figures are too good" in out
    assert re.search(r"1\s+open: best trial\s+search\s+0.9600 \(96/100", out)
    out, _ = output_of(capsys, "open", "--require", "better", code=3)
    assert "none: no finals of both" in out
    ledger.parent.end("FINISHED")


@pytest.fixture(scope="module")
def tiny() -> TinyStore:
    return tiny_store()


def test_the_latest_of_a_real_store(
    tiny: TinyStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny.project)
    out, err = output_of(capsys)
    assert err == ""
    assert len(re.findall(r"^rank", out, flags=re.M)) == 3
    for words in ("split documented seed 0, test images", "sealed seed 0, test images", "seed 0, validation images"):
        assert words in out
    for run_id in (tiny.documented_run_id, tiny.sealed_run_id):
        assert run_id in out


def test_the_verdict_of_a_real_search_is_found_again(
    tiny: TinyStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny.project)
    out, _ = output_of(capsys, "tiny search")
    assert f"{tiny.best_score:.4f}" in out
    assert tiny.verdict.split(".")[0] in out
    for name in ("leaderboard", "charts"):
        assert re.search(rf"^ +{name} +http://127.0.0.1:5000/\S+&viewStateShareKey={name}-", out, flags=re.M)
    assert output_of(capsys, tiny.search_run_id)[0] == out


def test_no_tensorflow_is_loaded(tiny: TinyStore) -> None:
    code = (
        "import sys; from fakeface_lab.compare import main; code = main(['tiny search'])\n"
        "print({'tensorflow', 'keras', 'sklearn'} & set(sys.modules), code)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tiny.project, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set() 0"
