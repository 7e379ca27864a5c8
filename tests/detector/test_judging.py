"""The best of a search, corrected for having been picked, from the scores that its trials have logged."""

import csv
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fakeface_lab.config import Value
from fakeface_lab.detector.judging import ScoredTrial, selection_report
from fakeface_lab.errors import NotFoundError, SearchError
from fakeface_lab.evaluation.selection import selection_corrected
from fakeface_lab.settings import Range
from fakeface_lab.tracking.store import Store, open_store
from tests.made_once import empty_store

SPACE = {
    "learning_rate": Range(min=1e-4, max=1e-2, sampling="log"),
    "filters_1": Range(values=(4, 8, 16)),
    "precision": Range(values=("float32", "mixed_bfloat16")),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    project = tmp_path_factory.mktemp("selection")
    shutil.copy(empty_store(), project)
    return open_store(f"sqlite:///{project / 'mlflow.db'}", project, "selection")


def log_trials(
    store: Store,
    folder: Path,
    probabilities: npt.NDArray[np.float64],
    scores: list[float],
    rates: list[float],
    by_epoch: Sequence[npt.NDArray[np.float32] | None] | None = None,
) -> list[ScoredTrial]:
    """Log one run a row of probabilities of `fake`, (num_trials, num_images), of which the first half is fake."""
    trials: list[ScoredTrial] = []
    num_images = probabilities.shape[1]
    for place, (own, score, rate) in enumerate(zip(probabilities, scores, rates, strict=True)):
        path = folder / "scores.csv"
        with path.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("file", "sha256", "label", "split", "probability_fake", "probability_real"))
            for image, value in enumerate(own):
                label = "fake" if image < num_images // 2 else "real"
                table.writerow((f"{image}.png", "", label, "validation", float(value), float(1 - value)))
        run = store.client.create_run(store.experiment_id, run_name=f"trial {len(trials)}")
        store.client.log_artifact(run.info.run_id, str(path))
        epochs = None if by_epoch is None else by_epoch[place]
        if epochs is not None:
            np.save(folder / "epoch_scores.npy", epochs)
            store.client.log_artifact(run.info.run_id, str(folder / "epoch_scores.npy"))
        values: dict[str, Value] = {"learning_rate": rate, "filters_1": 8, "precision": "float32"}
        trials.append(ScoredTrial(run, values, score))
    return trials


def with_accuracy(num_trials: int, num_images: int, accuracy: float) -> npt.NDArray[np.float64]:
    """Equal trials that err on different images at random."""
    is_correct = np.random.default_rng(0).random((num_trials, num_images)) < accuracy
    is_positive = np.arange(num_images) < num_images // 2
    return np.where(is_correct == is_positive, 0.8, 0.3)


def test_luck_is_taken_off(store: Store, tmp_path: Path) -> None:
    probabilities = with_accuracy(12, 200, 0.9)
    trials = log_trials(store, tmp_path, probabilities, [0.9] * 12, [1e-3] * 12)
    report = selection_report(store, trials, space=SPACE, algorithm="bayesian", objective="val_accuracy", maximize=True)
    assert report.metrics["selection_naive"] > 0.92
    assert report.metrics["selection_corrected"] == pytest.approx(0.9, abs=0.02)
    assert report.metrics["selection_corrected_low"] < 0.9 < report.metrics["selection_corrected_high"]
    is_correct = (probabilities > 0.5) == (np.arange(200) < 100)
    assert report.metrics["selection_corrected"] == selection_corrected(is_correct.T).corrected
    assert report.sentences[0].startswith("val_accuracy, best of 12 trials on 200 images: 0.9")
    assert not any("Half as many" in sentence for sentence in report.sentences)


def test_the_pick_of_the_epoch_is_covered_where_it_was_recorded(store: Store, tmp_path: Path) -> None:
    probabilities = with_accuracy(9, 200, 0.9)
    # Two trials, of five and of four epochs; each keeps its most accurate one.
    by_epoch = [probabilities[:5].astype(np.float32), probabilities[5:].astype(np.float32)]
    is_correct = (probabilities > 0.5) == (np.arange(200) < 100)
    accuracies = is_correct.mean(axis=1)
    kept = [int(accuracies[:5].argmax()), 5 + int(accuracies[5:].argmax())]
    best = [float(accuracies[row]) for row in kept]
    trials = log_trials(store, tmp_path, probabilities[kept], best, [1e-3] * 2, by_epoch)
    kwargs = {"space": SPACE, "algorithm": "bayesian", "objective": "val_accuracy", "maximize": True}
    report = selection_report(store, trials, **kwargs)  # type: ignore[arg-type]
    assert report.metrics["selection_naive"] == max(best)
    assert report.metrics["selection_corrected"] == selection_corrected(is_correct.T, num_trials=2).corrected
    assert report.sentences[0].startswith("val_accuracy, best of 2 trials and their 9 epochs on 200 images: 0.9")
    # One trial of a store that an earlier version wrote: the kept epochs alone, and it says so.
    older = log_trials(store, tmp_path, probabilities[kept], best, [1e-3] * 2, [by_epoch[0], None])
    report = selection_report(store, older, **kwargs)  # type: ignore[arg-type]
    assert report.metrics["selection_corrected"] == selection_corrected(is_correct[kept].T).corrected
    assert "the trial; that of its epoch is not covered" in report.sentences[0]


def test_loss_is_that_of_the_images(store: Store, tmp_path: Path) -> None:
    probabilities = np.random.default_rng(1).uniform(0.2, 0.95, (3, 40))
    of_truth = np.where(np.arange(40) < 20, probabilities, 1 - probabilities)
    losses = [float(loss) for loss in -np.log(of_truth).mean(axis=1)]
    trials = log_trials(store, tmp_path, probabilities, losses, [1e-3] * 3)
    report = selection_report(store, trials, space=SPACE, algorithm="random", objective="val_loss", maximize=False)
    assert report.metrics["selection_naive"] == pytest.approx(min(losses))
    assert report.metrics["selection_corrected"] >= report.metrics["selection_naive"]


def test_expected_best_leaves_out_the_trial_set_by_hand(store: Store, tmp_path: Path) -> None:
    scores = [0.99, 0.5, 0.7, 0.6]
    trials = log_trials(store, tmp_path, with_accuracy(4, 40, 0.8), scores, [1e-3] * 4)
    report = selection_report(store, trials, space=SPACE, algorithm="random", objective="val_accuracy", maximize=True)
    # The mean and the maximum of the three drawn trials, by hand.
    expected = "Half as many random trials (1) would be expected to reach val_accuracy 0.6000, all 3 reach 0.7000"
    assert any(expected in sentence for sentence in report.sentences)


def test_best_value_at_the_edge_is_named(store: Store, tmp_path: Path) -> None:
    trials = log_trials(store, tmp_path, with_accuracy(3, 40, 0.8), [0.5, 0.9, 0.6], [1e-3, 9.5e-3, 2e-3])
    report = selection_report(store, trials, space=SPACE, algorithm="grid", objective="val_accuracy", maximize=True)
    assert report.metrics["num_edge_values"] == 1
    assert "learning_rate = 0.0095 is at the high edge of 0.0001 to 0.01; widen the range upwards." in report.sentences


def test_a_choice_of_two_values_has_no_edge(store: Store, tmp_path: Path) -> None:
    trials = log_trials(store, tmp_path, with_accuracy(2, 40, 0.8), [0.9, 0.5], [1e-3, 1e-3])
    for values, num_edges in (((8, 16), 0), ((8, 16, 32), 1)):
        report = selection_report(
            store, trials, space={"filters_1": Range(values=values)}, algorithm="grid", objective="val_accuracy",
            maximize=True,
        )  # fmt: skip
        assert report.metrics["num_edge_values"] == num_edges


def test_a_value_that_can_go_no_further_has_no_edge(store: Store, tmp_path: Path) -> None:
    trials = log_trials(store, tmp_path, with_accuracy(2, 40, 0.8), [0.9, 0.5], [1e-3, 1e-3])
    for lowest, num_edges in ((0.0, 0), (0.1, 1)):
        given = [replace(trials[0], values={"conv_dropout": lowest}), replace(trials[1], values={"conv_dropout": 0.25})]
        report = selection_report(
            store, given, space={"conv_dropout": Range(values=(lowest, 0.25, 0.4))}, algorithm="grid",
            objective="val_accuracy", maximize=True,
        )  # fmt: skip
        assert report.metrics["num_edge_values"] == num_edges


def test_documented_value_outside_the_range_widens_it(store: Store, tmp_path: Path) -> None:
    trials = log_trials(store, tmp_path, with_accuracy(2, 40, 0.8), [0.9, 0.5], [5e-2, 1e-3])
    report = selection_report(store, trials, space=SPACE, algorithm="grid", objective="val_accuracy", maximize=True)
    assert "learning_rate = 0.05 is at the high edge of 0.0001 to 0.05; widen the range upwards." in report.sentences


def test_robust_objective_needs_the_scores_under_each_change(store: Store, tmp_path: Path) -> None:
    trials = log_trials(store, tmp_path, with_accuracy(3, 40, 0.8), [0.5, 0.9, 0.6], [1e-3] * 3)
    with pytest.raises(NotFoundError, match=r"run trial 0: has no stress_scores.csv"):
        selection_report(store, trials, space={}, algorithm="bayesian", objective="worst_stress", maximize=True)


def test_a_single_trial_was_not_picked(store: Store, tmp_path: Path) -> None:
    trials = log_trials(store, tmp_path, with_accuracy(1, 40, 0.8), [0.5], [1e-3])
    report = selection_report(store, trials, space={}, algorithm="bayesian", objective="worst_stress", maximize=True)
    assert report.metrics == {"num_edge_values": 0.0}
    assert report.sentences == ()


def test_no_trial_is_refused(store: Store) -> None:
    with pytest.raises(SearchError, match="no trial has a score, so there is nothing to correct"):
        selection_report(store, [], space=SPACE, algorithm="random", objective="val_loss", maximize=False)
