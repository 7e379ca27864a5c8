"""The explained share at its ends, between them, and where there is none; and what is said of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.explained import explain, explained_share
from fakeface_lab.evaluation.intervals import wilson
from fakeface_lab.evaluation.probes import ProbeResult


def thumbnail_probe(num_correct: int, num_total: int) -> ProbeResult:
    accuracy = wilson(num_correct, num_total)
    return ProbeResult("thumbnail", "shortcut", "16x16 thumbnails", accuracy, 0.5, np.zeros(num_total))


@pytest.mark.parametrize(("probe", "share"), [(0.5, 0.0), (0.7, 0.5), (0.9, 1.0), (0.3, 0.0), (0.99, 1.0)])
def test_share_of_a_gain_from_half_to_nine_tenths(probe: float, share: float) -> None:
    assert explained_share(probe, accuracy=0.9, majority=0.5) == pytest.approx(share)


@pytest.mark.parametrize("accuracy", [0.543, 0.4])
def test_nothing_to_explain_at_or_below_the_majority(accuracy: float) -> None:
    assert explained_share(0.9, accuracy, majority=0.543) is None


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_share_is_a_share(probe: float, accuracy: float, majority: float) -> None:
    share = explained_share(probe, accuracy, majority)
    assert (share is None) == (accuracy <= majority)
    assert share is None or 0 <= share <= 1


@pytest.mark.parametrize("bad", [-0.1, 99.6, float("nan")])
def test_percentages_and_nan_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match=r"probe_accuracy is .* not a percentage"):
        explained_share(bad, 0.9, 0.5)
    with pytest.raises(DataError, match=r"^accuracy is"):
        explained_share(0.9, bad, 0.5)
    with pytest.raises(DataError, match="majority is"):
        explained_share(0.9, 0.9, bad)


def test_share_is_told_where_the_accuracy_is_above_chance() -> None:
    share, sentence = explain(thumbnail_probe(236, 258), wilson(257, 258), majority=140 / 258)
    assert share == pytest.approx((236 - 140) / (257 - 140))
    assert sentence == (
        "A linear model that sees only 16x16 thumbnails has 0.82 of the accuracy above chance (0.915 against 0.996, "
        "chance 0.543): most of this accuracy needs no look at faces."
    )


@pytest.mark.parametrize(
    ("num_correct_by_probe", "end"),
    [(257, ": this accuracy does not show that faces were looked at."), (150, "chance 0.543).")],
)
def test_consequence_follows_from_the_share(num_correct_by_probe: int, end: str) -> None:
    assert explain(thumbnail_probe(num_correct_by_probe, 258), wilson(257, 258), 140 / 258)[1].endswith(end)


def test_accuracy_whose_interval_holds_the_majority_is_not_better_than_chance() -> None:
    accuracy = wilson(150, 258)  # ten images more than chance gets right
    assert accuracy.low < 140 / 258 < accuracy.value
    share, sentence = explain(thumbnail_probe(145, 258), accuracy, 140 / 258)
    assert share is None
    assert sentence == (
        "An accuracy of 0.5814 (150/258, 95 % interval 0.5204-0.6400) is not better than chance, always naming the "
        "larger class (0.543). A linear model that sees only 16x16 thumbnails is right on 0.562 of the same images."
    )


@given(st.integers(1, 300).flatmap(lambda total: st.tuples(st.just(total), st.integers(0, total))), st.floats(0.5, 1))
def test_no_share_without_an_accuracy_above_chance(counts: tuple[int, int], majority: float) -> None:
    num_total, num_correct = counts
    share, sentence = explain(thumbnail_probe(num_total, num_total), wilson(num_correct, num_total), majority)
    interval = binomtest(num_correct, num_total).proportion_ci(0.95, method="wilson")
    assert (share is not None) == (interval.low > majority)
    assert ("not better than chance" in sentence) == (share is None)
