"""Any number of small pictures, made in little time: smooth noise, darker in one class than in the other."""

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["make_pictures"]


def make_pictures(root: Path, num_pictures: int, size_px: int) -> Path:
    """Write JPEGs of `size_px`, half of them to `fake/`, half to `real/`, and return `root`."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("fake", "real")):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(num_pictures // 2):
            coarse = rng.integers(60 * label, 200 + 55 * label, (8, 8, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((size_px, size_px), Image.Resampling.BICUBIC)
            picture.save(folder / f"{name}_{number}.jpg", quality=85)
    return root
