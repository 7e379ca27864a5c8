"""The verdict rule against statsmodels, at its borders, and over seeds."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.comparison import PairedTest, compare, holm, mcnemar
from fakeface_lab.evaluation.inputs import BoolArray


def decisions(num_only_a: int, num_only_b: int, num_images: int = 258) -> tuple[BoolArray, BoolArray]:
    """Two sides that are right about everything but each other's images."""
    index = np.arange(num_images)
    return ~((index >= num_only_a) & (index < num_only_a + num_only_b)), ~(index < num_only_a)


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
def test_borders_of_the_verdict(num_only_a: int, num_only_b: int, verdict: str) -> None:
    assert mcnemar(*decisions(num_only_a, num_only_b)).verdict == verdict


def test_no_five_discordant_images_could_ever_decide() -> None:
    p_values = [mcnemar(*decisions(b, n - b)).p_value for n in range(6) for b in range(n + 1)]
    assert min(p_values) == pytest.approx(0.0625)


@given(hnp.arrays(np.bool_, (2, 40)))
def test_swapping_the_sides_turns_the_verdict_around(sides: BoolArray) -> None:
    opposite = {"better": "worse", "worse": "better"}
    there, back = mcnemar(sides[0], sides[1]), mcnemar(sides[1], sides[0])
    assert back.verdict == opposite.get(there.verdict, there.verdict)
    assert back.p_value == there.p_value


def test_false_verdicts_stay_below_five_percent() -> None:
    rng = np.random.default_rng(0)
    correct = rng.random((2000, 2, 258)) < 0.9
    wrong = sum(mcnemar(a, b).verdict in ("better", "worse") for a, b in correct)
    assert 0.02 < wrong / 2000 < 0.055


def test_sentences() -> None:
    assert mcnemar(*decisions(8, 1)).sentence("trial 7", "the baseline") == (
        "trial 7 is better than the baseline: of 258 images 8 are right with trial 7 alone, 1 with the baseline "
        "alone (exact McNemar, p = 0.039)."
    )
    assert mcnemar(*decisions(1, 0)).sentence("A", "B") == (
        "Whether A is better than B cannot be decided on this test set: of 258 images 1 are right with A alone, "
        "0 with B alone; at least 6 such images are needed."
    )
    equal = mcnemar(*decisions(5, 5)).sentence("A", "B")
    assert equal.startswith("A and B are not distinguishable:")
    assert equal.endswith("that does not make them equal.")
    assert mcnemar(*decisions(0, 6)).sentence("A", "B").startswith("A is worse than B:")


def test_compare_decides_on_the_mean_of_the_seeds() -> None:
    truth = np.arange(20) < 10
    sure, unsure = np.where(truth, 0.9, 0.1), np.where(truth, 0.4, 0.6)
    # The first seed is wrong about everything, but less sure of it than the second is of the opposite.
    found = compare(truth, np.stack([unsure, sure]), unsure[None])
    assert (found.test.num_only_a, found.test.num_only_b) == (20, 0)
    assert found.verdict == "better"
    assert (found.candidate_seeds.low, found.candidate_seeds.high) == (0.0, 1.0)
    assert (found.num_candidate_seeds, found.num_reference_seeds) == (2, 1)
    assert found.sentence("the winner", "the baseline") == (
        "The winner is better than the baseline: of 20 images 20 are right with the winner alone, "
        "0 with the baseline alone (exact McNemar, p = 1.9e-06). Accuracy of single seeds: "
        "the winner 0.0000 to 1.0000 (2 seeds), the baseline 0.0000 (1 seed)."
    )


def test_more_seeds_are_not_more_images() -> None:
    truth = np.arange(258) < 140
    reference = np.where(truth, 0.9, 0.1)
    candidate = reference.copy()
    reference[:4] = 0.1
    once = compare(truth, candidate[None], reference[None])
    often = compare(truth, np.tile(candidate, (10, 1)), np.tile(reference, (10, 1)))
    assert once.test == often.test
    assert often.verdict == "cannot be decided"


def test_compare_carries_the_threshold_over() -> None:
    truth = np.arange(20) < 10
    scores = np.where(truth, 0.35, 0.1)
    assert compare(truth, scores[None], np.full((1, 20), 0.1), threshold=0.3).verdict == "better"
    assert compare(truth, scores[None], np.full((1, 20), 0.1)).verdict == "cannot be decided"


# statsmodels collects garbage in each call, which is slow with much imported.
@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_an_adjusted_p_value_carries_into_the_verdict() -> None:
    tests = [mcnemar(*decisions(8, 1)), mcnemar(*decisions(7, 6)), mcnemar(*decisions(20, 1))]
    adjusted = [replace(test, p_value=p) for test, p in zip(tests, holm([t.p_value for t in tests]), strict=True)]
    assert [test.verdict for test in tests] == ["better", "not distinguishable", "better"]
    assert [test.verdict for test in adjusted] == ["not distinguishable", "not distinguishable", "better"]
    assert isinstance(adjusted[0], PairedTest)


@pytest.mark.parametrize("p_values", [[0.5, float("nan")], [1.2], [-0.1]])
def test_holm_refuses_what_is_no_p_value(p_values: list[float]) -> None:
    with pytest.raises(DataError, match="allowed is 0 to 1"):
        holm(p_values)


@pytest.mark.parametrize(
    ("candidate", "reference", "message"),
    [
        ([0.1, 0.9], [[0.1, 0.9]], r"candidate_scores have shape \(2,\), needed is \(num_seeds, 2\)"),
        ([[0.1, 0.9]], np.zeros((0, 2)), r"reference_scores have shape \(0, 2\)"),
        ([[0.1, 0.9, 0.2]], [[0.1, 0.9]], "pass one score per image"),
        ([[0.1, 0.9], [0.1, np.nan]], [[0.1, 0.9]], "1 of 2 scores are no probability"),
    ],
)
def test_compare_refuses(candidate: Any, reference: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare([False, True], candidate, reference)


def test_mcnemar_refuses_what_is_not_paired() -> None:
    with pytest.raises(DataError, match="is_correct_b has 3 images, the others have 2"):
        mcnemar([True, False], [True, False, True])
    with pytest.raises(DataError, match="needed is bool"):
        mcnemar([1, 0], [1, 0])
    with pytest.raises(ConfigError, match="threshold is"):
        compare([True], [[0.5]], [[0.5]], threshold=50)
