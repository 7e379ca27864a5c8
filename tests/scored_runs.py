"""Runs with known scores, recorded as the programs do, and what `compare` says of them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fakeface_lab.compare import main
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.scores import ScoredImage, write_scores
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter

__all__ = ["IS_POSITIVE", "NUM_IMAGES", "output_of", "record", "scores_with_wrong"]

Scores = npt.NDArray[np.float64]
NUM_IMAGES = 100
IS_POSITIVE = np.arange(NUM_IMAGES) % 2 == 0


def scores_with_wrong(wrong: range) -> Scores:
    """Return probabilities that are right about all images except these."""
    is_right = ~np.isin(np.arange(NUM_IMAGES), list(wrong))
    return np.where(is_right == IS_POSITIVE, 0.9, 0.1)


def record(
    store: Store,
    tmp_path: Path,
    name: str,
    scores: Scores,
    *,
    part: str = "test",
    split: str = "sealed",
    split_seed: int = 0,
    digest: str = "d" * 64,
    role: str = "baseline",
    parent: str | None = None,
    first_image: int = 0,
    seed: int = 0,
    **tags: str,
) -> str:
    """Record a scored run and return its id."""
    writer = PatientWriter(5)
    run = TrackedRun.create(store, writer, name, {"role": role, **tags}, parent_run_id=parent)
    run.log_params({"split": split, "split_seed": split_seed, "seed": seed})
    run.log_dataset("faces", digest, "file:///faces", ("training",), {})
    accuracy = float(((scores > 0.5) == IS_POSITIVE).mean())
    run.log_metrics({f"{part}_accuracy": accuracy, "num_epochs": 5, "num_params": 1000}, 5, 1)
    folder = tmp_path / run.run_id
    folder.mkdir()
    rows = (
        ScoredImage(f"{number}.png", "", "fake" if positive else "real", part, (score, 1 - score))
        for number, (score, positive) in enumerate(zip(scores, IS_POSITIVE, strict=True), start=first_image)
    )
    write_scores(folder / "scores.csv", ("probability_fake", "probability_real"), rows)
    run.upload(folder)
    run.end("FINISHED")
    return run.run_id


def output_of(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> tuple[str, str]:
    """Run `compare`, which must end with this exit code, and return what it prints: output and errors."""
    assert main(list(argv)) == code
    captured = capsys.readouterr()
    return captured.out, captured.err
