"""Where a model looks: HiResCAM's mean map of each class over many images, and the maps of its worst scores.

Chooses the images and brings maps and figures together; the maps themselves are in `evaluation.saliency`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from fakeface_lab.backend import keras
from fakeface_lab.data.images import ImageSet
from fakeface_lab.errors import DataError, ModelError
from fakeface_lab.evaluation import explanation as saliency
from fakeface_lab.evaluation.intervals import metric_key
from fakeface_lab.figures.audit import printable
from fakeface_lab.figures.training import mean_maps, saliency_overlays

__all__ = ["Explanation", "explain"]

_MAX_IMAGES = 512  # whose maps are averaged, spread evenly over the set
_AT_ONCE = 32
_NUM_OVERLAYS = 8


@dataclass(frozen=True)
class Explanation:
    """Where a model finds its evidence.

    Attributes:
        metrics: `saliency_border_energy_<class>` and `saliency_border_area`, all in [0, 1].
        figures: by name: `saliency_mean`, `saliency_wrongest`.
        sentence: the same in words.
    """

    metrics: dict[str, float]
    figures: dict[str, Figure]
    sentence: str


def explain(
    network: keras.Model,
    images: ImageSet,
    rows: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float64],
    class_names: tuple[str, str],
) -> Explanation:
    """Explain a model's decisions on some images; without metrics and figures where its maps cannot be made.

    Args:
        network: takes float32 (n, size, size, 3) in [0, 1].
        images: all images.
        rows: int64 (num_images,), which of them; both classes.
        scores: float64 (num_images,), probability of the positive class.
        class_names: of the model, the positive class first.
    """
    shown = rows[np.unique(np.linspace(0, len(rows) - 1, _MAX_IMAGES).astype(np.int64))]
    labels = images.labels[shown]
    try:
        maps = _maps(network, images, shown)
        means = saliency.mean_evidence(maps, labels)
        shares = [saliency.border_share(saliency.evidence(maps[labels == index], index)) for index in (0, 1)]
    except (ModelError, DataError) as err:
        return Explanation({}, {}, f"Where it looks cannot be shown: {err}.")
    area, energies = shares[0].area, [share.energy for share in shares]
    metrics = {
        f"saliency_border_energy_{metric_key(name)}": energy for name, energy in zip(class_names, energies, strict=True)
    }
    of_each = " and ".join(
        f"{energy:.0%} of its evidence for {name}" for name, energy in zip(class_names, energies, strict=True)
    )
    wrongest = np.argsort(-np.abs(scores - (images.labels[rows] == 0)), kind="stable")[:_NUM_OVERLAYS]
    captions = [
        f"{printable(Path(images.files[rows[at]].name).name)}\nP({class_names[0]}) = {scores[at]:.3f}"
        for at in wrongest
    ]
    figures = {
        "saliency_mean": mean_maps(means, class_names, energies, area, saliency.BORDER_FRACTION),
        "saliency_wrongest": saliency_overlays(
            images.pixels[rows[wrongest]], _maps(network, images, rows[wrongest]), captions, class_names
        ),
    }
    sentence = f"It finds {of_each} in the outer border, which is {area:.0%} of the area."
    return Explanation(metrics | {"saliency_border_area": area}, figures, sentence)


def _maps(network: keras.Model, images: ImageSet, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    parts = []
    for first in range(0, len(rows), _AT_ONCE):
        pixels = images.pixels[rows[first : first + _AT_ONCE]]
        parts.append(saliency.hirescam(network, (pixels / 255).astype(np.float32)))
    return np.concatenate(parts)
