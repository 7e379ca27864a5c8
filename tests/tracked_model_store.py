"""A project with one tiny tracked model, for tests that write to its store."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fakeface_lab.baseline import run_baseline
from fakeface_lab.settings import BaselineSettings, Hyperparameters
from tests.made_once import copy_project, empty_store, made_once

__all__ = ["SIZE_PX", "TrackedProject", "copy_tracked_project", "draw"]

SIZE_PX = 24


@dataclass(frozen=True)
class TrackedProject:
    """Where it is and what is in it.

    Attributes:
        project: folder with `mlflow.db`.
        cache: of decoded pixels.
        images: folder with the two classes.
        run_id: a baseline on the sealed split, called "tiny".
        metrics: what it measured.
    """

    project: Path
    cache: Path
    images: Path
    run_id: str
    metrics: dict[str, float]

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        """Make it the current project."""
        patch.chdir(self.project)
        patch.setenv("FAKEFACE_CACHE", str(self.cache))


def copy_tracked_project(folder: Path) -> TrackedProject:
    """Return a copy in an empty folder."""
    made = _tracked_project()
    project = copy_project(made.project.parent, folder)
    return TrackedProject(project, folder / "cache", folder / "images", made.run_id, made.metrics)


@functools.cache
def _tracked_project() -> TrackedProject:
    return made_once("tracked-project", _train)


def _train(root: Path) -> TrackedProject:
    """Train the model; about 5 s."""
    folder = root / "tracked"
    project, images = folder / "project", draw(folder / "images", seed=0, names=("fake", "real"))
    (project / "experiments").mkdir(parents=True)
    shutil.copy(empty_store(), project)
    small = Hyperparameters(filters_1=4, filters_2=4, dense_units=16, learning_rate=3e-3, batch_size=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("FAKEFACE_CACHE", str(folder / "cache"))
        patch.delenv("FAKEFACE_DATA", raising=False)
        result = run_baseline(
            BaselineSettings(
                data=str(images), image_size=SIZE_PX, epochs=4, split="sealed", name="tiny", hyperparameters=small
            )
        )
    return TrackedProject(project, folder / "cache", images, result.run_id, result.metrics)


def draw(root: Path, seed: int, names: tuple[str, str], num_per_class: int = 40) -> Path:
    """Draw two classes of noise; the first is brighter in its upper half, a third of the second is gray."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(num_per_class):
            pixels = rng.integers(0, 180, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)
            if label == 0:
                pixels[: SIZE_PX // 2] += 70
            elif number % 3 == 0:
                pixels[:] = pixels[..., :1]
            Image.fromarray(pixels).save(root / name / f"{name}_{number}.png")
    return root
