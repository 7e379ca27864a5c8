"""The correction against simulated searches with a known truth, the expected best against all subsets."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.selection import (
    SearchRange,
    SelectedScore,
    edge_values,
    expected_best,
    selection_corrected,
)


def test_thirty_equal_trials_are_corrected_to_their_truth() -> None:
    rng = np.random.default_rng(0)
    found = [selection_corrected(rng.random((258, 30)) < 0.985, num_resamples=200, seed=i) for i in range(60)]
    assert np.mean([f.naive for f in found]) == pytest.approx(0.9977, abs=0.0008)
    assert np.mean([f.corrected for f in found]) == pytest.approx(0.985, abs=0.0015)


def test_the_pick_of_the_epoch_is_corrected_too() -> None:
    """14 equal trials of 10 epochs that partly agree on which images are hard; each keeps its best epoch."""
    rng = np.random.default_rng(0)
    found, kept_only = [], []
    for seed in range(40):
        shared, of_trial, own = (rng.standard_normal((207, *shape)) for shape in ((1, 1), (14, 1), (14, 10)))
        is_right = np.sqrt(0.5) * shared + np.sqrt(0.2) * of_trial + np.sqrt(0.3) * own < stats.norm.ppf(0.97)
        kept = is_right.mean(axis=0).argmax(axis=1)
        found.append(selection_corrected(is_right.reshape(207, -1), num_trials=14, num_resamples=100, seed=seed))
        kept_only.append(selection_corrected(is_right[:, np.arange(14), kept], num_resamples=100, seed=seed))
        assert found[-1].naive == kept_only[-1].naive, "the best of all columns is the best trial's best epoch"
    assert np.mean([f.corrected for f in found]) == pytest.approx(0.97, abs=0.005)
    assert np.mean([f.corrected for f in kept_only]) > 0.975, "without the epochs half of the luck is left in"
    assert str(found[0]).startswith("best of 14 trials and their 140 epochs on 207 images: ")
    assert "corrected for the selection of trial and epoch, conservative" in str(found[0])


def test_no_correction_makes_a_score_better() -> None:
    kwargs = {"low": 0.6, "high": 0.8, "num_trials": 2, "num_epochs": None, "num_images": 9}
    for naive, held_out, maximize in ((0.6772, 0.6822, True), (0.30, 0.29, False)):
        capped = SelectedScore(naive=naive, held_out=held_out, maximize=maximize, **kwargs)  # type: ignore[arg-type]
        assert (capped.is_more_than_found, capped.corrected) == (True, naive)
        assert f"{naive:.4f} as found, nothing to take off for the selection of the trial; that of" in str(capped)
        assert f"(on held-out images it is {held_out:.4f}, no worse: " in str(capped)
        plain = SelectedScore(naive=naive, held_out=held_out, maximize=not maximize, **kwargs)  # type: ignore[arg-type]
        assert (plain.is_more_than_found, plain.corrected) == (False, held_out)


def test_a_lowest_figure_may_be_corrected_upwards_and_says_why() -> None:
    found = SelectedScore(0.6772, 0.6822, 0.58, 0.76, 12, None, 207, is_lowest=True)
    assert found.corrected == 0.6822
    assert "0.6772 as found, 0.6822 corrected for the selection of the trial; that of its epoch is not cov" in str(
        found
    )
    assert "(more than was found, because the lowest of several conditions is too low by chance)" in str(found)


def test_a_trial_that_is_truly_better_keeps_its_score() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random((500, 10)) < np.where(np.arange(10) == 4, 0.95, 0.7)
    found = selection_corrected(scores)
    assert found.naive == scores[:, 4].mean()
    assert found.corrected == pytest.approx(found.naive, abs=0.002)
    assert found.low < found.corrected < found.high


def test_one_trial_needs_no_correction() -> None:
    scores = np.random.default_rng(2).random((400, 1)) < 0.9
    found = selection_corrected(scores)
    assert found.corrected == pytest.approx(found.naive, abs=0.002)
    assert found.num_trials == 1


def test_interval_contains_the_truth_as_often_as_stated() -> None:
    rng = np.random.default_rng(3)
    found = [selection_corrected(rng.random((200, 10)) < 0.8, num_resamples=200) for _ in range(100)]
    assert sum(f.low <= 0.8 <= f.high for f in found) >= 95
    # Only a third of the images is left out each time, so the interval is wider than 95 % requires.
    assert np.mean([f.high - f.low for f in found]) > 1.3 * 2 * 1.96 * np.sqrt(0.8 * 0.2 / 200)


def test_lower_is_better_for_a_loss() -> None:
    losses = np.random.default_rng(4).exponential(size=(258, 20))
    down, up = selection_corrected(losses, maximize=False), selection_corrected(-losses)
    assert down.naive == losses.mean(axis=0).min()
    assert down.naive < down.corrected
    assert down.corrected == pytest.approx(-up.corrected)
    assert not down.is_more_than_found
    assert (down.low, down.high) == pytest.approx((-up.high, -up.low))


def test_order_and_copies_of_trials_do_not_matter() -> None:
    scores = np.random.default_rng(5).random((60, 8)) < 0.9
    one = selection_corrected(scores)
    assert selection_corrected(scores[:, ::-1]).corrected == pytest.approx(one.corrected)
    assert selection_corrected(np.repeat(scores, 3, axis=1)).corrected == pytest.approx(one.corrected)


def test_result_is_described_and_reproducible() -> None:
    scores = np.random.default_rng(6).random((258, 30)) < 0.985
    found = selection_corrected(scores, seed=1)
    assert found == selection_corrected(scores, seed=1)
    assert found != selection_corrected(scores, seed=2)
    assert str(found).startswith(f"best of 30 trials on 258 images: {found.naive:.4f} as found, ")
    assert f"{found.corrected:.4f} corrected for the selection of the trial; that of its epoch is not" in str(found)
    assert str(found).endswith(f", conservative 95 % interval {found.low:.4f}-{found.high:.4f}")


def test_two_images_are_enough_to_run() -> None:
    assert selection_corrected([[1.0], [0.0]], num_resamples=200).corrected == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros(3), r"shape \(3,\), expected \(num_images, num_columns\)"),
        (np.zeros((1, 3)), "at least 2 images"),
        (np.zeros((3, 0)), r"shape \(3, 0\)"),
        (np.full((3, 2), np.nan), "leave out the trials"),
    ],
)
def test_correction_refuses_bad_scores(scores: np.ndarray[tuple[int, ...], np.dtype[np.float64]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        selection_corrected(scores)
    with pytest.raises(ConfigError, match="confidence is 95"):
        selection_corrected(np.zeros((3, 2)), confidence=95)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.booleans())
def test_expected_best_is_the_mean_over_all_subsets(scores: list[float], maximize: bool) -> None:
    best = max if maximize else min
    expected = [np.mean([best(subset) for subset in combinations(scores, n)]) for n in range(1, len(scores) + 1)]
    assert expected_best(scores, "random", maximize) == pytest.approx(expected, abs=1e-9)


def test_expected_best_of_thousands_of_trials_does_not_overflow() -> None:
    scores = (np.arange(3000) + 0.5) / 3000
    found = expected_best(scores, "random")
    # The mean of the largest of n uniform draws is n / (n + 1).
    assert found[:20] == pytest.approx(np.arange(1, 21) / np.arange(2, 22), abs=1e-3)
    assert found[-1] == pytest.approx(scores.max())
    assert np.all(np.diff(found) >= -1e-9)


@pytest.mark.parametrize("algorithm", ["bayesian", "hyperband", "grid", ""])
def test_expected_best_refuses_trials_that_are_not_independent_draws(algorithm: str) -> None:
    with pytest.raises(ConfigError, match="not independent draws; expected 'random'"):
        expected_best([0.5, 0.6], algorithm)


@pytest.mark.parametrize("scores", [[], [[0.5]], [0.5, float("nan")]])
def test_expected_best_refuses_invalid_scores(scores: list[float]) -> None:
    with pytest.raises(DataError, match="trial scores"):
        expected_best(scores, "random")


@pytest.mark.parametrize(
    ("value", "searched", "side"),
    [
        (0.1, SearchRange(0.0, 1.0), "low"),
        (0.11, SearchRange(0.0, 1.0), None),
        (0.9, SearchRange(0.0, 1.0), "high"),
        (0.3, SearchRange(0.25, 0.75), "low"),
        (0.7, SearchRange(0.25, 0.75), "high"),
        (0.035, SearchRange(0.0, 0.35), "low"),
        (1e-4, SearchRange(1e-5, 1e-2, is_log=True), None),
        (1e-4, SearchRange(1e-5, 1e-2), "low"),
        (1.9e-5, SearchRange(1e-5, 1e-2, is_log=True), "low"),
        (6e-3, SearchRange(1e-5, 1e-2, is_log=True), "high"),
        (16, SearchRange(16, 128), "low"),
        (32, SearchRange(32, 32), None),
    ],
)
def test_edges(value: float, searched: SearchRange, side: str | None) -> None:
    found = edge_values({"x": value}, {"x": searched})
    assert [edge.side for edge in found] == ([] if side is None else [side])


def test_edges_are_named_and_choices_ignored() -> None:
    best = {"learning_rate": 1e-2, "filters_1": 32, "batch_size": 8}
    ranges = {"learning_rate": SearchRange(1e-5, 1e-2, is_log=True), "filters_1": SearchRange(16, 64)}
    found = edge_values(best, ranges)
    assert [str(edge) for edge in found] == [
        "learning_rate = 0.01 is at the high edge of 1e-05 to 0.01; widen the range upwards"
    ]


@pytest.mark.parametrize(
    ("value", "searched", "message"),
    [
        (2.0, SearchRange(0, 1), "x = 2.0 lies outside its range 0 to 1"),
        (float("nan"), SearchRange(0, 1), "lies outside"),
        (0.5, SearchRange(1, 0), "range of x is 1 to 0, expected low < high"),
        (0.5, SearchRange(0, 1, is_log=True), "expected 0 < low < high"),
    ],
)
def test_edges_refuse_invalid_ranges(value: float, searched: SearchRange, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        edge_values({"x": value}, {"x": searched})
