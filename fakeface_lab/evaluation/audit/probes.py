"""Probes: small models that see almost nothing of a picture, so that what they get right needs no detector.

Owns how a probe is trained and scored; its features are in `features`. Shortcut probes see framing, colours or the
file; forensic probes see the traces that generators and processing leave in pixels. `audit` decides what a score means
for the data set.

A probe of pixels is `StandardScaler` + `LogisticRegression`, one of a table `HistGradientBoostingClassifier`
(scikit-learn). Classes are not weighted: the figure to beat is an accuracy, so the probes maximize accuracy too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, StratifiedGroupKFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.audit.features import (
    PICTURE_PROBES,
    THUMBNAIL_PROBE,
    THUMBNAIL_PX,
    Images,
    Kind,
    feature_table,
)
from fakeface_lab.evaluation.intervals import THRESHOLD, BoolArray, FloatArray, Rate, positives, wilson

__all__ = [
    "ProbeResult",
    "mean_faces",
    "probe_on_split",
    "run_probes",
    "stratified_folds",
    "thumbnail_weights",
]

IntArray = NDArray[np.int64]

_MIN_VALUE_FRACTION = 0.01  # of the images; rarer texts share one category
_FILE_SEES = "the file's shape, format and metadata"
_COLOUR_COLUMNS = ["is_gray", "saturation", "colourfulness", "mean_red", "mean_green", "mean_blue"]


@dataclass(frozen=True)
class ProbeResult:
    """What one probe gets right on pictures it was not trained on.

    Attributes:
        name: short name, used in metric keys.
        kind: "majority" (guesses), "shortcut" (should be no better than guessing) or "forensic" (may be better).
        sees: its input, in words that follow "sees only".
        accuracy: share of right decisions at `THRESHOLD`.
        auc: area under the ROC curve, 0 to 1; 0.5 for the majority.
        scores: float64 (N,), probability of the positive class (index 0), in [0, 1].
    """

    name: str
    kind: Kind
    sees: str
    accuracy: Rate
    auc: float
    scores: FloatArray


def run_probes(
    images: Images, properties: pd.DataFrame | None, labels: IntArray, folds: IntArray, seed: int = 0
) -> list[ProbeResult]:
    """Train every probe with cross-validation and score it out of fold.

    Args:
        images: uint8 (N, H, W, 3), RGB; may be memory-mapped.
        properties: N rows, all columns of `data.properties` except those that follow from the content; None leaves out
            the two probes that see only colour figures or only the file. Text columns are categories.
        labels: int64 (N,), 0 for the positive class, 1 for the negative one.
        folds: int64 (N,), the fold that scores each picture.
        seed: of the boosted trees.

    Returns:
        The majority, then one result per probe; `accuracy` and `auc` over the pooled out-of-fold scores.

    Raises:
        DataError: different lengths, labels other than 0 and 1, or a fold without which only one class is left.
    """
    _check(len(images), labels, folds)
    is_positive = positives(labels)
    results = [_majority(is_positive, folds)]
    for probe in PICTURE_PROBES:
        scores = _out_of_fold(_linear(), feature_table(images, probe), is_positive, folds)
        results.append(_result(probe.name, probe.kind, probe.sees, is_positive, scores))
    if properties is not None:
        # Apart, so that a finding says whether the colours or the way of saving give the label away.
        colour = properties[[column for column in properties if column in _COLOUR_COLUMNS]]
        rest = properties[[column for column in properties if column not in _COLOUR_COLUMNS]]
        for name, sees, table in [
            ("colour", "overall grayness, saturation and brightness", colour),
            ("file", _FILE_SEES, rest),
        ]:
            if table.shape[1]:
                scores = _out_of_fold(_boosted(seed), _numeric(table), is_positive, folds)
                results.append(_result(name, "shortcut", sees, is_positive, scores))
    return results


def probe_on_split(
    train_images: Images,
    train_labels: IntArray,
    test_images: Images,
    test_labels: IntArray,
    properties: pd.DataFrame | None = None,
) -> ProbeResult:
    """Train the best of the fast shortcut probes on a run's training split and score it on the run's test split.

    The probe is chosen by cross-validation within the training split, so its figure is not the best of several looks at
    the test split. Used for the explained share.

    Args:
        train_images: uint8 (N, H, W, 3), RGB.
        train_labels: int64 (N,), 0 for the positive class, 1 for the negative one.
        test_images: uint8 (M, H, W, 3), RGB.
        test_labels: int64 (M,).
        properties: N + M rows, first the training and then the test pictures, with the columns that `run_probes` uses
            for the file; None leaves out the probe that sees only the file.

    Returns:
        The chosen probe's result on the M test pictures.

    Raises:
        DataError: different lengths, labels other than 0 and 1, or a class with a single training picture.
    """
    # Few, because a run waits for them; they only pick the probe, whose figure comes from the test split.
    num_folds = 3
    _check(len(test_images), test_labels)
    # Without groups: a look-alike in two folds can mislead the pick, but not the figure.
    folds = stratified_folds(train_labels, np.arange(len(train_labels)), min(num_folds, _smallest(train_labels)))
    _check(len(train_images), train_labels, folds)
    is_positive = positives(train_labels)
    candidates: list[tuple[str, str, Any, FloatArray, Callable[[Images], FloatArray]]] = [
        (probe.name, probe.sees, _linear(), feature_table(train_images, probe), partial(feature_table, probe=probe))
        for probe in PICTURE_PROBES
        # A forensic trace may well be what a model should find, so it does not explain an accuracy away.
        if probe.kind == "shortcut"
    ]
    if properties is not None:
        # Both parts at once, so that they get the same columns for the same texts.
        table = _numeric(properties)
        train, test = table[: len(train_labels)], table[len(train_labels) :]
        candidates.append(("file", _FILE_SEES, _boosted(seed=0), train, lambda _: test))
    accuracies = [
        cross_val_score(model, table, is_positive, cv=PredefinedSplit(folds)).mean()
        for _, _, model, table, _ in candidates
    ]
    name, sees, model, table, test_table = candidates[int(np.argmax(accuracies))]
    scores = model.fit(table, is_positive).predict_proba(test_table(test_images))[:, 1]
    return _result(name, "shortcut", sees, positives(test_labels), scores)


def stratified_folds(labels: IntArray, groups: IntArray, num_folds: int = 5, seed: int = 0) -> IntArray:
    """Assign each picture the fold that scores it: classes spread evenly, groups kept whole.

    Args:
        labels: int64 (N,).
        groups: int64 (N,), e.g. near-duplicate groups; `np.arange(N)` for none.
        num_folds: at least 2.
        seed: of the shuffling.

    Returns:
        int64 (N,), 0 to num_folds - 1 (`sklearn.model_selection.StratifiedGroupKFold`).

    Raises:
        DataError: a class has fewer pictures than there are folds, or there are fewer than two folds.
    """
    if not 2 <= num_folds <= _smallest(labels):
        raise DataError(
            f"{num_folds} folds cannot be made: expected 2 to the size of the smallest class, here "
            f"{_smallest(labels)}; add pictures or use fewer folds"
        )
    folds = np.zeros(len(labels), dtype=np.int64)
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    for fold, (_, scored) in enumerate(splitter.split(labels, labels, groups)):
        folds[scored] = fold
    return folds


def mean_faces(images: Images, labels: IntArray) -> FloatArray:
    """Mean picture of each class, float64 (2, H, W, 3), 0 to 255, in the order of the class index."""
    # Picture by picture: selecting a class of a memory-mapped set would copy half of it into memory.
    sums = np.zeros((2, *np.shape(images[0])))
    for pixels, label in zip(images, labels, strict=True):
        sums[label] += pixels
    counts = np.bincount(labels, minlength=2).reshape(2, 1, 1, 1)
    return np.asarray(sums / np.maximum(counts, 1))


def thumbnail_weights(images: Images, labels: IntArray) -> FloatArray:
    """Weights of the thumbnail probe trained on all pictures.

    Returns:
        float64 (16, 16, 3): change of the log-odds of the positive class per standard deviation of the value. Values
        above 0 are evidence for the positive class.
    """
    _check(len(images), labels)
    model = _linear().fit(feature_table(images, THUMBNAIL_PROBE), positives(labels))
    return np.asarray(model[-1].coef_.reshape(THUMBNAIL_PX, THUMBNAIL_PX, 3), dtype=np.float64)


def _linear() -> Any:
    # The scaler belongs to the model, so that each fold is scaled by its own training pictures only.
    # On the documented images three of the eight probes need more than scikit-learn's 100 iterations, the corners 209.
    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))


def _boosted(seed: int) -> Any:
    # Few and shallow trees, because the defaults are meant for larger tables.
    # On the colours of the documented images they have an AUC of 0.789, the defaults 0.779 in five times the time.
    return HistGradientBoostingClassifier(max_iter=50, max_depth=3, random_state=seed)


def _numeric(table: pd.DataFrame) -> FloatArray:
    """The table with one column per value of each text; rare values share one, or each photograph would get its own."""
    text = list(table.select_dtypes(exclude=["number", "bool"]))
    shown = table.copy()
    for name in text:
        is_rare = table[name].map(table[name].value_counts()) < _MIN_VALUE_FRACTION * len(table)
        shown[name] = table[name].mask(is_rare, "rare")
    # The boosted trees reject a column without any value, such as the JPEG quality in a fold without a JPEG.
    return pd.get_dummies(shown, columns=text).to_numpy(dtype=np.float64, na_value=-1.0)


def _out_of_fold(model: Any, table: FloatArray, is_positive: BoolArray, folds: IntArray) -> FloatArray:
    scores = cross_val_predict(model, table, is_positive, cv=PredefinedSplit(folds), method="predict_proba")
    return np.asarray(scores[:, 1], dtype=np.float64)


def _majority(is_positive: BoolArray, folds: IntArray) -> ProbeResult:
    # Fold by fold like every probe, so that this one does not know the class sizes of the fold it scores either.
    scores = np.zeros(len(folds))
    for fold in np.unique(folds):
        scores[folds == fold] = is_positive[folds != fold].mean()
    # Class shares that differ between folds do not rank pictures, so its AUC is one half by definition.
    accuracy = wilson(int(((scores > THRESHOLD) == is_positive).sum()), len(scores))
    return ProbeResult("majority", "majority", "the number of pictures in each class", accuracy, 0.5, scores)


def _result(name: str, kind: Kind, sees: str, is_positive: BoolArray, scores: FloatArray) -> ProbeResult:
    accuracy = wilson(int(((scores > THRESHOLD) == is_positive).sum()), len(scores))
    return ProbeResult(name, kind, sees, accuracy, float(roc_auc_score(is_positive, scores)), scores)


def _smallest(labels: IntArray) -> int:
    return int(np.bincount(labels, minlength=2).min())


def _check(num_images: int, labels: IntArray, folds: IntArray | None = None) -> None:
    for name, values in (("labels", labels), ("folds", folds)):
        if values is not None and len(values) != num_images:
            raise DataError(f"{num_images} images but {len(values)} {name}; pass one per image")
    if set(np.unique(labels)) != {0, 1}:
        raise DataError(f"labels are {sorted(set(labels.tolist()))}, expected both 0 (positive) and 1 (negative)")
    if folds is not None:
        for fold in np.unique(folds):
            if len(np.unique(labels[folds != fold])) < 2:
                raise DataError(f"fold {fold} leaves one class to train on; spread both classes over the folds")
