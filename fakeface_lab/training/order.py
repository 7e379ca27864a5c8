"""In which order a training sees its examples: a function of seed and epoch alone, so that a restart repeats it."""

import numpy as np
import numpy.typing as npt

__all__ = ["epoch_order"]


def epoch_order(num_examples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order of the examples in one epoch (0-based): int64 (num_examples,), a permutation."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)
