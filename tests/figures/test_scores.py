"""Figures of scores, read back from their axes."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from fakeface_lab.evaluation.stress.suite import CONDITIONS, StressReport, stress_report
from fakeface_lab.figures.scores import confusion_figure, robustness_curves, roc_figure
from tests.figures.drawn import is_drawn


def test_the_confusion_matrix_counts_with_the_truth_in_rows() -> None:
    labels = np.array([0, 0, 0, 1, 1])
    decisions = np.array([0, 0, 1, 0, 1])
    figure = confusion_figure(labels, decisions, ("fake", "real"), "test: 3 of 5 right")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["2", "1", "1", "1"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["fake", "real"]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("test: 3 of 5 right", "decided", "true")
    assert is_drawn(figure)


def test_a_class_without_decisions_keeps_its_column() -> None:
    figure = confusion_figure(np.array([0, 1, 1]), np.array([1, 1, 1]), ("fake", "real"), "")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0", "1", "0", "2"]


def test_the_roc_curve_is_that_of_the_positive_class() -> None:
    rng = np.random.default_rng(0)
    is_positive = rng.random(60) < 0.5
    scores = np.clip(0.3 * is_positive + 0.7 * rng.random(60), 0, 1)
    figure = roc_figure(is_positive, scores, "fake")
    curve = next(line for line in figure.axes[0].get_lines() if "fake" in str(line.get_label()))
    fpr, tpr, _ = roc_curve(is_positive, scores)
    np.testing.assert_allclose(np.asarray(curve.get_xdata()), fpr)
    np.testing.assert_allclose(np.asarray(curve.get_ydata()), tpr)
    assert f"{roc_auc_score(is_positive, scores):.2f}" in str(curve.get_label())
    assert "fake" in figure.axes[0].get_ylabel()
    assert is_drawn(figure)


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", ["Björk_日本", "a" * 30])
def test_class_names_in_any_script_and_length_do_not_break_a_figure(name: str) -> None:
    assert is_drawn(confusion_figure(np.array([0, 1]), np.array([0, 1]), (name, "real"), "t"))


def report() -> StressReport:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [60, 50])
    scores = {
        condition.name: np.clip(0.9 - 0.8 * labels + rng.normal(0, 0.08 + 0.03 * step, 110), 0, 1)
        for step, condition in enumerate(CONDITIONS)
    }
    return stress_report(["fake", "real"], labels, scores)


def test_one_panel_per_family_with_the_recalls_of_the_table() -> None:
    table = report().table
    figure = robustness_curves(table, ["fake", "real"])
    assert is_drawn(figure)
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
    assert is_drawn(figure)
    assert [panel.get_xlabel() for panel in figure.axes] == ["JPEG quality", "centre crop, % of the side"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["50"]
