"""Pictures of a search show the numbers they are given, and render."""

import math
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from fakeface_lab.figures.search import cost_figure, history_figure, importance_figure


def rendered(figure: Figure) -> tuple[int, int]:
    page = BytesIO()
    figure.savefig(page, format="png", dpi=40)
    return Image.open(page).size


def lines(figure: Figure) -> dict[str, np.ndarray]:
    return {str(line.get_label()): np.asarray(line.get_xydata(), dtype=float) for line in figure.axes[0].get_lines()}


@pytest.mark.parametrize(
    ("direction", "best"), [("min", [0.5, 0.5, 0.5, 0.3]), ("max", [0.5, 0.5, 0.9, 0.9])], ids=["min", "max"]
)
def test_history_shows_trials_best_so_far_trial_0_and_failures(direction: str, best: list[float]) -> None:
    figure = history_figure([0.5, None, 0.9, 0.3], "val_loss", direction)  # type: ignore[arg-type]
    shown = lines(figure)
    np.testing.assert_array_equal(shown["trial"], [[0, 0.5], [2, 0.9], [3, 0.3]])
    np.testing.assert_array_equal(shown["best so far"][:, 1], best)
    np.testing.assert_array_equal(shown["defaults: 0.5000"][:, 1], [0.5, 0.5])
    np.testing.assert_array_equal(shown["without a score"][:, 0], [1])
    assert ("smaller" if direction == "min" else "larger") in figure.axes[0].get_ylabel()
    assert figure.axes[0].get_yscale() == "linear"
    assert min(rendered(figure)) > 50


def test_one_diverged_trial_does_not_hide_the_others() -> None:
    assert history_figure([0.03, 0.02, 9.0], "val_loss", "min").axes[0].get_yscale() == "log"
    assert history_figure([0.0, 0.02, 9.0], "val_loss", "min").axes[0].get_yscale() == "linear"


def test_history_without_a_score_of_trial_0_or_without_any_score() -> None:
    assert not [label for label in lines(history_figure([None, 0.4], "val_loss", "min")) if "defaults" in label]
    assert min(rendered(history_figure([None, None], "val_loss", "min"))) > 50


def test_importance_is_sorted_and_carries_its_warning() -> None:
    figure = importance_figure(["a", "b", "c"], [0.1, 0.8, 0.0], [0.01, 0.1, 0.0], "only 5 trials")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "a", "b"]
    assert [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)] == [0.0, 0.1, 0.8]
    assert axes.get_title() == "only 5 trials"
    assert importance_figure(["a"], [0.1], [0.0]).axes[0].get_title() == ""
    assert min(rendered(figure)) > 50


def test_cost_adds_up_what_was_measured() -> None:
    figure = cost_figure([10.0, math.nan, 1200.0])
    assert figure.axes[0].get_title() == "1,210 s in all"
    heights = [bar.get_height() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    assert heights[0] == 10.0
    assert math.isnan(heights[1])
    assert min(rendered(figure)) > 50
