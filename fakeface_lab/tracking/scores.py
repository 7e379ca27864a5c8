"""The per-image scores that runs have logged, read back from the store. Loads no TensorFlow."""

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fakeface_lab.errors import SearchError
from fakeface_lab.tracking.store import Store

__all__ = ["PartScores", "part_scores"]


@dataclass(frozen=True)
class PartScores:
    """Per-image scores of several runs on the same images.

    Attributes:
        files: names of the images.
        is_positive: bool (num_images,).
        scores: float64 (num_runs, num_images), probability of the class to detect.
    """

    files: tuple[str, ...]
    is_positive: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float64]


def part_scores(store: Store, runs: Sequence[Run], part: str = "test") -> PartScores:
    """Return the per-image scores that runs have logged for one split.

    Args:
        store: where the runs are.
        runs: at least one.
        part: `test` or `validation`.

    Raises:
        SearchError: a run has none, or two runs were scored on different images.
    """
    tables = [_read_scores(store, run, part) for run in runs]
    first = tables[0]
    for run, table in zip(runs, tables, strict=True):
        if [row[0] for row in table] != [row[0] for row in first]:
            raise SearchError(f"run {run.info.run_name}: scored on other {part} images than {runs[0].info.run_name}")
    return PartScores(
        tuple(row[0] for row in first),
        np.array([row[1] for row in first], dtype=bool),
        np.array([[row[2] for row in table] for table in tables], dtype=np.float64),
    )


def _read_scores(store: Store, run: Run, part: str) -> list[tuple[str, bool, float]]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = store.client.download_artifacts(run.info.run_id, "scores.csv", folder)
        except (MlflowException, OSError) as err:
            raise SearchError(f"run {run.info.run_name}: has no scores.csv; was it stopped before its end?") from err
        with Path(path).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.reader(file)
            positive = next(table)[4].removeprefix("probability_")
            rows = [(row[0], row[2] == positive, float(row[4])) for row in table if row[3] == part]
    if not rows:
        raise SearchError(f"run {run.info.run_name}: has no scores on the {part} split")
    return rows
