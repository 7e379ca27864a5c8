"""The per-image scores of a run: the CSV files that hold them, written and read. Loads no TensorFlow.

`scores.csv` has one row per scored image: file, sha256, label, split, then the probability of each class in a column
`probability_CLASS`, the class to detect first. `stress_scores.csv` has the same leading columns, then the probability
of the class to detect under each change, in a column named after the change.
"""

import csv
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from mlflow.entities import Run

from fakeface_lab.errors import NotFoundError, SearchError
from fakeface_lab.tracking.lookup import fetch_artifact
from fakeface_lab.tracking.store import Store

__all__ = [
    "PartScores",
    "ScoredImage",
    "StressScores",
    "read_epoch_scores",
    "read_scores",
    "read_stress_scores",
    "write_scores",
]


class ScoredImage(NamedTuple):
    """An image and what a model says about it: one row of a scores file.

    Attributes:
        file: name of the image.
        sha256: of its file.
        label: name of its class.
        split: name of the split that it belongs to, or "external".
        scores: one number per score column.
    """

    file: str
    sha256: str
    label: str
    split: str
    scores: Sequence[float] | npt.NDArray[np.floating]


_LEADING = ScoredImage._fields[:-1]


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


def write_scores(path: Path, columns: Sequence[str], images: Iterable[ScoredImage]) -> None:
    """Write a scores file.

    Args:
        path: `scores.csv` or `stress_scores.csv` in a folder that is uploaded to the run.
        columns: names of the score columns.
        images: the rows; their scores are in the order of `columns`.
    """
    # File names may contain bytes that are not UTF-8.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.writer(file)
        table.writerow((*_LEADING, *columns))
        for image in images:
            # The repr of a float32 converted to float64 is read back bit by bit.
            table.writerow((*image[:-1], *(float(score) for score in image.scores)))


def read_scores(store: Store, runs: Sequence[Run], part: str = "test") -> PartScores:
    """Return the per-image scores that runs have logged for one split.

    Args:
        store: where the runs are.
        runs: at least one.
        part: `test` or `validation`.

    Raises:
        NotFoundError: a run has none.
        SearchError: two runs were scored on different images.
    """
    tables = [_read(store, run, "scores.csv", part) for run in runs]
    files = _common_files(runs, tables, part)
    return PartScores(files, _is_positive(tables[0]), np.stack([table.scores[:, 0] for table in tables]))


def read_epoch_scores(store: Store, run: Run) -> npt.NDArray[np.float64] | None:
    """Return the scores after each epoch of a run, on the images that chose its best epoch.

    Returns:
        float64 (num_epochs, num_images), probability of the class to detect, images in the order of `read_scores`;
        None if the run has not recorded them.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = fetch_artifact(store, run, "epoch_scores.npy", folder)
        except NotFoundError:
            return None
        return np.asarray(np.load(path), dtype=np.float64)


def read_stress_scores(store: Store, runs: Sequence[Run], part: str = "test") -> StressScores:
    """Return the per-image scores under each change that runs of a search for robustness have logged.

    Args and errors as in `read_scores`; scores under different changes are a SearchError as well.
    """
    tables = [_read(store, run, "stress_scores.csv", part) for run in runs]
    _common_files(runs, tables, part)
    for run, table in zip(runs, tables, strict=True):
        if table.columns != tables[0].columns:
            raise SearchError(
                f"run {run.info.run_name}: scored under {', '.join(table.columns)}, {runs[0].info.run_name} under "
                f"{', '.join(tables[0].columns)}; compare runs of one version of the stress suite"
            )
    # Only the columns of scores.csv tell which class is the one to detect.
    is_positive = _is_positive(_read(store, runs[0], "scores.csv", part))
    return StressScores(is_positive, tables[0].columns, np.stack([table.scores.T for table in tables]))


@dataclass(frozen=True)
class _Table:
    files: tuple[str, ...]
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    scores: npt.NDArray[np.float64]  # (num_images, num_columns)


def _is_positive(table: _Table) -> npt.NDArray[np.bool_]:
    positive = table.columns[0].removeprefix("probability_")
    return np.array([label == positive for label in table.labels], dtype=bool)


def _common_files(runs: Sequence[Run], tables: Sequence[_Table], part: str) -> tuple[str, ...]:
    # In the same order, too, because scores are stacked by position.
    for run, table in zip(runs, tables, strict=True):
        if table.files != tables[0].files:
            raise SearchError(
                f"run {run.info.run_name}: scored on different {part} images than {runs[0].info.run_name}"
            )
    return tables[0].files


def _read(store: Store, run: Run, name: str, part: str) -> _Table:
    with tempfile.TemporaryDirectory() as folder:
        path = fetch_artifact(store, run, name, folder)
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            columns = tuple(column for column in reader.fieldnames or () if column not in _LEADING)
            rows = [row for row in reader if row["split"] == part]
    if not rows:
        raise NotFoundError(f"run {run.info.run_name}: has no scores on the {part} split")
    return _Table(
        tuple(row["file"] for row in rows),
        tuple(row["label"] for row in rows),
        columns,
        np.array([[float(row[column]) for column in columns] for row in rows], dtype=np.float64),
    )
