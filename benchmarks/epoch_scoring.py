"""What does it cost to score the validation images after each epoch, for the correction of the selection?

    python benchmarks/epoch_scoring.py

The documented network at 300x300 on random pixels, batch 32: training steps and one pass over 207 validation images, in
turn. A search on the sealed split has 26 steps an epoch (824 images).
"""

import argparse
import time

import numpy as np

from fakeface_lab.backend import set_up_process
from fakeface_lab.detector.fit import Training, evaluation_batches, predict
from fakeface_lab.settings import Hyperparameters

NUM_STEPS, NUM_VALIDATION, STEPS_PER_EPOCH = 5, 207, 26


def main() -> None:
    """Print the seconds of each round, and the share of an epoch in the median."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    num_rounds = parser.parse_args().rounds
    set_up_process(0)
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_VALIDATION, 300, 300, 3), dtype=np.uint8)
    labels, rows = np.arange(NUM_VALIDATION) % 2, np.arange(NUM_VALIDATION)
    model = Training(Hyperparameters(), 300, seed=0, epochs=1).build()
    shares = []
    for number in range(num_rounds + 1):
        started = time.perf_counter()
        model.fit(evaluation_batches(pixels, labels, rows[: 32 * NUM_STEPS], 32), verbose=0)
        trained = time.perf_counter()
        predict(model, pixels, rows)
        scored = time.perf_counter()
        step_secs, score_secs = (trained - started) / NUM_STEPS, scored - trained
        if number:  # the first round traces both functions
            shares.append(score_secs / (STEPS_PER_EPOCH * step_secs))
            print(f"a step {step_secs:.2f} s, a pass over {NUM_VALIDATION} images {score_secs:.2f} s", flush=True)
    print(f"the pass beside an epoch of {STEPS_PER_EPOCH} steps, median: {np.median(shares):.1%}")


if __name__ == "__main__":
    main()
