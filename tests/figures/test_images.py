"""Figures that show images, read back from their axes."""

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fakeface_lab.figures.images import decision_gallery, image_gallery, mean_maps, saliency_overlays


def drawn_size(figure: Figure) -> int:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return len(buffer.getvalue())


@pytest.mark.parametrize("num_images", [1, 6, 8])
def test_a_gallery_has_one_panel_per_image(num_images: int) -> None:
    images = np.zeros((num_images, 12, 10, 3), np.uint8)
    figure = image_gallery(images, [f"image {index}" for index in range(num_images)], "title")
    assert drawn_size(figure) > 1_000
    assert [panel.get_xlabel() for panel in figure.axes] == [f"image {index}" for index in range(num_images)]


def test_the_most_confident_errors_come_first_then_the_nearest_calls() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([0.9, 0.4, 0.6, 0.99, 0.45, 0.01])  # images 1 and 3 are errors, 3 the more confident one
    images = np.zeros((6, 8, 8, 3), np.uint8)
    figure = decision_gallery(images, list("abcdef"), labels, scores, ["fake", "real"], num_images=4)
    captions = [panel.get_xlabel() for panel in figure.axes]
    assert [caption[0] for caption in captions] == ["d", "b", "e", "c"]
    assert captions[0] == "d\nis real, called fake\nP(fake) = 0.990"
    assert captions[2] == "e\nis real, called so\nP(fake) = 0.450"


def test_without_errors_there_are_near_calls_only() -> None:
    images = np.zeros((3, 8, 8, 3), np.uint8)
    figure = decision_gallery(images, list("abc"), [0, 0, 1], [0.9, 0.6, 0.2], ["fake", "real"], num_images=2)
    assert [panel.get_xlabel()[0] for panel in figure.axes] == ["b", "c"]


def test_each_image_is_above_its_map_stretched_over_it() -> None:
    images = np.random.default_rng(0).random((5, 30, 20, 3))
    maps = np.random.default_rng(1).normal(size=(5, 6, 4))
    maps[4] = 0  # a map without evidence must not divide by 0
    figure = saliency_overlays(images, maps, [f"image {index}" for index in range(5)], ["fake", "real"])
    assert drawn_size(figure) > 1_000
    titled = [panel.get_title() for panel in figure.axes if panel.get_title()]
    assert titled == [f"image {index}" for index in range(5)]
    overlays = [panel.get_images()[1] for panel in figure.axes if len(panel.get_images()) == 2]
    assert len(overlays) == 5
    for overlay, values in zip(overlays[:4], maps[:4], strict=True):
        assert tuple(overlay.get_extent()) == (-0.5, 19.5, 29.5, -0.5)
        np.testing.assert_allclose(np.asarray(overlay.get_array()), values / np.abs(values).max())
    np.testing.assert_array_equal(np.asarray(overlays[4].get_array()), 0)


def test_mean_maps_share_a_scale_and_state_the_border() -> None:
    means = np.stack([np.full((10, 10), 0.01), np.eye(10) / 10])
    figure = mean_maps(means, ["fake", "real"], [0.51, 0.6], 0.51, 0.15)
    assert drawn_size(figure) > 1_000
    panels = figure.axes[:2]
    assert [panel.get_title() for panel in panels] == ["evidence for fake", "evidence for real"]
    assert panels[1].get_xlabel() == "60 % of it in the border,\nwhich is 51 % of the area"
    limits = {panel.get_images()[0].get_clim() for panel in panels}
    assert limits == {(0, 10)}
    np.testing.assert_allclose(np.asarray(panels[0].get_images()[0].get_array()), 1.0)  # spread evenly
