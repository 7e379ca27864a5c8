"""Do time and memory stay what they are when there are fifty times as many images?

    python benchmarks/data_scale.py --images 1000 10000 50000 --output FOLDER
    python benchmarks/data_scale.py --images 500 1000 --steps 5

Generated images of 64 px. Loading (`load_images`: list, hash, decode, or read from the cache) is timed in a process of
its own, cold and warm, per image; the disk has the files in memory in both cases. The training is one epoch of the
documented CNN with `training_batches`, in a process of its own with a warm cache; with `--steps` it ends earlier, which
changes nothing of what grows with the data. Its private memory is that of `processes.py`: pages that no file backs.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from drawn_noise import make_pictures
from processes import measure, private_bytes
from results import side_environment, table, write_results

__all__: list[str] = []


def load(folder: str, size_px: int) -> None:
    """Load the images and print the seconds and the private memory after it."""
    from fakeface_lab.data.images import load_images
    from fakeface_lab.data.sources import find_source

    source = find_source(folder, None, Path.cwd(), size_px)
    before = private_bytes(psutil.Process())
    began = time.perf_counter()
    images = load_images(source, size_px)
    secs = time.perf_counter() - began
    grown = private_bytes(psutil.Process()) - before
    print(json.dumps({"secs": secs, "num_images": len(images.files), "private_bytes": grown}))


def train(folder: str, size_px: int, num_steps: int) -> None:
    """Train one epoch, or its first steps."""
    import numpy as np

    from fakeface_lab.backend import set_up_process
    from fakeface_lab.data.images import load_images
    from fakeface_lab.data.sources import find_source
    from fakeface_lab.detector.fit import Training, training_batches
    from fakeface_lab.settings import Hyperparameters

    set_up_process(0)
    images = load_images(find_source(folder, None, Path.cwd(), size_px), size_px)
    rows = np.arange(len(images.files), dtype=np.int64)
    model = Training(Hyperparameters(), size_px, 0, 1, step="fast").build()
    batches = training_batches(images.pixels, images.labels, rows, batch_size=32, seed=0, epochs=1)
    model.fit(batches, epochs=1, steps_per_epoch=min(num_steps or len(rows), -(-len(rows) // 32)), verbose=0)
    print(json.dumps({"private_bytes": private_bytes(psutil.Process())}))


def run(part: str, images: Path, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run one part in a process of its own and return what it printed and took."""
    log = scratch / "output.log"
    log.unlink(missing_ok=True)
    words = [str(Path(__file__).resolve()), "--part", part, "--folder", str(images)]
    sizes = ["--image-size", str(options.image_size), "--steps", str(options.steps)]
    environment = side_environment(FAKEFACE_CACHE=str(scratch / "cache"))
    cost = measure([sys.executable, *words, *sizes], scratch, environment)
    printed: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    return printed | {"peak_private_bytes": cost.peak_private_bytes, "wall_secs": cost.wall_secs}


def measure_size(num_images: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of a data set of so many images."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        images = make_pictures(scratch / "images", num_images, options.image_size)
        cold = run("load", images, options, scratch)
        warm = [run("load", images, options, scratch) for _ in range(options.rounds)]
        training = [run("train", images, options, scratch) for _ in range(options.rounds)]
    return {
        "num_images": num_images,
        "cold_ms": 1000 * cold["secs"] / num_images,
        "warm_ms": 1000 * statistics.median(one["secs"] for one in warm) / num_images,
        "loaded_bytes": statistics.median(one["private_bytes"] for one in warm),
        "training_bytes": statistics.median(one["peak_private_bytes"] for one in training),
        "training_secs": statistics.median(one["wall_secs"] for one in training),
    }


def main() -> None:
    """Measure, print and write; or run one part, as a process of this program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=0, help="of the epoch; 0: all")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, help="folder for the results as Markdown and JSON")
    parser.add_argument("--part", choices=("load", "train"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "load":
        load(options.folder, options.image_size)
    elif options.part == "train":
        train(options.folder, options.image_size, options.steps)
    else:
        sizes = []
        for num_images in options.images:
            sizes.append(measure_size(num_images, options))
            print(sizes[-1], flush=True)
        first = sizes[0]["training_bytes"]
        rows = [
            [
                f"{one['num_images']:,}",
                f"{one['cold_ms']:.3f}",
                f"{one['warm_ms']:.3f}",
                f"{one['loaded_bytes'] / 1e6:.0f}",
                f"{one['training_bytes'] / 1e6:.0f}",
                f"{one['training_bytes'] / first:.2f}",
            ]
            for one in sizes
        ]
        headings = (
            "images", "cold, ms an image", "warm, ms an image", "private memory of the loaded set, MB",
            "of the training, MB", "ratio",
        )  # fmt: skip
        extent = f"the first {options.steps} steps" if options.steps else "one epoch"
        text = f"{options.image_size} px; training: {extent}\n\n{table(headings, rows)}"
        write_results(options.output, "data_scale", text, sizes)


if __name__ == "__main__":
    main()
