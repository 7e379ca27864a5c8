"""Curves say what was measured, and which epoch was kept."""

from fakeface_lab.figures.curves import curve_figures, documented_figure
from tests.figures.drawn import HISTORY, is_drawn, lines

TRAINING_ONLY = {"loss": [0.65, 0.14], "accuracy": [0.8, 0.95]}


def test_the_documents_figure_has_its_axes_colours_and_title() -> None:
    figure = documented_figure(HISTORY)
    accuracy, loss = figure.axes
    assert accuracy.get_title() == "Training and Validation Accuracy & Loss"
    assert (accuracy.get_ylabel(), loss.get_ylabel(), accuracy.get_xlabel()) == ("Accuracy", "Loss", "Epochs")
    assert lines(figure) == {
        "Training Accuracy": ("b", [1, 2, 3], HISTORY["accuracy"]),
        "Validation Accuracy": ("r", [1, 2, 3], HISTORY["val_accuracy"]),
        "Training Loss": ("g", [1, 2, 3], HISTORY["loss"]),
        "Validation Loss": ("y", [1, 2, 3], HISTORY["val_loss"]),
    }
    assert {line.get_label() for line in accuracy.get_lines()} == {"Training Accuracy", "Validation Accuracy"}
    assert all(line.get_marker() == "o" and line.get_linestyle() == "-" for line in loss.get_lines())
    assert is_drawn(figure)


def test_without_validation_only_training_curves_are_drawn() -> None:
    assert set(lines(documented_figure(TRAINING_ONLY))) == {"Training Accuracy", "Training Loss"}
    figures = curve_figures(TRAINING_ONLY, 1)
    assert set(lines(figures["curve_loss"])) == {"training", "kept weights: epoch 1"}


def test_one_epoch_can_be_drawn() -> None:
    history = {name: values[:1] for name, values in HISTORY.items()}
    for figure in [documented_figure(history), *curve_figures(history, 1).values()]:
        assert is_drawn(figure)


def test_curves_mark_the_kept_epoch() -> None:
    figures = curve_figures(HISTORY, kept_epoch=2)
    assert set(figures) == {"curve_loss", "curve_accuracy"}
    for name in ("loss", "accuracy"):
        figure = figures[f"curve_{name}"]
        drawn = lines(figure)
        assert drawn["training"][1:] == ([1, 2, 3], HISTORY[name])
        assert drawn["validation"][1:] == ([1, 2, 3], HISTORY[f"val_{name}"])
        assert drawn["kept weights: epoch 2"][1] == [2, 2]
        assert figure.axes[0].get_ylabel() == name
        assert is_drawn(figure)
    assert figures["curve_loss"].axes[0].get_ylim()[0] == 0
