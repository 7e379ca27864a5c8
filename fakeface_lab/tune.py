"""Program: a hyperparameter search over the documented CNN, tracked and safe against kills.

    python -m fakeface_lab.tune --config experiments/search-bayesian.toml
    python -m fakeface_lab.tune --trials 20        # the same command again goes on where it was

Trial 0 is the documented configuration.
"""

import sys
from dataclasses import dataclass

from fakeface_lab.cli import run_program
from fakeface_lab.search.settings import TuneSettings

__all__ = ["SearchResult", "main", "run_search"]


@dataclass(frozen=True)
class SearchResult:
    """Where a search is and what came of it.

    Attributes:
        run_id: MLflow's id of the parent run.
        best_values: hyperparameters of the best trial.
        best_score: its score.
        verdict: of the best against the documented configuration on the test split; empty without a final.
    """

    run_id: str
    best_values: dict[str, object]
    best_score: float
    verdict: str


def run_search(settings: TuneSettings) -> SearchResult:
    """Search, or go on with the search of the same name, and return what came of it."""
    from fakeface_lab.search.session import search_detector

    return SearchResult(*search_detector(settings))


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program(TuneSettings, "python -m fakeface_lab.tune", run_search, argv)


if __name__ == "__main__":
    sys.exit(main())
