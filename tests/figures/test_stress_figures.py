"""What the stress figures show: read back from the drawn axes."""

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fakeface_lab.evaluation.stress.suite import CONDITIONS, StressReport, stress_report
from fakeface_lab.figures.stress import decision_gallery, image_gallery, robustness_curves


def report() -> StressReport:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [60, 50])
    scores = {
        condition.name: np.clip(0.9 - 0.8 * labels + rng.normal(0, 0.08 + 0.03 * step, 110), 0, 1)
        for step, condition in enumerate(CONDITIONS)
    }
    return stress_report(["fake", "real"], labels, scores)


def drawn_size(figure: Figure) -> int:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return len(buffer.getvalue())


def test_one_panel_per_family_with_the_recalls_of_the_table() -> None:
    table = report().table
    figure = robustness_curves(table, ["fake", "real"])
    assert drawn_size(figure) > 10_000
    panels = {panel.get_xlabel(): panel for panel in figure.axes}
    assert len(panels) == 19
    jpeg = panels["JPEG quality"]
    assert [tick.get_text() for tick in jpeg.get_xticklabels()] == ["95", "90", "75", "50", "30"]
    curves = {line.get_label(): line.get_ydata() for line in jpeg.get_lines()}
    np.testing.assert_array_equal(curves["fake"], table.loc[table["family"] == "jpeg", "recall_fake"])
    np.testing.assert_array_equal(curves["real"], table.loc[table["family"] == "jpeg", "recall_real"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fake", "real"]


def test_a_search_subset_has_as_many_panels_as_families() -> None:
    table = report().table.loc[["clean", "jpeg_50", "crop_70"]]
    figure = robustness_curves(table, ["fake", "real"])
    assert drawn_size(figure) > 3_000
    assert [panel.get_xlabel() for panel in figure.axes] == ["JPEG quality", "centre crop, % of the side"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["50"]


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
