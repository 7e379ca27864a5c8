"""Power by simulation and by hand, the rank-sum test of seeds against SciPy, Holm against statsmodels."""

from collections import Counter
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import binom
from statsmodels.stats.multitest import multipletests

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.comparison import mcnemar
from fakeface_lab.evaluation.significance import detectable_difference, holm, mcnemar_power, seed_test


@pytest.mark.parametrize(
    ("num_images", "error_rate_a", "error_rate_b", "alpha"),
    [(258, 0.005, 0.02, 0.05), (258, 0.005, 0.04, 0.05), (100, 0.1, 0.3, 0.05), (100, 0.1, 0.3, 0.01)],
)
def test_power_is_that_of_simulated_models(
    num_images: int, error_rate_a: float, error_rate_b: float, alpha: float
) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random((4000, num_images)) >= rate for rate in (error_rate_a, error_rate_b))
    tests = [mcnemar(*pair) for pair in zip(a, b, strict=True)]
    seen = np.mean([test.p_value < alpha and test.num_only_a > test.num_only_b for test in tests])
    expected = mcnemar_power(num_images, error_rate_a, error_rate_b, alpha)
    assert seen == pytest.approx(expected, abs=3 * np.sqrt(0.25 / 4000))


def test_a_model_without_errors_by_hand() -> None:
    # All discordant images are on one side: any six or more of them are significant.
    assert mcnemar_power(258, 0.0, 0.03) == pytest.approx(binom.sf(5, 258, 0.03))
    assert mcnemar_power(258, 0.0, 0.0) == 0
    assert mcnemar_power(5, 0.0, 1.0) == 0
    # A p-value of exactly 0.0625 is not below 0.0625.
    assert mcnemar_power(5, 0.0, 1.0, alpha=0.0625) == 0
    assert mcnemar_power(5, 0.0, 1.0, alpha=0.0626) == pytest.approx(1)


@pytest.mark.parametrize("error_rate", [0.0, 1 / 258, 0.05, 0.4])
@pytest.mark.parametrize("alpha", [0.05, 0.025])
def test_the_smallest_difference_is_seen_in_80_of_100_cases(error_rate: float, alpha: float) -> None:
    found = detectable_difference(258, error_rate, alpha)
    assert found is not None
    assert mcnemar_power(258, error_rate, error_rate + found, alpha) == pytest.approx(0.8, abs=1e-3)


def test_more_images_and_fewer_errors_show_smaller_differences() -> None:
    by_images = [detectable_difference(number, 0.01) or 1.0 for number in (20, 100, 258, 1000, 10_000)]
    assert by_images == sorted(by_images, reverse=True)
    by_errors = [detectable_difference(258, rate) or 1.0 for rate in (0.0, 0.02, 0.1, 0.3)]
    assert by_errors == sorted(by_errors)
    assert detectable_difference(5, 0.0) is None


def test_an_invalid_rate_is_refused() -> None:
    with pytest.raises(DataError, match=r"0 images with error rates 0\.1 and 0\.2: expected at least one image"):
        mcnemar_power(0, 0.1, 0.2)
    with pytest.raises(DataError, match="rates from 0 to 1"):
        mcnemar_power(10, 0.1, 1.2)
    with pytest.raises(ConfigError, match="power is 80"):
        detectable_difference(10, 0.1, power=80)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=4, max_size=12, unique=True))
def test_without_ties_it_is_the_mann_whitney_test(figures: list[int]) -> None:
    half = len(figures) // 2
    a, b = figures[:half], figures[half : 2 * half]
    assert seed_test(a, b).p_value == pytest.approx(stats.mannwhitneyu(a, b, method="exact").pvalue)


def test_ties_by_hand() -> None:
    # Of the 20 ways to pick three of 0 1 2 2 3 4, two have a rank sum as low as that of 0 1 2.
    assert seed_test([0, 1, 2], [2, 3, 4]).p_value == pytest.approx(4 / 20)
    assert not seed_test([0, 1, 2], [2, 3, 4]).is_separated
    assert seed_test([1, 1, 1], [1, 1, 1]).p_value == 1


@pytest.mark.parametrize("num_seeds", [2, 3, 4, 5])
def test_seeds_are_separated_at_the_smallest_p_value_or_below_5_percent(num_seeds: int) -> None:
    low, high = np.arange(num_seeds), np.arange(num_seeds) + 10
    found = seed_test(low, high)
    assert found.p_value == pytest.approx(2 / comb(2 * num_seeds, num_seeds))
    assert found.is_separated
    overlapping = seed_test(np.append(low[:-1], 10.5), high)
    assert overlapping.is_separated is (overlapping.p_value <= max(0.05, found.p_value))
    assert overlapping.is_separated is (num_seeds == 5), "only of five seeds may one lie among the others"


def test_equal_configurations_are_separated_as_rarely_as_stated() -> None:
    rng = np.random.default_rng(0)
    for num_seeds, most in ((3, 0.1), (5, 0.05)):
        figures = rng.standard_cauchy((600, 2, num_seeds))
        share = np.mean([seed_test(*pair).is_separated for pair in figures])
        assert share == pytest.approx(most, abs=0.03)


def test_the_documented_seeds_are_separated_in_4_percent_of_draws() -> None:
    errors = (2, 2, 0, 11, 1)
    draws = Counter(tuple(sorted(draw)) for draw in product(errors, repeat=3))
    num_apart = sum(
        times * others
        for (draw, times), (other, others) in product(draws.items(), repeat=2)
        if seed_test(draw, other).is_separated
    )
    assert num_apart / sum(draws.values()) ** 2 == pytest.approx(0.0396, abs=1e-4)


def test_a_single_seed_never_prevents_a_verdict() -> None:
    found = seed_test([0.1], [0.9])
    assert (found.p_value, found.is_separated, found.num_seeds) == (1.0, True, 1)


@pytest.mark.parametrize(("a", "b"), [([1, 2], [1]), ([], [])])
def test_unequal_numbers_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(DataError, match="compare equal numbers of seeds, at least one per side"):
        seed_test(a, b)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@pytest.mark.parametrize("p_values", [[0.5, float("nan")], [1.2], [-0.1]])
def test_holm_refuses_invalid_p_values(p_values: list[float]) -> None:
    with pytest.raises(DataError, match="expected 0 to 1"):
        holm(p_values)
