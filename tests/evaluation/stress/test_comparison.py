"""Two models under stress: the interval against SciPy and a known truth, the verdict at its boundaries."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.intervals import FloatArray
from fakeface_lab.evaluation.stress.comparison import StressComparison, compare_under_stress
from fakeface_lab.evaluation.stress.objective import OBJECTIVES
from fakeface_lab.evaluation.stress.suite import objective_values
from tests.evaluation.stress.simulated_scores import CONDITIONS, drawn, scores_of, truth_of, with_wrong


def test_a_case_by_hand() -> None:
    truth = truth_of(4)
    # A: clean all right; crop has one of four fakes and one of four reals right: 0.25. B: 0.5 under JPEG.
    a = np.array([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 1, 0, 0, 0]], dtype=bool)
    b = np.array([[1, 1, 1, 0, 1, 1, 1, 1], [1, 0, 0, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0, 0]], dtype=bool)
    found = compare_under_stress(
        truth, CONDITIONS, scores_of(a, truth)[None], scores_of(b, truth)[None], "worst_stress"
    )
    assert (found.candidate.value, found.reference.value, found.difference) == (0.25, 0.5, -0.25)
    assert (found.candidate.worst_condition, found.reference.worst_condition) == ("crop_70", "jpeg_50")
    assert [(rate.num_correct, rate.num_total) for rate in (found.candidate.clean, found.reference.clean)] == [
        (8, 8), (7, 8)]  # fmt: skip
    assert (found.candidate.worst.num_correct, found.reference.worst.num_correct) == (2, 4)
    # A under crop and B under JPEG differ on two reals; six would be needed.
    assert (found.num_discordant, found.verdict) == (2, "cannot be decided")
    mean = compare_under_stress(truth, CONDITIONS, scores_of(a, truth)[None], scores_of(b, truth)[None], "mean_stress")
    assert mean.candidate.value == pytest.approx((1 + 7 / 8 + 1 / 4) / 3)
    assert mean.difference == pytest.approx((1 + 7 / 8 + 1 / 4 - 7 / 8 - 1 / 2 - 5 / 8) / 3)
    # Images 1 and 2 are right under two conditions with either model; the fourth fake under two and under one.
    assert mean.num_discordant == 1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_interval_is_that_of_scipy(objective: str) -> None:
    rng = np.random.default_rng(0)
    truth = rng.permutation(truth_of(60))
    a, b = drawn(rng, [0.97, 0.9, 0.8], truth), drawn(rng, [0.98, 0.85, 0.7], truth)

    def difference(positives: np.ndarray, negatives: np.ndarray, axis: int = -1) -> FloatArray:
        values = []
        for correct in (a, b):
            recalls = [correct[:, rows].mean(axis=-1) for rows in (positives, negatives)]
            balanced = (recalls[0] + recalls[1]) / 2
            values.append(balanced.min(axis=0) if objective == "worst_stress" else balanced.mean(axis=0))
        return np.asarray(values[0] - values[1])

    expected = stats.bootstrap(
        (np.flatnonzero(truth), np.flatnonzero(~truth)), difference, n_resamples=20_000, batch=500, method="basic",
        vectorized=True, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    found = compare_under_stress(truth, CONDITIONS, scores_of(a, truth)[None], scores_of(b, truth)[None], objective)
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high), abs=0.006)
    assert found.standard_error == pytest.approx((expected.high - expected.low) / 3.92, abs=0.004)
    for side, correct in ((found.candidate, a), (found.reference, b)):
        values = [balanced_accuracy_score(truth, own == truth) for own in correct]
        assert side.value == pytest.approx(min(values) if objective == "worst_stress" else np.mean(values))
        labels = np.where(truth, 0, 1)
        by_condition = dict(zip(CONDITIONS, scores_of(correct, truth), strict=True))
        assert side.value == pytest.approx(objective_values(labels, by_condition)[objective])


def test_interval_subtracts_what_a_percentile_interval_adds() -> None:
    """Three equally bad conditions against one: the lowest of three is too low, and again in each resample."""
    truth, index = truth_of(30), np.arange(60)
    wrong = [(index % 30 >= 5 * c) & (index % 30 < 5 * c + 5) for c in range(3)]
    a = scores_of(~np.stack(wrong), truth)[None]
    b = scores_of(~np.stack([np.zeros(60, dtype=bool), np.zeros(60, dtype=bool), wrong[0]]), truth)[None]
    interval = compare_under_stress(truth, CONDITIONS, a, b, "worst_stress").interval
    # The difference is 0 and A is worse in the resamples, so by the basic interval A may well be better.
    assert interval.high > 0.1 > -interval.low
    assert (interval.low + interval.high) / 2 > 0.02


@pytest.mark.parametrize(
    ("of_a", "of_b"),
    [
        ([0.85] * 5, [0.85] * 5),
        ([0.85] * 5, [0.98, 0.98, 0.98, 0.98, 0.85]),
        ([0.99, 0.97, 0.95, 0.9, 0.8], [0.99, 0.97, 0.95, 0.6, 0.7]),
    ],
    ids=["equal", "many bad against one bad", "apart"],
)
def test_interval_contains_the_truth(of_a: list[float], of_b: list[float]) -> None:
    rng = np.random.default_rng(0)
    truth, names = truth_of(129), ("clean", "jpeg_50", "blur_2", "crop_70", "pad_130")
    true = min(of_a) - min(of_b)
    num_held = 0
    for _ in range(100):
        a, b = (scores_of(drawn(rng, rates, truth), truth)[None] for rates in (of_a, of_b))
        interval = compare_under_stress(truth, names, a, b, "worst_stress", num_resamples=300).interval
        num_held += interval.low - 1e-9 <= true <= interval.high + 1e-9
    # 95 of 100 minus three standard deviations, and a margin for using only 300 resamples.
    assert num_held >= 87


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), objective=st.sampled_from(OBJECTIVES))
def test_swapping_the_sides_inverts_everything(seed: int, objective: str) -> None:
    rng = np.random.default_rng(seed)
    truth = truth_of(30)
    a, b = (scores_of(drawn(rng, rates, truth), truth)[None] for rates in ([0.95, 0.9, 0.9], [0.95, 0.9, 0.6]))
    one, other = (
        compare_under_stress(truth, CONDITIONS, *sides, objective, num_resamples=400) for sides in ((a, b), (b, a))
    )
    assert (one.interval.low, one.interval.high) == pytest.approx((-other.interval.high, -other.interval.low))
    assert {one.verdict, other.verdict} in (
        {"better", "worse"}, {"not distinguishable"}, {"cannot be decided"})  # fmt: skip


def judged(num_wrong_a: int, num_wrong_b: int) -> StressComparison:
    truth = np.arange(258) % 2 == 0
    a, b = with_wrong(truth, 1, 2, num_wrong_a), with_wrong(truth, 0, 2, num_wrong_b)
    return compare_under_stress(truth, CONDITIONS, a, b, "worst_stress")


def test_two_equal_models_are_not_distinguishable() -> None:
    found = judged(40, 40)
    assert (found.interval.low, found.interval.high, found.num_discordant) == (0, 0, 0)
    assert found.verdict == "cannot be decided"
    assert (
        "difference +0.0000 (paired bootstrap: the same on each resample, so without an interval)" in found.sentence()
    )
    rng = np.random.default_rng(0)
    truth = truth_of(129)
    a, b = (scores_of(drawn(rng, [0.99, 0.9, 0.8], truth), truth)[None] for _ in range(2))
    found = compare_under_stress(truth, CONDITIONS, a, b, "worst_stress")
    assert found.num_discordant > 6
    assert found.interval.low < 0 < found.interval.high
    assert found.verdict == "not distinguishable"
    assert "that does not make them equal." in found.sentence()


@pytest.mark.parametrize(
    ("num_a", "num_b", "verdict"),
    [(40, 45, "cannot be decided"), (40, 46, "better"), (46, 40, "worse"), (40, 100, "better")],
)
def test_boundaries_of_the_verdict(num_a: int, num_b: int, verdict: str) -> None:
    assert judged(num_a, num_b).verdict == verdict


def test_the_sentence_has_all_figures() -> None:
    text = judged(40, 100).sentence("the best configuration", "the documented one")
    interval = r"\+0\.\d{4} to \+0\.\d{4}"
    assert re.fullmatch(
        r"The best configuration is better than the documented one: worst_stress \(lowest balanced accuracy over 3 "
        rf"conditions\) on 258 images is 0\.8450 against 0\.6124, difference \+0\.2326 \(95 % interval {interval}, "
        r"paired bootstrap\); clean, the best configuration has 257/258 right and the documented one 258/258; at its "
        r"worst, the best configuration \(crop_70\) has 0\.8450 \(218/258, 95 % interval 0\.\d{4}-0\.\d{4}\) and the "
        r"documented one \(crop_70\) 0\.6124 \(158/258, 95 % interval 0\.\d{4}-0\.\d{4}\)\. worst_stress of single "
        r"seeds: the best configuration 0\.8450 \(1 seed\), the documented one 0\.6124 \(1 seed\)\. This is about "
        r"these two trained models, not about their configurations: for that, each needs at least 3 seeds\. These "
        r"images show a true difference in worst_stress of about 0\.0\d{3} or more in 80 % of cases\.",
        text,
    ), text


def test_seeds_are_averaged_before_they_decide() -> None:
    truth = truth_of(20)
    sure = np.where(truth, 0.9, 0.1)
    seeds = np.stack([np.stack([sure] * 3)] * 3)
    for seed in range(3):  # each seed is wrong about five other images, with less confidence
        own = slice(5 * seed, 5 * seed + 5)
        seeds[seed, 2, own] = np.where(truth[own], 0.4, 0.6)
    reference = np.concatenate([with_wrong(truth, 0, 0, 10)] * 3)
    found = compare_under_stress(truth, CONDITIONS, seeds, reference, "worst_stress")
    assert found.candidate.value == 1
    assert (found.seeds.candidate.low, found.seeds.candidate.high, found.seeds.num_seeds) == (0.875, 0.875, 3)
    assert found.verdict == "better"
    reference[0] = seeds[0]
    mixed = compare_under_stress(truth, CONDITIONS, seeds, reference, "worst_stress")
    assert mixed.interval.low > 0
    assert mixed.verdict == "not distinguishable"
    assert ", but the seeds of one side differ as much; that does not make them equal." in mixed.sentence()
    with pytest.raises(DataError, match="the sides have 3 and 1 seeds"):
        compare_under_stress(truth, CONDITIONS, seeds, reference[:1], "worst_stress")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"objective": "best_stress"}, ConfigError, "objective is 'best_stress', expected worst_stress or mean_stre"),
        ({"conditions": ("gray", "jpeg_50", "crop_70")}, DataError, "the clean images must be among them"),
        ({"conditions": ("clean", "crop_70")}, DataError, r"shape \(1, 3, 20\), expected \(num_runs, 2, 20\)"),
        ({"is_positive": np.ones(20, dtype=bool)}, DataError, "20 images under stress are all of one class"),
        ({"candidate_scores": np.full((1, 3, 20), np.nan)}, DataError, "20 of 20 scores are not probabilities"),
        ({"candidate_scores": np.zeros((3, 20))}, DataError, r"have shape \(3, 20\)"),
    ],
)
def test_a_comparison_refuses_invalid_input(changes: dict[str, object], error: type[Exception], message: str) -> None:
    truth = truth_of(10)
    arguments = {
        "is_positive": truth, "conditions": CONDITIONS, "candidate_scores": with_wrong(truth, 0, 1, 2),
        "reference_scores": with_wrong(truth, 0, 1, 2), "objective": "worst_stress",
    }  # fmt: skip
    with pytest.raises(error, match=message):
        compare_under_stress(**(arguments | changes))  # type: ignore[arg-type]
