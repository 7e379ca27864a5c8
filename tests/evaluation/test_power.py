"""Power against simulation and by hand; the smallest detectable difference at its boundary."""

import numpy as np
import pytest
from scipy.stats import binom

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.comparison import mcnemar
from fakeface_lab.evaluation.significance import detectable_difference, mcnemar_power


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
