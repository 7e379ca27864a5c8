"""The exact rank-sum test of seeds against SciPy and by counting, and its meaning with fewer than four seeds."""

from collections import Counter
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.significance import seed_test


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
