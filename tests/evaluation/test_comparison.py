"""The verdict rule against statsmodels, at its boundaries, and over seeds."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.metrics import log_loss as sklearn_log_loss
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.comparison import Comparison, adjusted, compare, mcnemar
from fakeface_lab.evaluation.intervals import BoolArray, FloatArray


def decisions(num_only_a: int, num_only_b: int, num_images: int = 258) -> tuple[BoolArray, BoolArray]:
    """Two sides, each wrong about exactly the images that only the other has right."""
    index = np.arange(num_images)
    return ~((index >= num_only_a) & (index < num_only_a + num_only_b)), ~(index < num_only_a)


@settings(deadline=None)  # statsmodels collects garbage in each call
@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 30), st.integers(1, 30))
def test_p_value_is_that_of_statsmodels(only_a: int, only_b: int, neither: int, both: int) -> None:
    a = np.repeat([True, False, False, True], [only_a, only_b, neither, both])
    b = np.repeat([False, True, False, True], [only_a, only_b, neither, both])
    found = mcnemar(a, b)
    table = [[both, only_a], [only_b, neither]]
    assert (found.num_only_a, found.num_only_b) == (only_a, only_b)
    assert found.p_value == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)


@pytest.mark.parametrize(
    ("num_only_a", "num_only_b", "verdict"),
    [
        (0, 0, "cannot be decided"),
        (1, 0, "cannot be decided"),
        (5, 0, "cannot be decided"),
        (0, 5, "cannot be decided"),
        (6, 0, "better"),
        (0, 6, "worse"),
        (6, 1, "not distinguishable"),
        (8, 1, "better"),
        (1, 8, "worse"),
        (5, 5, "not distinguishable"),
    ],
)
def test_boundaries_of_the_verdict(num_only_a: int, num_only_b: int, verdict: str) -> None:
    assert mcnemar(*decisions(num_only_a, num_only_b)).verdict == verdict


def test_no_five_discordant_images_could_ever_decide() -> None:
    p_values = [mcnemar(*decisions(b, n - b)).p_value for n in range(6) for b in range(n + 1)]
    assert min(p_values) == pytest.approx(0.0625)


@given(hnp.arrays(np.bool_, (2, 40)))
def test_swapping_the_sides_inverts_the_verdict(sides: BoolArray) -> None:
    opposite = {"better": "worse", "worse": "better"}
    there, back = mcnemar(sides[0], sides[1]), mcnemar(sides[1], sides[0])
    assert back.verdict == opposite.get(there.verdict, there.verdict)
    assert back.p_value == there.p_value


def test_false_verdicts_stay_below_five_percent() -> None:
    rng = np.random.default_rng(0)
    correct = rng.random((2000, 2, 258)) < 0.9
    wrong = sum(mcnemar(a, b).verdict in ("better", "worse") for a, b in correct)
    assert 0.02 < wrong / 2000 < 0.055


def scores_of(is_correct: BoolArray, truth: BoolArray) -> FloatArray:
    """Probabilities with these decisions."""
    scores: FloatArray = np.where(is_correct == truth, 0.9, 0.1)
    return scores


def compared(num_only_a: int, num_only_b: int, num_seeds: int = 1) -> Comparison:
    """Two sides whose seeds are identical."""
    truth = np.arange(258) % 2 == 0
    a, b = (np.tile(scores_of(side, truth), (num_seeds, 1)) for side in decisions(num_only_a, num_only_b, truth.size))
    return compare(truth, a, b, num_resamples=200)


def test_the_sentence_has_all_figures() -> None:
    assert re.fullmatch(
        r"Trial 7 is better than the baseline: of 258 images 20 are right with trial 7 alone, 1 with the baseline "
        r"alone \(exact McNemar, p = 2.1e-05\)\. Accuracy of single seeds: trial 7 0\.9961 to 0\.9961 \(3 seeds\), the "
        r"baseline 0\.9225 to 0\.9225 \(3 seeds\) \(exact rank-sum test, p = 0\.1\)\. 258 images show a true "
        r"difference in error rate of 0\.0\d+ or more in 80 % of cases\. Log loss 0\.1139 against 0\.2757, difference "
        r"-0\.1618 \(95 % interval -0\.2\d+ to -0\.1\d+, paired bootstrap over the images; lower is better\)\.",
        compared(20, 1, num_seeds=3).sentence("trial 7", "the baseline"),
    )
    undecided = compared(1, 0).sentence("A", "B")
    assert undecided.startswith(
        "Whether A is better than B cannot be decided on this test set: of 258 images 1 are right with A alone, "
        "0 with B alone; at least 6 such images are needed. "
    )
    equal = compared(5, 5).sentence("A", "B")
    assert equal.startswith("A and B are not distinguishable:")
    assert "; that does not make them equal. " in equal
    assert compared(0, 6).sentence("A", "B").startswith("A is worse than B:")


@pytest.mark.parametrize("num_seeds", [1, 2, 3])
def test_few_seeds_are_about_models_not_configurations(num_seeds: int) -> None:
    caution = "about these two trained models, not about their configurations: for that, each needs at least 3 seeds."
    assert (caution in compared(20, 1, num_seeds).sentence()) is (num_seeds < 3)


def test_compare_decides_on_the_mean_of_the_seeds() -> None:
    truth = np.arange(20) < 10
    sure, unsure = np.where(truth, 0.9, 0.1), np.where(truth, 0.4, 0.6)
    # The first seed is wrong about everything, but less confident than the second, which is right.
    found = compare(truth, np.stack([unsure, sure]), np.stack([unsure, unsure]))
    assert (found.test.num_only_a, found.test.num_only_b) == (20, 0)
    assert (found.seeds.candidate.low, found.seeds.candidate.high, found.seeds.num_seeds) == (0.0, 1.0, 2)
    assert found.test.verdict == "better"
    # One of its seeds is as bad as the reference's.
    assert found.verdict == "not distinguishable"
    assert "(exact McNemar, p = 1.9e-06), but the seeds of one side differ as much; that" in found.sentence()


def test_a_difference_within_the_seeds_gives_no_verdict() -> None:
    truth = np.arange(258) % 2 == 0

    def side(*num_wrong: int) -> FloatArray:
        return np.stack([scores_of(np.arange(258) >= num, truth) for num in num_wrong])

    apart, mixed = compare(truth, side(1, 1, 2), side(11, 12, 12)), compare(truth, side(1, 1, 12), side(11, 12, 12))
    assert (apart.test.verdict, apart.verdict) == ("better", "better")
    assert apart.seeds.p_value == pytest.approx(0.1)
    assert (mixed.test.verdict, mixed.verdict) == ("better", "not distinguishable")
    assert compare(truth, side(11, 12, 12), side(1, 1, 2)).verdict == "worse"


def test_more_seeds_are_not_more_images() -> None:
    once, often = compared(4, 0), compared(4, 0, num_seeds=10)
    assert once.test == often.test
    assert often.verdict == "cannot be decided"
    assert compared(6, 0).test.verdict == "better", "two images more would have decided it"


def test_sides_of_unequal_numbers_of_seeds_are_refused() -> None:
    truth = np.arange(20) < 10
    scores = np.where(truth, 0.9, 0.1)
    with pytest.raises(DataError, match="the sides have 3 and 1 seeds: compare equal numbers of seeds"):
        compare(truth, np.tile(scores, (3, 1)), scores[None])


def test_log_loss_is_that_of_sklearn_and_its_interval_that_of_a_t_test() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.5
    a, b = (np.clip(np.where(truth, 0.7, 0.3) + rng.normal(0, spread, 400), 0.01, 0.99) for spread in (0.1, 0.15))
    found = compare(truth, a[None], b[None]).log_loss
    assert (found.candidate, found.reference) == pytest.approx((sklearn_log_loss(truth, a), sklearn_log_loss(truth, b)))
    of_truth = [np.where(truth, side, 1 - side) for side in (a, b)]
    differences = np.log(of_truth[1]) - np.log(of_truth[0])
    expected = stats.ttest_1samp(differences, 0).confidence_interval()
    assert found.interval is not None
    width = float(expected.high - expected.low)
    assert (found.interval.low, found.interval.high) == pytest.approx((expected.low, expected.high), abs=0.1 * width)
    swapped = compare(truth, b[None], a[None]).log_loss
    assert swapped.interval is not None
    assert swapped.interval.low == pytest.approx(-found.interval.high, abs=0.05 * width)
    assert compare(truth, a[None], a[None]).log_loss.interval is None


def test_compare_carries_the_threshold_over() -> None:
    truth = np.arange(20) < 10
    scores = np.where(truth, 0.35, 0.1)
    assert compare(truth, scores[None], np.full((1, 20), 0.1), threshold=0.3).verdict == "better"
    assert compare(truth, scores[None], np.full((1, 20), 0.1)).verdict == "cannot be decided"


def test_an_adjusted_p_value_changes_the_verdict() -> None:
    single = [compared(8, 1), compared(7, 6), compared(20, 1)]
    several = adjusted(single)
    assert [found.verdict for found in single] == ["better", "not distinguishable", "better"]
    assert [found.verdict for found in several] == ["not distinguishable", "not distinguishable", "better"]
    expected = multipletests([found.test.p_value for found in single], method="holm")[1]
    assert [found.test.p_value for found in several] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("others", "needed"),
    [([], 6), ([(0, 0)], 7), ([(5, 5)], 7), ([(20, 0)], 6), ([(0, 0), (1, 0)], 7), ([(0, 0)] * 4, 8)],
)
def test_the_required_number_of_images_can_be_significant(others: list[tuple[int, int]], needed: int) -> None:
    found = adjusted([compared(0, 0), *(compared(*other) for other in others)])[0]
    assert f"; at least {needed} such images are needed." in found.sentence()
    reached = [adjusted([compared(n, 0), *(compared(*other) for other in others)])[0].verdict for n in range(1, 10)]
    assert reached.index("better") + 1 == needed, "so many decide, one fewer never does"
    assert set(reached[: needed - 1]) == {"cannot be decided"}


@pytest.mark.parametrize(
    ("candidate", "reference", "message"),
    [
        ([0.1, 0.9], [[0.1, 0.9]], r"candidate_scores have shape \(2,\), expected \(num_seeds, 2\)"),
        ([[0.1, 0.9]], np.zeros((0, 2)), r"reference_scores have shape \(0, 2\)"),
        ([[0.1, 0.9, 0.2]], [[0.1, 0.9]], "pass one score per image"),
        ([[0.1, 0.9], [0.1, np.nan]], [[0.1, 0.9]], "1 of 2 scores are not probabilities"),
    ],
)
def test_compare_refuses_invalid_input(candidate: Any, reference: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare([False, True], candidate, reference)


def test_mcnemar_refuses_unpaired_decisions() -> None:
    with pytest.raises(DataError, match="is_correct_b has 3 images, the others have 2"):
        mcnemar([True, False], [True, False, True])
    with pytest.raises(DataError, match="expected bool"):
        mcnemar([1, 0], [1, 0])
    with pytest.raises(ConfigError, match="threshold is"):
        compare([True], [[0.5]], [[0.5]], threshold=50)
