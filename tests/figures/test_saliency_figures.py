"""What the saliency figures show: read back from the drawn axes."""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fakeface_lab.figures.training import mean_maps, saliency_overlays


def test_each_image_stands_above_its_map_stretched_over_it() -> None:
    images = np.random.default_rng(0).random((5, 30, 20, 3))
    maps = np.random.default_rng(1).normal(size=(5, 6, 4))
    maps[4] = 0  # a map without evidence must not divide by 0
    figure = saliency_overlays(images, maps, [f"image {index}" for index in range(5)], ["fake", "real"])
    FigureCanvasAgg(figure).print_png(io.BytesIO())
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
    FigureCanvasAgg(figure).print_png(io.BytesIO())
    panels = figure.axes[:2]
    assert [panel.get_title() for panel in panels] == ["evidence for fake", "evidence for real"]
    assert panels[1].get_xlabel() == "60 % of it in the border,\nwhich is 51 % of the area"
    limits = {panel.get_images()[0].get_clim() for panel in panels}
    assert limits == {(0, 10)}
    np.testing.assert_allclose(np.asarray(panels[0].get_images()[0].get_array()), 1.0)  # spread evenly
