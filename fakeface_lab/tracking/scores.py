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

__all__ = ["PartScores", "StressScores", "epoch_scores", "part_scores", "stress_scores"]

# Before the columns with a number in scores.csv and stress_scores.csv: file, sha256, label, split.
_NUM_LEADING = 4


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


@dataclass(frozen=True)
class StressScores:
    """Per-image scores of several runs on the same images under the same changes.

    Attributes:
        is_positive: bool (num_images,).
        conditions: names of the changes, `clean` first.
        scores: float64 (num_runs, num_conditions, num_images), probability of the class to detect.
    """

    is_positive: npt.NDArray[np.bool_]
    conditions: tuple[str, ...]
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
    tables = [_read(store, run, "scores.csv", part) for run in runs]
    files = _common_files(runs, tables, part)
    return PartScores(files, _is_positive(tables[0]), np.stack([table.numbers[:, 0] for table in tables]))


def epoch_scores(store: Store, run: Run) -> npt.NDArray[np.float64] | None:
    """Return the scores after each epoch of a run, on the images that chose the kept one.

    Returns:
        float64 (num_epochs, num_images), probability of the class to detect, images in the order of `part_scores`;
        None where the run has not recorded them.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = store.client.download_artifacts(run.info.run_id, "epoch_scores.npy", folder)
        except (MlflowException, OSError):
            return None
        return np.asarray(np.load(path), dtype=np.float64)


def stress_scores(store: Store, runs: Sequence[Run], part: str = "test") -> StressScores:
    """Return the per-image scores under each change that runs of a search for robustness have logged.

    Args and errors as in `part_scores`; runs scored under different changes are refused as well.
    """
    tables = [_read(store, run, "stress_scores.csv", part) for run in runs]
    _common_files(runs, tables, part)
    for run, table in zip(runs, tables, strict=True):
        if table.columns != tables[0].columns:
            raise SearchError(
                f"run {run.info.run_name}: scored under {', '.join(table.columns)}, {runs[0].info.run_name} under "
                f"{', '.join(tables[0].columns)}; compare runs of one version of the stress suite"
            )
    # The columns of this table are named by the changes; which class they are about is in the other one.
    is_positive = _is_positive(_read(store, runs[0], "scores.csv", part))
    return StressScores(is_positive, tables[0].columns, np.stack([table.numbers.T for table in tables]))


@dataclass(frozen=True)
class _Table:
    files: tuple[str, ...]
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    numbers: npt.NDArray[np.float64]


def _is_positive(scores: _Table) -> npt.NDArray[np.bool_]:
    positive = scores.columns[0].removeprefix("probability_")
    return np.array([label == positive for label in scores.labels], dtype=bool)


def _common_files(runs: Sequence[Run], tables: Sequence[_Table], part: str) -> tuple[str, ...]:
    for run, table in zip(runs, tables, strict=True):
        if table.files != tables[0].files:
            raise SearchError(f"run {run.info.run_name}: scored on other {part} images than {runs[0].info.run_name}")
    return tables[0].files


def _read(store: Store, run: Run, name: str, part: str) -> _Table:
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = store.client.download_artifacts(run.info.run_id, name, folder)
        except (MlflowException, OSError) as err:
            raise SearchError(f"run {run.info.run_name}: has no {name}; was it stopped before its end?") from err
        with Path(path).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            heading, *rows = csv.reader(file)
    rows = [row for row in rows if row[3] == part]
    if not rows:
        raise SearchError(f"run {run.info.run_name}: has no scores on the {part} split")
    return _Table(
        tuple(row[0] for row in rows),
        tuple(row[2] for row in rows),
        tuple(heading[_NUM_LEADING:]),
        np.array([[float(value) for value in row[_NUM_LEADING:]] for row in rows], dtype=np.float64),
    )
