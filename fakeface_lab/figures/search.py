"""Figures of a search: the score of each trial, hyperparameter importance, training time."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["cost_figure", "history_figure", "importance_figure"]

# Colour-blind safe: a trial, the best so far, trial 0, a failed trial.
TRIAL_COLOUR, BEST_COLOUR, TRIAL_0_COLOUR, FAILED_COLOUR = "#0072B2", "#D55E00", "#555555", "#CC79A7"

# Scores that spread over more than this factor are drawn on a logarithmic axis: one diverged trial hides the others.
_LOG_FACTOR = 20


def history_figure(
    scores: Sequence[float | None], objective: str, direction: Literal["min", "max"], trial_0: str = "defaults"
) -> Figure:
    """Return the score of each trial in order, the best so far, and that of trial 0 as a line.

    Args:
        scores: by trial, from trial 0; None for one without a score, which is marked at the bottom.
        objective: name of the score.
        direction: whether a larger or a smaller score is better.
        trial_0: what the configuration of trial 0 is called.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    values = np.array([math.nan if score is None else score for score in scores], dtype=np.float64)
    trials = np.arange(len(values))
    has_score = np.isfinite(values)
    # Unlike `minimum` and `maximum` these skip NaN: a failed trial must not erase the best so far.
    running = np.fmin.accumulate(values) if direction == "min" else np.fmax.accumulate(values)
    axes.plot(trials[has_score], values[has_score], "o", color=TRIAL_COLOUR, label="trial")
    axes.step(trials, running, where="post", color=BEST_COLOUR, label="best so far")
    if len(values) and has_score[0]:
        axes.axhline(values[0], color=TRIAL_0_COLOUR, linestyle=":", label=f"{trial_0}: {values[0]:.4f}")
    if not has_score.all():
        failed = trials[~has_score]
        # Its height is a fraction of the axis, because there is no score to put it at.
        at_bottom = axes.get_xaxis_transform()
        axes.plot(failed, np.full(len(failed), 0.03), color=FAILED_COLOUR, transform=at_bottom, label="without a score")
    found = values[has_score]
    if len(found) and found.min() > 0 and found.max() > _LOG_FACTOR * found.min():
        axes.set_yscale("log")
    axes.set(xlabel="trial", ylabel=f"{objective} ({'smaller' if direction == 'min' else 'larger'} is better)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, alpha=0.3)
    axes.legend()
    return figure


def importance_figure(
    names: Sequence[str], means: Sequence[float], spreads: Sequence[float], warning: str = ""
) -> Figure:
    """Return the importance of each hyperparameter, the largest on top, with the warning as its title.

    Args:
        names: hyperparameters.
        means: permutation importance of each, drop of R².
        spreads: standard deviation of each over the permutations.
        warning: why not to trust it; empty for none.
    """
    figure = Figure(figsize=(8, max(2.5, 1.2 + 0.45 * len(names))), layout="constrained")
    axes = figure.add_subplot()
    # `barh` draws from the bottom, so the largest comes last.
    order = np.argsort(means, kind="stable")
    axes.barh(
        [names[index] for index in order],
        [means[index] for index in order],
        xerr=[spreads[index] for index in order],
        color=TRIAL_COLOUR,
    )
    axes.set_xlabel("permutation importance: how much R² a forest over the trials loses")
    axes.grid(True, axis="x", alpha=0.3)
    if warning:
        axes.set_title(warning, color=BEST_COLOUR, fontsize=10, wrap=True)
    return figure


def cost_figure(train_secs: Sequence[float]) -> Figure:
    """Return the training time of each trial, from trial 0; nothing is drawn where it is NaN."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(train_secs)), train_secs, color=TRIAL_COLOUR)
    axes.set(xlabel="trial", ylabel="training, s", title=f"{np.nansum(train_secs):,.0f} s in all")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, axis="y", alpha=0.3)
    return figure
