"""`compare` ranks what was recorded, judges image by image, and refuses what cannot be compared."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from fakeface_lab.tracking.store import Store, search_runs
from tests.scored_runs import NUM_IMAGES, output_of, record, scores_with_wrong
from tests.tiny_store import TinyStore, tiny_store


def test_two_runs_are_judged_on_the_same_images(
    local_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(local_store, tmp_path, "good", scores_with_wrong(range(2)))
    record(local_store, tmp_path, "bad", scores_with_wrong(range(2, 22)))
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


def test_several_comparisons_are_adjusted(
    local_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(local_store, tmp_path, "a", scores_with_wrong(range(0)))
    record(local_store, tmp_path, "b", scores_with_wrong(range(6)))
    record(local_store, tmp_path, "c", scores_with_wrong(range(8)))
    out, _ = output_of(capsys, "a", "b", "c")
    raw = [mcnemar([[0, num], [0, 0]], exact=True).pvalue for num in (6, 8)]
    adjusted = multipletests(raw, method="holm")[1]
    assert [float(p) for p in re.findall(r"p = ([\d.e-]+)\)", out)] == [float(f"{p:.2g}") for p in adjusted]
    assert "adjusted for 2 comparisons (Holm)" in out


def test_how_often_the_test_images_were_opened_is_said(
    local_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: dict[str, Any] = {"test_opened": f"{'d' * 32} sealed seed 0", "test_openings": "2"}
    record(local_store, tmp_path, "good", scores_with_wrong(range(2)), **opened)
    record(local_store, tmp_path, "bad", scores_with_wrong(range(2, 22)))
    record(local_store, tmp_path, "elsewhere", scores_with_wrong(range(2)), split_seed=1)
    record(local_store, tmp_path, "closed", scores_with_wrong(range(2)), part="validation")
    for names in (["good", "bad"], ["bad", "good"]):
        out, _ = output_of(capsys, *names)
        assert "The test images (sealed split, seed 0) have been opened 2 times in this store." in out
    out, _ = output_of(capsys, "elsewhere", "elsewhere")
    assert "The test images (sealed split, seed 1) have never been opened in this store." in out
    assert "opened" not in output_of(capsys, "closed", "closed")[0]


def test_require_better_is_a_gate(local_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(local_store, tmp_path, "good", scores_with_wrong(range(2)))
    record(local_store, tmp_path, "bad", scores_with_wrong(range(2, 22)))
    record(local_store, tmp_path, "similar", scores_with_wrong(range(3)))
    output_of(capsys, "good", "bad", "--require", "better", code=0)
    output_of(capsys, "bad", "good", "--require", "better", code=3)
    out, _ = output_of(capsys, "good", "similar", "--require", "better", code=3)
    assert "cannot be decided" in out


def test_names_that_mean_nothing_or_too_much(
    local_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = record(local_store, tmp_path, "twin", scores_with_wrong(range(2)))
    second = record(local_store, tmp_path, "twin", scores_with_wrong(range(9)))
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


def test_without_a_store(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = output_of(capsys, code=1)
    assert "nothing has been recorded there yet; train a model or run a search first" in err
    assert not (project / "mlflow.db").exists(), "looking makes no store"


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


def test_the_trials_of_a_search_are_read_once(
    tiny: TinyStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny.project)
    queries: list[str] = []

    def noted(client: Any, experiment_ids: Any, query: str, **kwargs: Any) -> list[Any]:
        queries.append(query)
        return search_runs(client, experiment_ids, query, **kwargs)

    monkeypatch.setattr("fakeface_lab.tracking.lookup.search_runs", noted)
    output_of(capsys, "tiny search")
    assert sum("role = 'trial'" in query for query in queries) == 1


def test_no_tensorflow_is_loaded(tiny: TinyStore) -> None:
    code = (
        "import sys; from fakeface_lab.compare import main; code = main(['tiny search'])\n"
        "print({'tensorflow', 'keras', 'sklearn'} & set(sys.modules), code)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tiny.project, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set() 0"
