"""Likely wrong labels: images that all probes together take for the other class.

Owns which images are suspect, and in which order. Whether a label is wrong only a look at the picture can say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fakeface_lab.evaluation.card import Finding
from fakeface_lab.evaluation.probes import ProbeResult

__all__ = ["Suspects", "label_finding", "likely_wrong_labels"]

_MAX_NAMED_FILES = 100  # in the finding's evidence; its count is always whole


@dataclass(frozen=True)
class Suspects:
    """Images whose label is in doubt.

    Attributes:
        rows: int64 (n,), most suspicious first.
        probabilities: float64 (n,), of the label that they have, in [0, 1].
    """

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def likely_wrong_labels(
    probes: Sequence[ProbeResult], labels: NDArray[np.int64], *, min_probe_auc: float, min_auc: float
) -> Suspects:
    """Rank the images that out-of-fold scores speak against (confident learning, Northcutt et al. 2021).

    An image is suspect when the probability of the other class is at least what images labelled so have on average.
    Probabilities are the mean over the probes that separate the classes.

    Args:
        probes: from `probes.run_probes`.
        labels: int64 (N,), 0 for the positive class.
        min_probe_auc: AUC from which a probe has a say, 0 to 1.
        min_auc: AUC of the mean from which it is trusted with a label; below there are no suspects.
    """
    voting = [probe.scores for probe in probes if probe.kind != "majority" and probe.auc >= min_probe_auc]
    is_positive = labels == 0
    nobody = Suspects(np.empty(0, dtype=np.int64), np.empty(0))
    if not voting:
        return nobody
    positive = np.mean(voting, axis=0)
    own, other = np.where(is_positive, [positive, 1 - positive], [1 - positive, positive])
    if roc_auc_score(is_positive, positive) < min_auc:
        return nobody
    usual = np.array([own[is_positive].mean(), own[~is_positive].mean()])
    is_suspect = (other >= usual[1 - labels]) & (other > own)
    rows = np.flatnonzero(is_suspect)
    rows = rows[np.argsort(own[rows], kind="stable")]
    return Suspects(rows, own[rows])


def label_finding(suspects: Suspects, names: Sequence[str], num_images: int) -> list[Finding]:
    """The finding about suspect labels, none where there are none."""
    num_suspects = len(suspects.rows)
    if num_suspects == 0:
        return []
    images = "1 image looks" if num_suspects == 1 else f"{num_suspects} images look"
    sentence = (
        f"{images} like the other class to all probes together: see in suspects.png whether the labels are wrong."
    )
    evidence = {
        "reason": "suspect labels",
        "num_images": num_suspects,
        "files": [names[row] for row in suspects.rows[:_MAX_NAMED_FILES]],
        "probabilities": suspects.probabilities[:_MAX_NAMED_FILES].tolist(),
    }
    return [Finding("info", "labels", sentence, evidence, num_suspects / num_images)]
