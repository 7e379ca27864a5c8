"""How good the scores of one model are: the documented figures, the detection panel, and calibration.

Owns which figures there are and what they are called in a run. Intervals come from `intervals`; whether one model is
better than another is decided in `comparison`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn import metrics as sk

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.intervals import (
    THRESHOLD,
    BoolArray,
    FloatArray,
    Rate,
    check_detection,
    check_fraction,
    metric_key,
    wilson,
)

__all__ = [
    "Calibration",
    "DetectionScores",
    "PredictiveValue",
    "ReliabilityBin",
    "calibration",
    "detection_scores",
    "documented_scores",
]

MAX_FPR = 0.05  # 1 % of the 118 reals in a typical documented test split would be one image
# A recall at MAX_FPR is only reported if that rate amounts to at least this many negatives.
MIN_FALSE_POSITIVES = 5
PREVALENCES = (0.5, 0.1, 0.01)  # with recalls of 0.99, "positive" is right in 0.99, 0.92 and 0.50 of cases
NUM_SIMULATIONS = 1000  # of a calibrated model


def documented_scores(probabilities: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Accuracy and F1 computed the way the documented result was.

    Both softmax outputs are compared with 0.5 and flattened over images and classes, as are the one-hot labels; then
    come scikit-learn's `accuracy_score` and binary `f1_score`. Each image thus counts once per class, and unless both
    outputs are 0.5 the F1 equals the accuracy and is not the F1 of either class (`detection_scores` has those).

    Args:
        probabilities: float32 (N, 2), softmax output, one column per class index.
        labels: int (N,), class index, 0 or 1.

    Returns:
        `documented_accuracy` and `documented_f1`, both in [0, 1].

    Raises:
        DataError: wrong shapes, no image, a label that is not 0 or 1, or an output that is not a probability.
    """
    outputs, classes = np.asarray(probabilities), np.asarray(labels)
    if outputs.ndim != 2 or outputs.shape[1] != 2 or outputs.shape[0] == 0:
        raise DataError(f"probabilities have shape {outputs.shape}, expected (num_images, 2), at least one image")
    if classes.shape != outputs.shape[:1]:
        raise DataError(f"labels have shape {classes.shape}, expected {outputs.shape[:1]}: one per image")
    if not np.issubdtype(classes.dtype, np.integer) or not np.isin(classes, (0, 1)).all():
        raise DataError("labels hold values other than the class indices 0 and 1; pass int (num_images,)")
    if not ((outputs >= 0) & (outputs <= 1)).all():
        raise DataError("probabilities hold NaN or a value outside 0 to 1; pass the softmax output")
    predicted = (outputs > THRESHOLD).astype(int).ravel()
    actual = np.eye(2, dtype=int)[classes].ravel()
    return {
        "documented_accuracy": float(sk.accuracy_score(actual, predicted)),
        "documented_f1": float(sk.f1_score(actual, predicted)),
    }


@dataclass(frozen=True)
class PredictiveValue:
    """How often "positive" is right if positives are as frequent as `prevalence` (Bayes' rule).

    Attributes:
        prevalence: share of positives where the model is used, in (0, 1).
        value: from the measured recalls, in [0, 1]; None if the model calls no image positive.
        low: from the lower ends of both recalls, in [0, 1]; with few negatives far below the value.
        high: from the upper ends. The recalls' intervals are wide enough to hold jointly at 95 %.
    """

    prevalence: float
    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class DetectionScores:
    """One model on one set of images; figures that need both classes are None if only one is present.

    Attributes:
        class_names: the positive class first.
        threshold: an image is decided positive if its score is above it.
        tp: positives decided positive.
        fn: positives decided negative.
        fp: negatives decided positive.
        tn: negatives decided negative.
        accuracy: share of right decisions.
        recall_positive: share of positives found (true positive rate); None without positives.
        recall_negative: share of negatives recognized (true negative rate); None without negatives.
        precision_positive: share of right decisions among those for "positive"; None without any.
        precision_negative: the same for "negative".
        balanced_accuracy: mean of both recalls, in [0, 1].
        f1_positive: harmonic mean of precision and recall of the positive class, in [0, 1].
        f1_negative: the same for the negative class.
        roc_auc: probability that a positive scores above a negative, ties count half, in [0, 1].
        average_precision: of the positive class, in (0, 1]; changes if the classes are swapped.
        equal_error_rate: rate at which misses and false alarms are equally frequent, interpolated on the ROC.
        brier: mean squared distance between score and truth, in [0, 1], lower is better.
        log_loss: mean negative log-likelihood in nats, 0 or more, lower is better.
        tpr_at_max_fpr: best recall of positives with at most 5 % false positives; the threshold is picked on the same
            images. None if 5 % of the negatives are fewer than 5 images.
        predictive_values: at 50, 10 and 1 % positives; empty with one class.
    """

    class_names: tuple[str, str]
    threshold: float
    tp: int
    fn: int
    fp: int
    tn: int
    accuracy: Rate
    recall_positive: Rate | None
    recall_negative: Rate | None
    precision_positive: Rate | None
    precision_negative: Rate | None
    balanced_accuracy: float | None
    f1_positive: float | None
    f1_negative: float | None
    roc_auc: float | None
    average_precision: float | None
    equal_error_rate: float | None
    brier: float
    log_loss: float
    tpr_at_max_fpr: Rate | None
    predictive_values: tuple[PredictiveValue, ...]

    def metrics(self) -> dict[str, float]:
        """Flat metrics for a run, such as `accuracy`, `accuracy_low`, `recall_fake`, `num_fake_as_real`.

        Rates come with their interval (`_low`, `_high`) and counts (`_num_correct`, `_num_total`). Figures that are
        None are left out.
        """
        positive, negative = (metric_key(name) for name in self.class_names)
        rates = {
            "accuracy": self.accuracy,
            f"recall_{positive}": self.recall_positive,
            f"recall_{negative}": self.recall_negative,
            f"precision_{positive}": self.precision_positive,
            f"precision_{negative}": self.precision_negative,
            f"tpr_at_fpr_{100 * MAX_FPR:.0f}_percent": self.tpr_at_max_fpr,
        }
        numbers = {
            "balanced_accuracy": self.balanced_accuracy,
            f"f1_{positive}": self.f1_positive,
            f"f1_{negative}": self.f1_negative,
            "roc_auc": self.roc_auc,
            "average_precision": self.average_precision,
            "equal_error_rate": self.equal_error_rate,
            "brier": self.brier,
            "log_loss": self.log_loss,
            f"num_{positive}_as_{positive}": float(self.tp),
            f"num_{positive}_as_{negative}": float(self.fn),
            f"num_{negative}_as_{positive}": float(self.fp),
            f"num_{negative}_as_{negative}": float(self.tn),
        }
        for ppv in self.predictive_values:
            name = f"ppv_at_{100 * ppv.prevalence:.0f}_percent"
            numbers |= {name: ppv.value, f"{name}_low": ppv.low, f"{name}_high": ppv.high}
        flat: dict[str, float] = {}
        for name, rate in rates.items():
            if rate is not None:
                flat |= rate.metrics(name)
        return flat | {name: number for name, number in numbers.items() if number is not None}


def detection_scores(
    is_positive: ArrayLike, scores: ArrayLike, class_names: tuple[str, str], threshold: float = THRESHOLD
) -> DetectionScores:
    """The detection panel of one model on one set of images.

    Args:
        is_positive: bool (N,).
        scores: float64 (N,), probability of the positive class in [0, 1].
        class_names: the positive class first, for example ("fake", "real").
        threshold: decided positive above it, in (0, 1); never fitted on these images.

    Raises:
        DataError: wrong dtypes or shapes, no image, or a score that is NaN or outside [0, 1].
        ConfigError: a threshold outside (0, 1), or class names with the same metric key.
    """
    truth, values = check_detection(is_positive, scores)
    check_fraction(threshold, "threshold")
    if metric_key(class_names[0]) == metric_key(class_names[1]):
        raise ConfigError(f"the classes {class_names} have the same metric name; rename one")
    decided = values > threshold
    tp, fn = int((truth & decided).sum()), int((truth & ~decided).sum())
    fp, tn = int((~truth & decided).sum()), int((~truth & ~decided).sum())
    both = tp + fn > 0 and fp + tn > 0
    return DetectionScores(
        class_names=class_names,
        threshold=threshold,
        tp=tp,
        fn=fn,
        fp=fp,
        tn=tn,
        accuracy=wilson(tp + tn, truth.size),
        recall_positive=_rate_or_none(tp, tp + fn),
        recall_negative=_rate_or_none(tn, tn + fp),
        precision_positive=_rate_or_none(tp, tp + fp) if both else None,
        precision_negative=_rate_or_none(tn, tn + fn) if both else None,
        balanced_accuracy=float(sk.balanced_accuracy_score(truth, decided)) if both else None,
        f1_positive=float(sk.f1_score(truth, decided)) if both else None,
        f1_negative=float(sk.f1_score(~truth, ~decided)) if both else None,
        roc_auc=float(sk.roc_auc_score(truth, values)) if both else None,
        average_precision=float(sk.average_precision_score(truth, values)) if both else None,
        equal_error_rate=_equal_error_rate(truth, values) if both else None,
        brier=float(sk.brier_score_loss(truth, values, pos_label=True)),
        log_loss=float(sk.log_loss(truth, values, labels=[False, True])),  # a single class has a log loss too
        tpr_at_max_fpr=_tpr_at_max_fpr(truth, values) if both else None,
        predictive_values=tuple(_predictive_value(p, tp, fn, fp, tn) for p in PREVALENCES) if both else (),
    )


def _rate_or_none(num_correct: int, num_total: int) -> Rate | None:
    return wilson(num_correct, num_total) if num_total else None


def _equal_error_rate(truth: BoolArray, values: FloatArray) -> float:
    fpr, tpr, _ = sk.roc_curve(truth, values)
    # fpr - (1 - tpr) rises strictly from -1 to 1, because each point of the curve moves right or up.
    return float(np.interp(0.0, fpr + tpr - 1.0, fpr))


def _tpr_at_max_fpr(truth: BoolArray, values: FloatArray) -> Rate | None:
    num_positive, num_negative = int(truth.sum()), int((~truth).sum())
    if num_negative * MAX_FPR < MIN_FALSE_POSITIVES:
        return None
    fpr, tpr, _ = sk.roc_curve(truth, values, drop_intermediate=False)  # points on a straight count too
    return wilson(round(num_positive * float(tpr[fpr <= MAX_FPR].max())), num_positive)


def _predictive_value(prevalence: float, tp: int, fn: int, fp: int, tn: int) -> PredictiveValue:
    def ppv(tpr: float, tnr: float) -> float:
        right, wrong = tpr * prevalence, (1.0 - tnr) * (1.0 - prevalence)
        return right / (right + wrong)

    # Two intervals have to hold jointly (Bonferroni), so each gets half of the 5 %.
    tpr, tnr = wilson(tp, tp + fn, 0.975), wilson(tn, tn + fp, 0.975)
    value = ppv(tpr.value, tnr.value) if tp + fp else None
    return PredictiveValue(prevalence, value, low=ppv(tpr.low, tnr.low), high=ppv(tpr.high, tnr.high))


@dataclass(frozen=True)
class ReliabilityBin:
    """The images of one bin: one point of a reliability diagram.

    Attributes:
        mean_score: mean predicted probability, in [0, 1].
        positive: observed share of positives, with counts and Wilson interval.
        null_low: 2.5 % quantile of the share if the scores are calibrated (consistency bars, Broecker and Smith 2007).
        null_high: 97.5 % quantile.
    """

    mean_score: float
    positive: Rate
    null_low: float
    null_high: float


@dataclass(frozen=True)
class Calibration:
    """Calibration of one model on one set of images.

    Attributes:
        ece: expected calibration error over bins of equal mass, in [0, 1]; above 0 even for a calibrated model.
        null_mean: mean ECE of a calibrated model with the same scores.
        null_high: its 95 % quantile.
        bins: the reliability table, by rising score.
    """

    ece: float
    null_mean: float
    null_high: float
    bins: tuple[ReliabilityBin, ...]

    @property
    def is_miscalibrated(self) -> bool:
        """Whether the error is larger than chance explains, at the 95 % level."""
        return self.ece > self.null_high

    def metrics(self) -> dict[str, float]:
        """`ece`, `ece_null_mean` and `ece_null_high`, for a run."""
        return {"ece": self.ece, "ece_null_mean": self.null_mean, "ece_null_high": self.null_high}

    def __str__(self) -> str:
        verdict = "more than" if self.is_miscalibrated else "no more than"
        return f"ECE {self.ece:.4f}, {verdict} a calibrated model has by chance (95 %: up to {self.null_high:.4f})"


def calibration(is_positive: ArrayLike, scores: ArrayLike, seed: int = 0) -> Calibration:
    """Expected calibration error with equal-mass bins, compared with what a calibrated model has by chance.

    Bins of equal mass have less bias than bins of equal width (Roelofs et al. 2022); there are 5 below 300 images, else
    10. Images with equal scores share a bin, so that their order does not matter; saturated scores then fill fewer
    bins. The null distribution draws each image's class from its score, 1,000 times.

    Args:
        is_positive: bool (N,); a single class is allowed.
        scores: float64 (N,), probability of the positive class in [0, 1].
        seed: of the simulations.

    Raises:
        DataError: wrong dtypes or shapes, no image, or a score that is NaN or outside [0, 1].
    """
    truth, values = check_detection(is_positive, scores)
    bins = _equal_mass_bins(values)
    counts = np.bincount(bins)
    mean_scores = np.bincount(bins, weights=values) / counts
    rng = np.random.default_rng(seed)
    # One simulation at a time, so that memory does not grow with their number.
    null_shares = np.array(
        [np.bincount(bins, weights=rng.random(values.size) < values) / counts for _ in range(NUM_SIMULATIONS)]
    )
    shares = np.bincount(bins, weights=truth) / counts
    weights = counts / values.size
    null_eces = np.abs(null_shares - mean_scores) @ weights
    null_low, null_high = np.quantile(null_shares, [0.025, 0.975], axis=0)
    rates = [wilson(int(truth[bins == index].sum()), int(num_images)) for index, num_images in enumerate(counts)]
    ece = float(np.abs(shares - mean_scores) @ weights)
    table = zip(mean_scores.tolist(), rates, null_low.tolist(), null_high.tolist(), strict=True)
    return Calibration(
        ece, float(null_eces.mean()), float(np.quantile(null_eces, 0.95)), tuple(ReliabilityBin(*row) for row in table)
    )


def _equal_mass_bins(values: FloatArray) -> NDArray[np.intp]:
    """Bin of each image, int (N,), numbered from 0 by rising score, without gaps."""
    # With 258 images the mean ECE of a calibrated model was 0.031 with 15 bins of equal mass, 0.018 with 5.
    num_bins = 5 if values.size < 300 else 10
    # The mean rank of equal scores keeps them together, in the bin of their midpoint.
    position = (rankdata(values) - 0.5) / values.size
    return np.unique((position * num_bins).astype(np.intp), return_inverse=True)[1]
