"""Which hyperparameters mattered in a search: permutation importance on a forest over its trials."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance

from fakeface_lab.search.report.leaderboard import searched_names

__all__ = ["Importance", "measure_importance"]

# Below this many trials the forest mostly draws the noise of single trainings.
ENOUGH_TRIALS = 20
_NUM_TREES, _NUM_REPEATS = 200, 20
_FEWEST_TRIALS = 4


@dataclass(frozen=True)
class Importance:
    """How much each searched hyperparameter mattered for the score.

    Attributes:
        names: hyperparameters whose values differ between the scored trials, and `epochs_planned` where Hyperband
            gave different numbers of them.
        means: float64 (len(names),), R² that the forest loses when the values of one are shuffled among the trials.
        spreads: float64 (len(names),), standard deviation over the shuffles.
        warning: why not to rely on it; empty where nothing speaks against it.
    """

    names: tuple[str, ...]
    means: npt.NDArray[np.float64]
    spreads: npt.NDArray[np.float64]
    warning: str


def measure_importance(table: pd.DataFrame) -> Importance | None:
    """Return the importances, or None where there are fewer than four scored trials or nothing was varied.

    Scikit-learn's `permutation_importance` on a `RandomForestRegressor`; numbers as they are (a forest asks only for
    their order), words as codes. Measured on the trials that the forest has learned from, so a large figure is weak
    evidence with few trials; the warning says so, and when the forest cannot predict trials it has not seen.
    """
    scored = table[table["score"].notna()].sort_values("trial")
    names = searched_names(scored)
    # Not the epochs that were finished: an early stop is an effect of the values.
    if scored["epochs_planned"].nunique() > 1:
        names.append("epochs_planned")
    if not names:
        return None
    # A configuration that came up again was not trained again: it is no second observation.
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
        warnings.append("the forest cannot predict trials it has not seen")
    return Importance(tuple(names), result.importances_mean, result.importances_std, "; ".join(warnings))


def _encode(values: pd.Series) -> npt.NDArray[np.float64]:
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(dtype=np.float64)
    return pd.factorize(values.astype(str), sort=True)[0].astype(np.float64)
