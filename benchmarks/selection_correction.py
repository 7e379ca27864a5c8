"""Is the corrected score of a search what its winner is worth on fresh images?

    python benchmarks/selection_correction.py

Simulated searches whose truth is known, on 207 validation images. Every model is right about an image when its margin,
made of the image's difficulty, the trial's and the epoch's own part, exceeds a border. `as found` is what a leaderboard
shows, `trial only` corrects the kept epochs, `corrected` is what the search reports, `truth` is what the picked model
scores on fresh images; all are means over the searches.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from fakeface_lab.evaluation.selection import SelectedScore, selection_corrected
from fakeface_lab.evaluation.stress.objective import stress_selection_corrected

NUM_IMAGES = 207
NUM_FRESH = 200_000
NUM_RESAMPLES = 200

Floats = npt.NDArray[np.float64]


def draw_margins(rng: np.random.Generator, borders: Floats, num_images: int = NUM_IMAGES) -> Floats:
    """Return margins (num_images, num_trials, num_epochs, ...), positive where right; `borders` has the last axes."""
    shape = borders.shape
    parts = (
        (0.5, (1,) * len(shape)),
        (0.2, (shape[0],) + (1,) * (len(shape) - 1)),
        (0.3, shape),
    )
    noise = sum(np.sqrt(share) * rng.standard_normal((num_images, *axes)) for share, axes in parts)
    return np.asarray(borders - noise)


def losses_of(margins: Floats) -> Floats:
    """Return the log loss of models that are the surer the larger their margin."""
    return np.asarray(np.logaddexp(0, -3 * margins))


def by_accuracy(rng: np.random.Generator, rates: Floats) -> tuple[SelectedScore, SelectedScore, float]:
    """A search for val_accuracy; `rates` are the true ones, (num_trials, num_epochs)."""
    is_right = draw_margins(rng, norm.ppf(rates)) > 0
    found = is_right.mean(axis=0)
    return *_both(is_right.astype(np.float64), found.argmax(axis=1), True), float(rates[_first_best(found)])


def by_loss(rng: np.random.Generator, rates: Floats) -> tuple[SelectedScore, SelectedScore, float]:
    """A search for val_loss."""
    losses = losses_of(draw_margins(rng, norm.ppf(rates)))
    found = losses.mean(axis=0)
    border = norm.ppf(rates[_first_best(-found)])
    truth = losses_of(border - rng.standard_normal(NUM_FRESH)).mean()
    return *_both(losses, found.argmin(axis=1), False), float(truth)


def under_stress(rng: np.random.Generator, rates: Floats) -> tuple[SelectedScore, SelectedScore, float]:
    """A search for worst_stress: val_loss picks the epoch; `rates` are (num_trials, num_epochs, num_conditions)."""
    margins = draw_margins(rng, norm.ppf(rates))
    kept = losses_of(margins[..., 0]).mean(axis=0).argmin(axis=1)
    trials = np.arange(len(rates))
    truth = np.arange(NUM_IMAGES) % 2 == 0
    is_right = np.moveaxis(margins[:, trials, kept] > 0, 0, -1)
    scores = np.where(is_right == truth, 0.9, 0.1)
    found = stress_selection_corrected(truth, scores, "worst_stress", num_resamples=NUM_RESAMPLES)
    balanced = (is_right[..., truth].mean(axis=-1) + is_right[..., ~truth].mean(axis=-1)) / 2
    best = int(balanced.min(axis=1).argmax())
    return found, found, float(rates[best, kept[best]].min())


def _both(scores: Floats, kept: npt.NDArray[np.intp], maximize: bool) -> tuple[SelectedScore, SelectedScore]:
    num_images, num_trials, _ = scores.shape
    of_kept = scores[:, np.arange(num_trials), kept]
    return (
        selection_corrected(of_kept, maximize, num_resamples=NUM_RESAMPLES),
        selection_corrected(
            scores.reshape(num_images, -1), maximize, num_trials=num_trials, num_resamples=NUM_RESAMPLES
        ),
    )


def _first_best(found: Floats) -> tuple[int, int]:
    """Return trial and epoch as a search picks them: the first best trial's first best epoch."""
    trial, epoch = np.unravel_index(int(found.argmax()), found.shape)
    return int(trial), int(epoch)


def main() -> None:
    """Print one row for each kind of search."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--searches", type=int, default=200, help="simulated searches of each kind")
    num_searches = parser.parse_args().searches
    rng = np.random.default_rng(0)
    equal = np.full((14, 10), 0.97)
    # Epochs get better and then level off; trials differ by a few percent.
    apart = np.linspace(0.90, 0.97, 14)[:, None] - 0.1 * 0.5 ** np.arange(10)
    conditions = np.array([0.97, 0.9, 0.9, 0.7, 0.7])
    stressed = np.broadcast_to(conditions, (12, 15, 5))
    stressed_apart = stressed - np.linspace(0.2, 0, 12)[:, None, None] - 0.1 * 0.5 ** np.arange(15)[:, None]
    even = np.full((12, 15, 5), 0.8)
    print(f"{'search':40} as found  trial only  corrected   truth   error   interval holds the truth")
    for name, simulate, rates in (
        ("val_accuracy, 14 x 10, equal", by_accuracy, equal),
        ("val_accuracy, 14 x 10, different", by_accuracy, apart),
        ("val_loss, 14 x 10, equal", by_loss, equal),
        ("val_loss, 14 x 10, different", by_loss, apart),
        ("worst_stress, 12 x 15, equal", under_stress, stressed),
        ("worst_stress, 12 x 15, different", under_stress, stressed_apart),
        ("worst_stress, 12 x 15, 5 equally bad", under_stress, even),
    ):
        print(f"{name:40} {_row([simulate(rng, rates) for _ in range(num_searches)])}", flush=True)


def _row(found: Sequence[tuple[SelectedScore, SelectedScore, float]]) -> str:
    naive = np.mean([both.naive for _, both, _ in found])
    trial_only = np.mean([kept.corrected for kept, _, _ in found])
    corrected = np.mean([both.corrected for _, both, _ in found])
    truth = np.mean([truth for _, _, truth in found])
    held = np.mean([both.low <= truth <= both.high for _, both, truth in found])
    return f"{naive:.4f}    {trial_only:.4f}      {corrected:.4f}     {truth:.4f}  {corrected - truth:+.4f}  {held:.3f}"


if __name__ == "__main__":
    main()
