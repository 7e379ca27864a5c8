"""Decoded images a second: `load_images` with an empty and a filled cache beside `keras.utils.load_img` in a loop.

    python benchmarks/decoding.py data/hardfakevsrealfaces --rounds 5 --output FOLDER
    python benchmarks/decoding.py demo --image-size 64 --rounds 2

In one process, all sides in turn; ratios are from the same round. The loop is the documented one: `load_img` with
`target_size`, `img_to_array`; its float32 arrays are let go at once. `load_images` also hashes every file and checks
it; cold, it writes the pixels to the cache, warm, all are read from there. The system has the files in memory from the
first round on, which is not counted.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from results import table, write_results

from fakeface_lab.backend import keras
from fakeface_lab.data.images import load_images
from fakeface_lab.data.sources import Source, find_source, list_files

__all__: list[str] = []

LOOP = "load_img in a loop"


def load_img_all(paths: Sequence[Path], size_px: int) -> None:
    """Decode as the documented recipe does."""
    for path in paths:
        keras.utils.img_to_array(keras.utils.load_img(path, target_size=(size_px, size_px)))


def measure_round(source: Source, paths: Sequence[Path], size_px: int, cache: Path) -> dict[str, tuple[float, float]]:
    """Return wall and CPU seconds of each side."""
    shutil.rmtree(cache, ignore_errors=True)

    def read_all() -> None:
        np.add.reduce(load_images(source, size_px).pixels, axis=None, dtype=np.int64)

    sides = {
        LOOP: lambda: load_img_all(paths, size_px),
        "load_images, cold": lambda: load_images(source, size_px),
        "load_images, warm": read_all,
    }
    secs = {}
    for side, decode in sides.items():
        began, cpu_began = time.perf_counter(), time.process_time()
        decode()
        secs[side] = (time.perf_counter() - began, time.process_time() - cpu_began)
    return secs


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder with two class folders, or demo")
    parser.add_argument("--image-size", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="folder for the results as Markdown and JSON")
    options = parser.parse_args()
    source = find_source(options.data, None, Path.cwd(), options.image_size)
    paths = [file.path for file in list_files(source)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FAKEFACE_CACHE"] = folder
        cache = Path(folder) / "pixels"
        rounds = [measure_round(source, paths, options.image_size, cache) for _ in range(options.rounds + 1)][1:]
    rows = []
    for side in rounds[0]:
        rate, cpu_ms = (
            len(paths) / statistics.median(one[side][0] for one in rounds),
            1000 * statistics.median(one[side][1] for one in rounds) / len(paths),
        )
        wall_ratio = statistics.median(one[side][0] / one[LOOP][0] for one in rounds)
        cpu_ratio = statistics.median(one[side][1] / one[LOOP][1] for one in rounds)
        rows.append([side, f"{rate:,.0f}", f"{wall_ratio:.3f}", f"{cpu_ms:.2f}", f"{cpu_ratio:.3f}"])
    headings = ["", "images a second", "time, ratio to the loop", "processor, ms an image", "ratio to the loop"]
    text = f"{len(paths):,} images, {options.image_size} px, {options.rounds} rounds\n\n{table(headings, rows)}"
    write_results(options.output, "decoding", text, rounds)


if __name__ == "__main__":
    main()
