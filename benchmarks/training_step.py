"""One training step of the documented CNN: Keras's own, the fast one, and Keras's in bfloat16, in turn, in one process.

    python benchmarks/training_step.py data/hardfakevsrealfaces --steps 24

The models begin with the same weights and see the same batches of 32 images, so that their losses can be compared as
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

PLAIN, FAST, BFLOAT16 = "plain", "fast", "plain, mixed_bfloat16"
# Step and values of each side.
SIDES: dict[str, tuple[Step, Hyperparameters]] = {
    PLAIN: ("plain", Hyperparameters()),
    FAST: ("fast", Hyperparameters()),
    BFLOAT16: ("plain", Hyperparameters(precision="mixed_bfloat16")),
}
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
    models = {side: Training(values, 300, 1, 1, step=step).build() for side, (step, values) in SIDES.items()}
    for model in models.values():
        model.make_train_function()
    secs: dict[str, list[float]] = {side: [] for side in SIDES}
    losses: dict[str, list[float]] = {side: [] for side in SIDES}
    for _, batch in zip(range(options.steps), batches, strict=False):
        for side, model in models.items():
            took, loss = run_step(model, batch)
            secs[side].append(took)
            losses[side].append(loss)
    print(f"\n{options.steps} steps each, {num_threads} threads\n")
    print("| step | s, median | fastest | slowest |\n|---|---|---|---|")
    for side in SIDES:
        counted = secs[side][NUM_WARM_UP:]
        print(f"| {side} | {statistics.median(counted):.3f} | {min(counted):.3f} | {max(counted):.3f} |")
    print()
    for side in (FAST, BFLOAT16):
        ratios = [one / plain for plain, one in zip(secs[PLAIN], secs[side], strict=True)][NUM_WARM_UP:]
        differences = [abs(one / plain - 1) for plain, one in zip(losses[PLAIN], losses[side], strict=True)]
        print(
            f"{side}, in ratio to plain: {statistics.median(ratios):.3f} (median of the pairs); "
            f"largest relative difference of the losses {max(differences):.1e}"
        )


if __name__ == "__main__":
    main()
