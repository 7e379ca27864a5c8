"""How often does the verdict say "better" or "worse" of two equal configurations, and how often of two that differ?

    python benchmarks/verdict_rule.py

Simulated searches on 258 test images. A seed's number of errors is drawn from the five documented seeds
(docs/reproduction.md), the collapsed one included. Which images it errs on follows their difficulty, which all models
share in part, and its own chance. Both tables compare the test of the images alone with the whole rule.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fakeface_lab.evaluation.comparison import Comparison, compare

NUM_IMAGES = 258
SPREADS = {"documented": (2, 2, 0, 11, 1), "2 errors each": (2,), "0 to 30 errors": tuple(range(31))}
NUM_SEEDS = (1, 2, 3, 4, 5)
MORE_ERRORS = (3, 5, 8, 10, 15, 20)

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Models:
    """How models err.

    Attributes:
        shared: correlation of two models' margins on one image, in [0, 1].
        sureness: logits for each unit of margin: the higher, the surer the models are, of their errors too.
        worst_sureness: factor on the sureness of a seed with more than five errors.
    """

    shared: float
    sureness: float
    worst_sureness: float


ALL_MODELS = [Models(*values) for values in itertools.product((0.0, 0.5, 0.9), (1.0, 2.5, 10.0), (1.0, 5.0))]
TYPICAL = Models(0.5, 2.5, 1.0)


def simulate(
    rng: np.random.Generator, num_seeds: int, models: Models, spread: Sequence[int], more_errors: int = 0
) -> Comparison:
    """Compare two configurations; the candidate errs on `more_errors` images more on average, by a Poisson draw."""
    difficulty = rng.standard_normal(NUM_IMAGES)
    truth = np.arange(NUM_IMAGES) % 2 == 0
    sides = []
    for more in (more_errors, 0):
        of_truth = np.stack(
            [_draw(rng, difficulty, models, int(rng.choice(spread) + rng.poisson(more))) for _ in range(num_seeds)]
        )
        sides.append(np.where(truth, of_truth, 1 - of_truth))
    return compare(truth, sides[0], sides[1], num_resamples=2)


def _draw(rng: np.random.Generator, difficulty: Scores, models: Models, num_errors: int) -> Scores:
    """Return one seed's probability of the truth for each image."""
    own = rng.standard_normal(difficulty.size)
    margins = np.sqrt(models.shared) * difficulty + np.sqrt(1 - models.shared) * own
    ordered = np.sort(margins)
    border = ordered[:2].sum() / 2 - 0.2 if num_errors == 0 else ordered[num_errors - 1 : num_errors + 1].mean()
    border = min(border, ordered[num_errors] - 1e-9)
    sureness = models.sureness * (models.worst_sureness if num_errors > 5 else 1.0)
    return np.asarray(1 / (1 + np.exp(-np.clip(sureness * (margins - border), -30, 30))))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--searches", type=int, default=1000, help="simulated searches for each figure")
    num_searches = parser.parse_args().searches
    rng = np.random.default_rng(0)
    print(f"Two equal configurations: false verdicts, mean (highest) of {len(ALL_MODELS)} kinds of models")
    print(f"{'spread over seeds':18} seeds   images alone    whole rule")
    for spread, num_seeds in itertools.product(("documented", "0 to 30 errors"), NUM_SEEDS):
        shares = np.array(
            [
                _decided([simulate(rng, num_seeds, models, SPREADS[spread]) for _ in range(num_searches)])
                for models in ALL_MODELS
            ]
        )
        cells = "   ".join(f"{of.mean():.3f} ({of.max():.3f})" for of in shares.T)
        print(f"{spread:18} {num_seeds}:{num_seeds}     {cells}", flush=True)
    print("\nThe candidate errs on more images: verdicts by the images alone / by the whole rule")
    print(f"{'spread over seeds':18} seeds   " + "   ".join(f"{f'+{more}':11}" for more in MORE_ERRORS))
    for spread, num_seeds in itertools.product(("documented", "2 errors each"), (1, 3, 5)):
        cells = "   ".join(
            "{:.2f} / {:.2f}".format(
                *_decided([simulate(rng, num_seeds, TYPICAL, SPREADS[spread], more) for _ in range(num_searches)])
            )
            for more in MORE_ERRORS
        )
        print(f"{spread:18} {num_seeds}:{num_seeds}     {cells}", flush=True)


def _decided(found: Sequence[Comparison]) -> tuple[float, float]:
    """Return the share of verdicts by the images alone and by the whole rule."""
    alone = sum(comparison.test.verdict in ("better", "worse") for comparison in found)
    whole = sum(comparison.verdict in ("better", "worse") for comparison in found)
    return alone / len(found), whole / len(found)


if __name__ == "__main__":
    main()
