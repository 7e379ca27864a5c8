"""How much of a model's accuracy simple features reach too, as a figure and in words.

Owns that one figure and its sentence; the probes are trained elsewhere.
"""

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.intervals import Rate
from fakeface_lab.evaluation.probes import ProbeResult

__all__ = ["explain", "explained_share"]


def explain(probe: ProbeResult, accuracy: Rate, majority: float) -> tuple[float | None, str]:
    """Set a model's accuracy beside what chance and a simple probe reach on the same images.

    Args:
        probe: the probe's result on these images.
        accuracy: of the model on them.
        majority: share of the larger class among them, in [0.5, 1].

    Returns:
        The explained share, in [0, 1], and a sentence for the user. Where the interval of the accuracy reaches down
        to the majority these images do not show that there is anything to explain: the share is None, and the
        sentence says so.

    Raises:
        DataError: a share outside [0, 1], or NaN.
    """
    share = explained_share(probe.accuracy.value, accuracy.value, majority)
    sees = f"A linear model that sees only {probe.sees}"
    if share is None or accuracy.low <= majority:
        return None, (
            f"An accuracy of {accuracy} is not better than chance, always naming the larger class ({majority:.3f}). "
            f"{sees} is right on {probe.accuracy.value:.3f} of the same images."
        )
    has = f"{sees} has {share:.2f} of the accuracy above chance"
    figures = f"{probe.accuracy.value:.3f} against {accuracy.value:.3f}, chance {majority:.3f}"
    return share, f"{has} ({figures}){_consequence(share)}"


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


def _consequence(share: float) -> str:
    if share >= 0.9:
        return ": this accuracy does not show that faces were looked at."
    if share >= 0.5:
        return ": most of this accuracy needs no look at faces."
    return "."
