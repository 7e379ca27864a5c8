"""What a paired test on some images can show at all: its power, and the smallest difference it would find."""

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.inputs import FloatArray, check_fraction

__all__ = ["detectable_difference", "mcnemar_power"]

_NEGLIGIBLE = 1e-9


def mcnemar_power(num_images: int, error_rate_a: float, error_rate_b: float, alpha: float = 0.05) -> float:
    """Probability that the exact McNemar test finds A better than B, for two models that err independently.

    The unconditional power of Duffy (1984), summed over all numbers of discordant images. Models that err on the same
    hard images have fewer discordant ones, hence more power for the same difference: this is a lower bound for them.

    Args:
        num_images: images that both models decide.
        error_rate_a: true error rate of A, in [0, 1].
        error_rate_b: true error rate of B, in [0, 1].
        alpha: two-sided significance level, in (0, 1).

    Returns:
        In [0, 1].

    Raises:
        DataError: no image, or a rate outside [0, 1].
        ConfigError: an alpha outside (0, 1).
    """
    check_fraction(alpha, "alpha")
    if num_images < 1 or not (0 <= error_rate_a <= 1 and 0 <= error_rate_b <= 1):
        raise DataError(
            f"{num_images} images with error rates {error_rate_a} and {error_rate_b}: needed are at least one image "
            f"and rates from 0 to 1"
        )
    only_a, only_b = error_rate_b * (1 - error_rate_a), error_rate_a * (1 - error_rate_b)
    if only_a + only_b == 0:
        return 0.0
    low, high = (int(binom.ppf(share, num_images, only_a + only_b)) for share in (_NEGLIGIBLE, 1 - _NEGLIGIBLE))
    num_discordant = np.arange(max(low, 1), high + 1)
    # The largest number of images right with B alone at which the two-sided p-value is still below alpha; -1: none.
    most: FloatArray = np.asarray(binom.ppf(alpha / 2, num_discordant, 0.5) - 1)
    # The test asks for less than alpha, the quantile for no more.
    most -= np.asarray(2 * binom.cdf(most, num_discordant, 0.5) >= alpha)
    seen: FloatArray = np.asarray(binom.cdf(most, num_discordant, only_b / (only_a + only_b)))
    return float(np.asarray(binom.pmf(num_discordant, num_images, only_a + only_b)) @ seen)


def detectable_difference(num_images: int, error_rate: float, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """Smallest true difference in error rate that the exact McNemar test shows with this power.

    Args:
        num_images: images that both models decide.
        error_rate: of the better of the two models, in [0, 1).
        alpha: two-sided significance level, in (0, 1).
        power: in (0, 1).

    Returns:
        In (0, 1 - error_rate]; None where no difference would be shown that often.

    Raises:
        DataError: no image, or a rate outside [0, 1].
        ConfigError: an alpha or a power outside (0, 1).
    """
    check_fraction(power, "power")

    def excess(difference: float) -> float:
        return mcnemar_power(num_images, error_rate, error_rate + difference, alpha) - power

    largest = 1 - error_rate
    if excess(largest) < 0:
        return None
    return float(brentq(excess, 0.0, largest, xtol=1e-6))
