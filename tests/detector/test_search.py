"""A search for what survives, to its verdict: scores under each change, from the training to the store and back."""

import csv
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Run
from PIL import Image
from sklearn.metrics import balanced_accuracy_score
from statsmodels.stats.proportion import proportion_confint

from fakeface_lab.assess.tracked_model import load_tracked_model
from fakeface_lab.compare import main as compare_main
from fakeface_lab.data.images import load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import make_split
from fakeface_lab.detector import search as detector_search
from fakeface_lab.detector.finals import Registration, register
from fakeface_lab.detector.search import SearchResult
from fakeface_lab.detector.stress import stress_scores as score_under_stress
from fakeface_lab.errors import NotFoundError, SearchError
from fakeface_lab.evaluation.stress.comparison import compare_under_stress
from fakeface_lab.evaluation.stress.objective import stress_selection_corrected
from fakeface_lab.evaluation.stress.suite import SEARCH_CONDITIONS
from fakeface_lab.settings import Range, TuneSettings
from fakeface_lab.tracking.lookup import children_of, find_model, find_run, open_for_models, open_for_reading
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.scores import read_stress_scores
from fakeface_lab.tracking.store import Store
from fakeface_lab.tune import run_search
from tests.made_once import empty_store

SIZE_PX = 24
NAMES = tuple(condition.name for condition in SEARCH_CONDITIONS)


@dataclass(frozen=True)
class Searched:
    project: Path
    images: Path
    store: Store
    result: SearchResult
    trials: list[Run]
    finals: list[Run]
    driver: str  # what its parent run said of its process while models were registered


def settings(images: Path, **changes: Any) -> TuneSettings:
    common: dict[str, Any] = {
        "name": "robust", "data": str(images), "image_size": SIZE_PX, "epochs": 8, "trials": 3,
        "algorithm": "random", "engine": "inline", "final_seeds": 1, "objective": "worst_stress",
    }  # fmt: skip
    # Trial 0 hardly learns, so that another one is the best.
    slow = {"filters_1": 4, "filters_2": 4, "dense_units": 8, "learning_rate": 1e-6, "batch_size": 8,
            "conv_dropout": 0, "dense_dropout": 0}  # fmt: skip
    space = {"learning_rate": Range(min=6e-3, max=1e-2), "augmentation": Range(values=(0.0, 0.5))}
    return TuneSettings(**common | changes, hyperparameters=slow, space=space)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Searched]:
    """The search; its images are told apart by a brightness that no change takes away."""
    root = tmp_path_factory.mktemp("robust")
    (root / "project" / "experiments").mkdir(parents=True)
    shutil.copy(empty_store(), root / "project")
    rng = np.random.default_rng(0)
    for name, brightness in (("fake", 0), ("real", 110)):
        (root / "images" / name).mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(0, 140, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8) + np.uint8(brightness)
            Image.fromarray(pixels).save(root / "images" / name / f"{name}_{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "project")
        patch.setenv("FAKEFACE_CACHE", str(root / "cache"))
        drivers = list[str]()

        def noted(parent: TrackedRun, *words: Any) -> Registration:
            drivers.append(parent.read().data.tags["driver"])
            return register(parent, *words)

        patch.setattr(detector_search, "register", noted)
        result = run_search(settings(root / "images"))
        assert result is not None
        store = open_for_reading(None, root / "project")
        parent = find_run(store, result.run_id)
        yield Searched(
            root / "project", root / "images", store, result,
            children_of(store, parent, "trial"), children_of(store, parent, "final"), drivers[0],
        )  # fmt: skip


def rows_of(searched: Searched, run: Run) -> tuple[list[str], list[list[str]]]:
    path = searched.store.client.download_artifacts(run.info.run_id, "stress_scores.csv")
    with Path(path).open(newline="") as file:
        heading, *rows = csv.reader(file)
    return heading, rows


@pytest.mark.slow
def test_another_process_is_kept_out_until_the_end(searched: Searched) -> None:
    assert json.loads(searched.driver)["pid"] == os.getpid()


def test_each_trial_keeps_its_scores_under_each_change(searched: Searched) -> None:
    assert len(searched.trials) == 3
    for run in searched.trials:
        heading, rows = rows_of(searched, run)
        assert heading == ["file", "sha256", "label", "split", *NAMES]
        assert {row[3] for row in rows} == {"validation"}
        labels = [row[2] for row in rows]
        values = [
            balanced_accuracy_score(labels, ["fake" if float(row[4 + column]) > 0.5 else "real" for row in rows])
            for column in range(len(NAMES))
        ]
        assert run.data.metrics["worst_stress"] == pytest.approx(min(values))
        assert run.data.metrics["mean_stress"] == pytest.approx(np.mean(values))
        assert float(run.data.tags["score"]) == run.data.metrics["worst_stress"]
        assert not any(name.startswith("test_") for name in run.data.metrics)


def test_scores_are_those_of_the_kept_model_to_the_last_bit(searched: Searched) -> None:
    (final, *_) = searched.finals
    model = load_tracked_model(find_model(open_for_models(None, searched.project), final.info.run_id))
    images = load_images(find_source(str(searched.images), None, searched.project, SIZE_PX), SIZE_PX)
    test = make_split(images, "sealed", 0).test
    stored = read_stress_scores(searched.store, [final])
    np.testing.assert_array_equal(stored.is_positive, images.labels[test] == 0)
    assert stored.conditions == NAMES
    computed = score_under_stress(model.network, images, test, SEARCH_CONDITIONS)
    np.testing.assert_array_equal(stored.scores[0], np.stack(list(computed.values())))


def test_finals_are_scored_under_each_change_on_the_test_images(searched: Searched) -> None:
    assert len(searched.finals) == 2
    for run in searched.finals:
        metrics, (_, rows) = run.data.metrics, rows_of(searched, run)
        assert {row[3] for row in rows} == {"test"}
        assert "worst_stress" not in metrics
        assert metrics["test_worst_stress"] <= metrics["test_mean_stress"]
        assert metrics["test_stress_clean_accuracy"] == metrics["test_accuracy"]
        for column, name in enumerate(NAMES):
            num_right = sum((float(row[4 + column]) > 0.5) == (row[2] == "fake") for row in rows)
            key = f"test_stress_{name}_accuracy"
            assert metrics[key] == num_right / len(rows)
            low, high = proportion_confint(num_right, len(rows), method="wilson")
            assert (metrics[f"{key}_low"], metrics[f"{key}_high"]) == pytest.approx((low, high), abs=1e-9)


def test_the_verdict_is_about_the_objective(searched: Searched, capsys: pytest.CaptureFixture[str]) -> None:
    best, documented = sorted(searched.finals, key=lambda run: run.data.tags["final"])
    stored = read_stress_scores(searched.store, [best, documented])
    comparison = compare_under_stress(
        stored.is_positive, stored.conditions, stored.scores[:1], stored.scores[1:], "worst_stress"
    )
    sentence = comparison.sentence("the best configuration", "the documented one")
    assert searched.result.verdict == sentence
    parent = find_run(searched.store, searched.result.run_id)
    assert parent.data.tags["verdict"] == comparison.verdict == "better"
    assert sentence in parent.data.tags["mlflow.note.content"]
    num_clean = round(best.data.metrics["test_accuracy"] * stored.is_positive.size)
    assert f"clean, the best configuration has {num_clean}/{stored.is_positive.size} right" in sentence
    assert re.search(r"difference \+0\.\d{4} \((95 % interval \+0\.\d{4} to|paired bootstrap: the same)", sentence)
    # From the store alone, and as a gate.
    capsys.readouterr()
    assert compare_main(["robust", "--require", "better"]) == 0
    assert sentence in " ".join(capsys.readouterr().out.split())


def test_started_again_it_says_the_same_and_trains_nothing(searched: Searched) -> None:
    again = run_search(settings(searched.images))
    assert again == searched.result
    parent = find_run(searched.store, searched.result.run_id)
    assert [run.info.run_id for run in children_of(searched.store, parent, "final")] == [
        run.info.run_id for run in searched.finals
    ]


def test_the_best_is_corrected_for_the_selection(searched: Searched) -> None:
    stored = read_stress_scores(searched.store, searched.trials, "validation")
    expected = stress_selection_corrected(stored.is_positive, stored.scores, "worst_stress")
    metrics = find_run(searched.store, searched.result.run_id).data.metrics
    assert metrics["selection_naive"] == pytest.approx(searched.result.best_score)
    assert metrics["selection_corrected"] == expected.corrected
    assert (metrics["selection_corrected_low"], metrics["selection_corrected_high"]) == (expected.low, expected.high)


@pytest.mark.slow
def test_on_the_documented_split_the_test_images_are_scored_once(searched: Searched) -> None:
    result = run_search(
        settings(searched.images, name="documented", split="documented", trials=2, final_seeds=0, epochs=1)
    )
    assert result is not None
    parent = find_run(searched.store, result.run_id)
    assert parent.data.tags["test_opened_for"] == '["each epoch of its trials"]'
    trials = children_of(searched.store, parent, "trial")
    for run in trials:
        assert {row[3] for row in rows_of(searched, run)[1]} == {"test"}
        assert run.data.metrics["worst_stress"] == run.data.metrics["test_worst_stress"]
    assert "selection_corrected" in parent.data.metrics


def test_a_run_without_these_scores_or_with_others_is_refused(searched: Searched, tmp_path: Path) -> None:
    client, (trial, *_) = searched.store.client, searched.trials
    with pytest.raises(NotFoundError, match="has no scores on the test split"):
        read_stress_scores(searched.store, [trial])
    other = client.create_run(trial.info.experiment_id, run_name="other")
    with pytest.raises(NotFoundError, match=r"run other: has no stress_scores.csv; was it stopped"):
        read_stress_scores(searched.store, [trial, other], "validation")
    heading, rows = rows_of(searched, trial)
    path = tmp_path / "stress_scores.csv"
    for table, message in (
        ([row[:8] for row in (heading, *rows)], "run other: scored under clean, .* compare runs of one version"),
        ([heading, *rows[1:]], "run other: scored on different validation images"),
    ):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(table)
        client.log_artifact(other.info.run_id, str(path))
        with pytest.raises(SearchError, match=message):
            read_stress_scores(searched.store, [trial, other], "validation")
