"""The images that a model was trained with: known in another folder, asked for if moved, refused if changed."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from fakeface_lab.assess.tracked_model import choose_images, load_tracked_model
from fakeface_lab.evaluate import main
from fakeface_lab.tracking.lookup import find_model, open_for_models
from tests.tracked_model_store import SIZE_PX, TrackedProject, draw


def test_folder_of_known_images_is_refused(
    tracked: TrackedProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("fake", "real"):
        (tmp_path / "part" / label).mkdir(parents=True)
        for number in range(5):
            shutil.copy(tracked.images / label / f"{label}_{number}.png", tmp_path / "part" / label)
    assert main(["tiny", "--data", str(tmp_path / "part")]) == 2
    assert "all 10 images are in the model's own data; leave --data out" in capsys.readouterr().err


def test_images_that_moved_are_asked_for(tracked: TrackedProject, capsys: pytest.CaptureFixture[str]) -> None:
    away = tracked.images.rename(tracked.images.with_name("away"))
    try:
        assert main(["tiny"]) == 2
        message = "the images of run tiny cannot be found; give their folder with --data FOLDER"
        assert message in capsys.readouterr().err
        model = load_tracked_model(find_model(open_for_models(None, tracked.project), "tiny"))
        assert choose_images(model, str(away), None, tracked.project).part == "test"
        other = draw(tracked.images.with_name("other"), seed=2, names=("fake", "real"), num_per_class=3)
        sentences = choose_images(model, str(other), None, tracked.project).sentences
        assert "The model's own images are not available: only equal files could be left out." in sentences
    finally:
        away.rename(tracked.images)


def test_images_that_changed_are_refused(tracked: TrackedProject, capsys: pytest.CaptureFixture[str]) -> None:
    extra = tracked.images / "fake" / "extra.png"
    Image.new("RGB", (SIZE_PX, SIZE_PX), "red").save(extra)
    try:
        assert main(["tiny"]) == 2
        assert "the images of run tiny have changed" in capsys.readouterr().err
    finally:
        extra.unlink()
