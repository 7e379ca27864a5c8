"""Pictures to change, and what a condition of the suite makes of them."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fakeface_lab.evaluation.stress.changes import apply
from fakeface_lab.evaluation.stress.suite import CONDITIONS

BY_NAME = {condition.name: condition for condition in CONDITIONS}


def pictures(num_images: int = 5, height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(7).integers(0, 256, (num_images, 5, 6, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)) for image in coarse]
    )


def stressed(name: str, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([apply(BY_NAME[name], image) for image in images])
