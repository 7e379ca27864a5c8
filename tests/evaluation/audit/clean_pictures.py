"""Pictures that nothing separates, to plant something in, and what each probe makes of them."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from fakeface_lab.evaluation.audit.probes import run_probes, stratified_folds

NUM_IMAGES = 240


def clean_set(seed: int, num_images: int = NUM_IMAGES) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Random pictures whose labels are unrelated to their content."""
    rng = np.random.default_rng(seed)
    images = np.stack(
        [
            np.asarray(Image.fromarray(rng.integers(40, 210, (6, 6, 3), dtype=np.uint8)).resize((64, 64)))
            for _ in range(num_images)
        ]
    )
    noisy = np.clip(images + rng.normal(0, 6, images.shape), 0, 255).astype(np.uint8)
    return noisy, rng.permutation(np.arange(num_images) % 2).astype(np.int64)


def probe_aucs(
    images: NDArray[np.uint8], labels: NDArray[np.int64], properties: pd.DataFrame | None = None
) -> dict[str, float]:
    folds = stratified_folds(labels, np.arange(len(labels)))
    return {result.name: result.auc for result in run_probes(images, properties, labels, folds)}
