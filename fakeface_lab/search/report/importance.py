"""Which hyperparameters affected the score of the trials of a search."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

__all__ = ["ENOUGH_TRIALS", "Importance", "measure_importance"]

# With fewer trials the forest mostly fits the noise of single trainings.
ENOUGH_TRIALS = 20
_NUM_TREES, _NUM_REPEATS = 100, 10
_FEWEST_TRIALS = 4


@dataclass(frozen=True)
class Importance:
    """How much each searched hyperparameter affected the score.

    Attributes:
        names: hyperparameters whose values differ between the scored trials, and `epochs_planned` if it differs.
        means: float64 (len(names),), R² that the forest loses if the values of one are shuffled among the trials.
        spreads: float64 (len(names),), standard deviation over the shuffles.
        warning: why not to rely on it; empty if there is no reason.
    """

    names: tuple[str, ...]
    means: npt.NDArray[np.float64]
    spreads: npt.NDArray[np.float64]
    warning: str


def measure_importance(table: pd.DataFrame, names: Sequence[str]) -> Importance | None:
    """Return the importances; None if there are fewer than four scored trials or nothing was varied.

    Scikit-learn's `permutation_importance` on a `RandomForestRegressor`: numbers unscaled (a forest uses only their
    order), words as codes. It is measured on the trials that the forest was fitted to, so a large value is weak
    evidence with few trials; the warning says so, and also if the forest cannot predict unseen trials.

    Args:
        table: a row per trial with `trial`, `score` (NaN if it has none), `epochs_planned` and its hyperparameters.
        names: columns of the hyperparameters that differ between the scored trials.
    """
    scored = table[table["score"].notna()].sort_values("trial")
    names = list(names)
    # Not the finished epochs: an early stop is an effect of the values.
    if scored["epochs_planned"].nunique() > 1:
        names.append("epochs_planned")
    if not names:
        return None
    # A repeated configuration was not trained again, so it is not a second observation.
    scored = scored.drop_duplicates(names)
    if len(scored) < _FEWEST_TRIALS or scored["score"].nunique() == 1:
        return None
    features = np.column_stack([_encode(scored[name]) for name in names])
    scores = scored["score"].to_numpy(dtype=np.float64)
    forest = RandomForestRegressor(_NUM_TREES, oob_score=True, random_state=0).fit(features, scores)
    result = permutation_importance(forest, features, scores, n_repeats=_NUM_REPEATS, random_state=0)
    warnings = []
    if len(scored) < ENOUGH_TRIALS:
        warnings.append(f"only {len(scored)} trials, fewer than {ENOUGH_TRIALS}: a hint at best")
    if forest.oob_score_ <= 0:
        warnings.append("the forest cannot predict unseen trials")
    return Importance(tuple(names), result.importances_mean, result.importances_std, "; ".join(warnings))


def _encode(values: pd.Series) -> npt.NDArray[np.float64]:
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(dtype=np.float64)
    return pd.factorize(values.astype(str), sort=True)[0].astype(np.float64)
