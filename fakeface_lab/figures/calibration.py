"""Reliability diagram: what the model says against what is so, with what chance alone does to a true probability.

Owns how it looks. The numbers come from `evaluation.calibration`.
"""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from fakeface_lab.evaluation.calibration import Calibration

__all__ = ["reliability_figure"]

_COLOUR = "#0072b2"  # of Okabe & Ito (2008)


def reliability_figure(calibration: Calibration, scores: ArrayLike, positive: str) -> Figure:
    """Share of `positive` in each bin of scores with its interval, the null band in gray, all scores below.

    Args:
        calibration: of these scores.
        scores: float (N,), probability of the positive class.
        positive: name of the positive class.
    """
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    place = np.array([point.mean_score for point in calibration.bins])
    share = np.array([point.positive.value for point in calibration.bins])
    low, high = ([getattr(point.positive, end) for point in calibration.bins] for end in ("low", "high"))
    null_low, null_high = ([getattr(point, end) for point in calibration.bins] for end in ("null_low", "null_high"))
    above.plot([0, 1], [0, 1], color="gray", linestyle=":", linewidth=1)
    above.vlines(place, null_low, null_high, color="gray", alpha=0.35, linewidth=9, label="calibrated, by chance")
    above.errorbar(
        place, share, yerr=[share - low, high - share], fmt="o", markersize=4, color=_COLOUR, label="measured"
    )
    above.set(ylabel=f"share of {positive}", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    above.set_title(f"ECE {calibration.ece:.3f}, by chance up to {calibration.null_high:.3f}", fontsize=10)
    above.legend(loc="upper left", fontsize=8)
    below.hist(np.asarray(scores, dtype=float), bins=np.linspace(0, 1, 26).tolist(), color=_COLOUR)
    below.set(xlabel=f"probability of {positive}", ylabel="images")
    return figure
