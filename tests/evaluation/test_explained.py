"""The explained share at and between its ends, without one, and the sentence about it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.explanation import explain_by_probe, explained_share
from fakeface_lab.evaluation.intervals import wilson
from fakeface_lab.evaluation.probes import ProbeResult

LABELS = np.repeat([0, 1], [140, 118])


def thumbnail_probe(num_correct: int) -> ProbeResult:
    """A probe that is right about the first images."""
    is_correct = np.arange(258) < num_correct
    scores = np.where(is_correct == (LABELS == 0), 0.9, 0.1)
    return ProbeResult("thumbnail", "shortcut", "16x16 thumbnails", wilson(num_correct, 258), 0.5, scores)


def right_about(num_correct: int) -> NDArray[np.bool_]:
    """A model that is right about the last images."""
    return np.asarray(np.arange(258) >= 258 - num_correct)


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


def test_share_is_reported_if_the_accuracy_is_above_chance() -> None:
    found = explain_by_probe(thumbnail_probe(236), LABELS, right_about(257))
    assert found.share == pytest.approx((236 - 140) / (257 - 140))
    assert found.interval is not None
    low, high = found.interval.low, found.interval.high
    assert found.sentence == (
        f"A simple model that sees only 16x16 thumbnails has 0.82 of the accuracy above chance (95 % interval "
        f"{low:.2f}-{high:.2f}; 0.915 against 0.996, chance 0.543): most of this accuracy does not require looking at "
        f"faces."
    )
    assert found.metrics() == {
        "majority_accuracy": 140 / 258,
        "explained_share": found.share,
        "explained_share_low": low,
        "explained_share_high": high,
    }


@pytest.mark.parametrize(("num_by_probe", "num_by_model"), [(236, 257), (200, 220), (150, 240)])
def test_interval_is_that_of_a_paired_bootstrap_of_the_images(num_by_probe: int, num_by_model: int) -> None:
    probe, model = thumbnail_probe(num_by_probe), right_about(num_by_model)
    columns = ((probe.scores > 0.5) == (LABELS == 0), model, LABELS == 0)

    def share(of_probe: NDArray[np.bool_], of_model: NDArray[np.bool_], by_chance: NDArray[np.bool_]) -> float:
        gain = of_model.mean() - by_chance.mean()
        return float(np.clip((of_probe.mean() - by_chance.mean()) / gain, 0, 1))

    expected = bootstrap(
        columns,
        share,
        paired=True,
        vectorized=False,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = explain_by_probe(probe, LABELS, model).interval
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.025)


@pytest.mark.parametrize(
    ("num_correct_by_probe", "end"),
    [(257, ": this accuracy does not show that faces were looked at."), (150, "chance 0.543).")],
)
def test_consequence_follows_from_the_share(num_correct_by_probe: int, end: str) -> None:
    assert explain_by_probe(thumbnail_probe(num_correct_by_probe), LABELS, right_about(257)).sentence.endswith(end)


def test_accuracy_whose_interval_holds_the_majority_is_not_better_than_chance() -> None:
    accuracy = wilson(150, 258)  # ten images more than chance gets right
    assert accuracy.low < 140 / 258 < accuracy.value
    found = explain_by_probe(thumbnail_probe(145), LABELS, right_about(150))
    assert found.share is None
    assert found.metrics() == {"majority_accuracy": 140 / 258}
    assert found.sentence == (
        "An accuracy of 0.5814 (150/258, 95 % interval 0.5204-0.6400) is not better than always naming the "
        "larger class (0.543). A simple model that sees only 16x16 thumbnails is right on 0.562 of the same images."
    )


@given(st.integers(0, 258))
def test_no_share_without_an_accuracy_above_chance(num_correct: int) -> None:
    found = explain_by_probe(thumbnail_probe(258), LABELS, right_about(num_correct))
    interval = binomtest(num_correct, 258).proportion_ci(0.95, method="wilson")
    assert (found.share is not None) == (interval.low > 140 / 258)
    assert ("not better than always naming" in found.sentence) == (found.share is None)


def test_decisions_about_other_images_are_refused() -> None:
    with pytest.raises(DataError, match="is_correct has 257 images, the others have 258"):
        explain_by_probe(thumbnail_probe(200), LABELS, right_about(200)[1:])
