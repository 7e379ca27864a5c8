"""Audit figures show the arrays they are given, to the pixel, and render."""

from io import BytesIO

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from fakeface_lab.figures.audit import closest_pairs_sheet, mean_faces_figure, suspects_sheet, thumbnail_weights_figure


def shown_in(figure: Figure, panel: int) -> NDArray[np.float64]:
    return np.asarray(figure.axes[panel].images[0].get_array(), dtype=float)


def rendered(figure: Figure) -> tuple[int, int]:
    page = BytesIO()
    figure.savefig(page, format="png", dpi=40)
    return Image.open(page).size


def test_mean_faces_and_their_difference() -> None:
    means = np.random.default_rng(0).uniform(0, 255, (2, 20, 24, 3))
    figure = mean_faces_figure(means, ["fake", "real"])
    difference = (means[0] - means[1]).mean(axis=2)
    np.testing.assert_allclose(shown_in(figure, 0), means[0] / 255)
    np.testing.assert_allclose(shown_in(figure, 1), means[1] / 255)
    np.testing.assert_allclose(shown_in(figure, 2), difference)
    assert figure.axes[2].images[0].get_clim() == (-np.abs(difference).max(), np.abs(difference).max())
    titles = [panel.get_title() for panel in figure.axes[:3]]
    assert titles == ["mean of fake", "mean of real", "fake minus real"]
    assert min(rendered(figure)) > 50


def test_weights_of_all_channels_and_of_each() -> None:
    weights = np.random.default_rng(1).normal(size=(16, 16, 3))
    figure = thumbnail_weights_figure(weights, ["fake", "real"])
    np.testing.assert_allclose(shown_in(figure, 0), weights.sum(axis=2))
    np.testing.assert_allclose(shown_in(figure, 3), weights[..., 2])
    labels = [label.get_text() for label in figure.axes[-1].get_yticklabels()]
    assert labels == ["bright: real", "0", "bright: fake"]
    assert rendered(figure)
    assert rendered(thumbnail_weights_figure(np.zeros((16, 16, 3)), ["fake", "real"]))


def test_the_sheet_shows_the_closest_pairs_and_turns_the_mirrored_one() -> None:
    images = np.random.default_rng(2).integers(0, 256, (6, 30, 30, 3), dtype=np.uint8)
    pairs = pd.DataFrame(
        {
            "first": [0, 2, 1],
            "second": [1, 3, 5],
            "phash_bits": [0, 2, 8],
            "is_mirrored": [False, True, False],
            "correlation": [1.0, 0.953, 0.4],
        }
    )
    captions = [f"{i}.jpg" for i in range(6)]
    figure = closest_pairs_sheet(images, pairs, captions, max_pairs=2)
    assert len(figure.axes) == 2
    shown = shown_in(figure, 1)
    np.testing.assert_array_equal(shown[:, :30], images[2][:, ::-1])
    np.testing.assert_array_equal(shown[:, -30:], images[3])
    assert figure.axes[1].get_title() == "2.jpg (mirrored) | 3.jpg\npHash 2 bits apart, details correlate by 0.95"
    assert min(rendered(figure)) > 50
    many = closest_pairs_sheet(images, pd.concat([pairs] * 2, ignore_index=True), captions)
    assert len(many.axes) == 6


def test_a_sheet_without_pairs_says_so() -> None:
    empty = pd.DataFrame(columns=["first", "second", "phash_bits", "is_mirrored", "correlation"])
    figure = closest_pairs_sheet(np.zeros((0, 8, 8, 3), dtype=np.uint8), empty, [])
    assert figure.get_suptitle() == "No two pictures look alike."
    assert rendered(figure)


def test_suspects_are_shown_with_their_probability() -> None:
    images = np.random.default_rng(3).integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    figure = suspects_sheet(images, [7, 2], ["b.jpg (real)", "a.jpg (fake)"], [0.03, 0.2])
    np.testing.assert_array_equal(shown_in(figure, 0), images[7])
    assert figure.axes[1].get_title() == "a.jpg (fake)\nlabel: probability 0.20"
    assert min(rendered(figure)) > 50
    many = suspects_sheet(images, range(30), ["name"] * 30, [0.1] * 30)
    assert len(many.axes) == 24
