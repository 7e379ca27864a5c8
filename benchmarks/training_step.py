"""One training step of the documented CNN: Keras's own beside the fast one, in turn, in one process.

    python benchmarks/training_step.py data/hardfakevsrealfaces --steps 24

Both models begin with the same weights and see the same batches of 32 images, so that their losses can be compared as
well as their times. The first two steps are traced and compiled, and are not counted.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from fakeface_lab.backend import keras, set_up_process, tf
from fakeface_lab.data.images import load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.detector.fit import Training, training_batches
from fakeface_lab.settings import Hyperparameters, Step

__all__: list[str] = []

STEPS: tuple[Step, ...] = ("plain", "fast")
NUM_WARM_UP = 2


def run_step(model: keras.Model, batch: Any) -> tuple[float, float]:
    """Return the seconds and the loss of one step."""
    data = iter(tf.data.Dataset.from_tensors(batch))
    model.reset_metrics()
    began = time.perf_counter()
    loss = float(model.train_function(data)["loss"])
    return time.perf_counter() - began, loss


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds fake/ and real/")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    num_threads = set_up_process(options.threads)
    images = load_images(find_source(str(options.folder.resolve()), None, Path.cwd(), 300), 300)
    rows = np.arange(len(images.files), dtype=np.int64)
    batches = training_batches(images.pixels, images.labels, rows, batch_size=32, seed=1, epochs=1).repeat()
    models = {step: Training(Hyperparameters(), 300, 1, 1, step=step).build() for step in STEPS}
    for model in models.values():
        model.make_train_function()
    secs: dict[str, list[float]] = {step: [] for step in STEPS}
    losses: dict[str, list[float]] = {step: [] for step in STEPS}
    for _, batch in zip(range(options.steps), batches, strict=False):
        for step, model in models.items():
            took, loss = run_step(model, batch)
            secs[step].append(took)
            losses[step].append(loss)
    print(f"\n{options.steps} steps each, {num_threads} threads\n")
    print("| step | s, median | fastest | slowest |\n|---|---|---|---|")
    for step in STEPS:
        counted = secs[step][NUM_WARM_UP:]
        print(f"| {step} | {statistics.median(counted):.3f} | {min(counted):.3f} | {max(counted):.3f} |")
    ratios = [fast / plain for plain, fast in zip(secs["plain"], secs["fast"], strict=True)][NUM_WARM_UP:]
    differences = [abs(fast / plain - 1) for plain, fast in zip(losses["plain"], losses["fast"], strict=True)]
    print(f"\nfast / plain, median of the pairs: {statistics.median(ratios):.3f}")
    print(f"largest relative difference of the losses: {max(differences):.1e}")


if __name__ == "__main__":
    main()
