"""How much of a model's accuracy simple features reach too.

Owns that one figure; the probes are trained elsewhere.
"""

from fakeface_lab.errors import DataError

__all__ = ["explained_share"]


def explained_share(probe_accuracy: float, accuracy: float, majority: float) -> float | None:
    """The part of a model's gain over guessing that a simple probe gains on the same images.

    (probe_accuracy - majority) / (accuracy - majority), in [0, 1]: 0 for a probe no better than guessing, 1
    for a probe as good as the model or better.

    Args:
        probe_accuracy: of a simple classifier on a few features, in [0, 1].
        accuracy: of the model on the same images, in [0, 1].
        majority: share of the largest class among them, in [0, 1].

    Returns:
        The share, or None where the model itself is not above the majority: there is nothing to explain.

    Raises:
        DataError: a value outside [0, 1], or NaN.
    """
    for name, value in (("probe_accuracy", probe_accuracy), ("accuracy", accuracy), ("majority", majority)):
        if not 0.0 <= value <= 1.0:
            raise DataError(f"{name} is {value}, allowed is 0 to 1; pass a share, not a percentage")
    if accuracy <= majority:
        return None
    share = (probe_accuracy - majority) / (accuracy - majority)
    return min(max(share, 0.0), 1.0)
