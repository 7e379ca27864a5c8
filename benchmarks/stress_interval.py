"""How often does the interval of a difference under stress hold the truth: the basic one, and the percentile one?

    python benchmarks/stress_interval.py

Simulated comparisons of 258 images by their worst condition, five equally bad ones against a single bad one, as
`compare_under_stress` makes them.
"""

import argparse

import numpy as np
from scipy.stats import norm

from fakeface_lab.evaluation.intervals import BoolArray, FloatArray
from fakeface_lab.evaluation.stress.comparison import compare_under_stress

NUM_IMAGES = 258
CONDITIONS = ("clean", "jpeg_50", "blur_2", "crop_70", "pad_130")
RATE, BEST_RATE = 0.85, 0.98


def draw(rng: np.random.Generator, rates: tuple[float, ...], truth: BoolArray) -> FloatArray:
    """Return scores (1, num_conditions, num_images) of a model right at these rates; conditions share hard images."""
    shared, own = rng.standard_normal(truth.size), rng.standard_normal((len(rates), truth.size))
    is_right = (shared + own) / np.sqrt(2) < np.asarray(norm.ppf(rates))[:, None]
    return np.asarray(np.where(is_right == truth, 0.9, 0.1)[None])


def main() -> None:
    """Print the coverage of both intervals."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--comparisons", type=int, default=1000)
    num_comparisons = parser.parse_args().comparisons
    rng = np.random.default_rng(0)
    truth = np.arange(NUM_IMAGES) % 2 == 0
    held = np.zeros(2)
    for _ in range(num_comparisons):
        many, one = draw(rng, (RATE,) * 5, truth), draw(rng, (BEST_RATE,) * 4 + (RATE,), truth)
        found = compare_under_stress(truth, CONDITIONS, many, one, "worst_stress", num_resamples=1000)
        low, high = found.interval.low, found.interval.high
        # The basic interval is the percentile one, mirrored at what was found.
        mirrored = 2 * found.difference - high, 2 * found.difference - low
        held += [low <= 0 <= high, mirrored[0] <= 0 <= mirrored[1]]
    basic, percentile = held / num_comparisons
    print(f"{num_comparisons} comparisons: basic interval {basic:.3f}, percentile interval {percentile:.3f}")


if __name__ == "__main__":
    main()
