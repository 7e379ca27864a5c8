"""The best of equal trials under stress is corrected to its truth, and a better one keeps its score."""

from typing import get_args

import numpy as np
import pytest

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.stress.objective import OBJECTIVES, stress_selection_corrected
from fakeface_lab.evaluation.stress.suite import objective_values
from fakeface_lab.settings import ObjectiveName
from tests.evaluation.stress.simulated_scores import CONDITIONS, drawn, scores_of, truth_of, with_wrong


def test_thirty_equal_trials_are_corrected_to_their_truth() -> None:
    rng = np.random.default_rng(0)
    truth = truth_of(100)
    rates = {"apart": [0.98, 0.95, 0.8], "equally bad": [0.8, 0.8, 0.8]}
    for name, own in rates.items():
        found = []
        for seed in range(20):
            scores = np.stack([scores_of(drawn(rng, own, truth), truth) for _ in range(30)])
            found.append(stress_selection_corrected(truth, scores, "worst_stress", num_resamples=200, seed=seed))
        assert np.mean([f.naive for f in found]) > 0.8 + (0.03 if name == "apart" else 0.01)
        assert np.mean([f.corrected for f in found]) == pytest.approx(0.8, abs=0.012), name
        assert sum(f.low <= 0.8 <= f.high for f in found) >= 18


def test_mean_over_conditions_is_corrected_too() -> None:
    rng = np.random.default_rng(1)
    truth, rates = truth_of(100), [0.9, 0.8, 0.7]
    found = []
    for seed in range(20):
        scores = np.stack([scores_of(drawn(rng, rates, truth), truth) for _ in range(30)])
        found.append(stress_selection_corrected(truth, scores, "mean_stress", num_resamples=200, seed=seed))
    assert np.mean([f.naive for f in found]) > 0.83
    assert np.mean([f.corrected for f in found]) == pytest.approx(0.8, abs=0.012)


def test_a_trial_that_is_truly_better_keeps_its_score() -> None:
    rng = np.random.default_rng(2)
    truth = truth_of(200)
    scores = np.stack([scores_of(drawn(rng, [0.99, 0.9, 0.95 if t == 4 else 0.6], truth), truth) for t in range(8)])
    found = stress_selection_corrected(truth, scores, "worst_stress")
    by_condition = dict(zip(CONDITIONS, scores[4], strict=True))
    assert found.naive == pytest.approx(objective_values(np.where(truth, 0, 1), by_condition)["worst_stress"])
    assert found.corrected == pytest.approx(found.naive, abs=0.006)
    assert (found.num_trials, found.num_images) == (8, 400)
    assert found == stress_selection_corrected(truth, scores, "worst_stress")
    # Trials that tie share a resample, in whatever order they come.
    copies = stress_selection_corrected(truth, np.repeat(scores, 2, axis=0)[::-1], "worst_stress")
    assert copies.corrected == pytest.approx(found.corrected)


def test_a_class_of_one_image_cannot_be_corrected() -> None:
    truth = np.array([True, False, False])
    with pytest.raises(DataError, match="a class has a single image"):
        stress_selection_corrected(truth, with_wrong(truth, 0, 1, 2), "worst_stress")


def test_the_words_are_the_same_everywhere() -> None:
    assert set(OBJECTIVES) < set(get_args(ObjectiveName))
