"""A real store with two tiny baselines and a tiny search, made once for all tests that only read it."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fakeface_lab.backend import tf
from fakeface_lab.baseline import run_baseline
from fakeface_lab.settings import BaselineSettings, Range, TuneSettings
from fakeface_lab.tune import run_search
from tests.made_once import empty_store, made_once

__all__ = ["SPACE", "TinyStore", "tiny_store"]

SPACE = {"filters_1": Range(values=(4, 8)), "learning_rate": Range(min=1e-4, max=1e-2, sampling="log")}


@dataclass(frozen=True)
class TinyStore:
    """Where it is and what is in it.

    Attributes:
        project: folder with `mlflow.db`.
        uri: of the store.
        images: folder with the two classes.
        documented_run_id: a baseline on the documented split.
        sealed_run_id: a baseline on the sealed split.
        search_run_id: the parent of a search of three trials, called "tiny search".
        best_values: hyperparameters of its best trial.
        best_score: and that trial's score.
        verdict: sentence about it.
    """

    project: Path
    uri: str
    images: Path
    documented_run_id: str
    sealed_run_id: str
    search_run_id: str
    best_values: dict[str, object]
    best_score: float
    verdict: str


@functools.cache
def tiny_store() -> TinyStore:
    """Return it; the first call takes about 10 s."""
    return made_once("tiny-store", _make)


def _make(folder: Path) -> TinyStore:
    project = folder / "project"
    (project / "experiments").mkdir(parents=True)
    shutil.copy(empty_store(), project)
    images = _draw(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("FAKEFACE_CACHE", str(folder / "cache"))
        patch.delenv("FAKEFACE_DATA", raising=False)
        # Without graphs, whose tracing takes most of so short a training.
        tf.config.run_functions_eagerly(True)
        common: dict[str, Any] = {"data": str(images), "image_size": 24, "epochs": 2}
        documented = run_baseline(BaselineSettings(**common))
        sealed = run_baseline(BaselineSettings(**common, split="sealed"))
        search = run_search(
            TuneSettings(
                **common, name="tiny search", trials=3, algorithm="random", engine="inline", final_seeds=1, space=SPACE
            )
        )
        tf.config.run_functions_eagerly(False)
    assert search is not None  # None is a dry run
    return TinyStore(
        project, f"sqlite:///{project / 'mlflow.db'}", images, documented.run_id, sealed.run_id, search.run_id,
        search.best_values, search.best_score, search.verdict,
    )  # fmt: skip


def _draw(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for label, name in enumerate(("fake", "real")):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(40):
            pixels = rng.integers(0, 200, (24, 24, 3), dtype=np.uint8)
            if label == 0:
                pixels[:12] += 50
            Image.fromarray(pixels).save(folder / f"{name}_{number}.png")
    return root
