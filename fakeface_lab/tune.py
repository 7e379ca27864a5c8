"""Program: a tracked hyperparameter search over the documented CNN that survives kills.

    python -m fakeface_lab.tune --config experiments/search-bayesian.toml
    python -m fakeface_lab.tune --trials 20        # rerun the same command to resume

Trial 0 is the documented configuration.
"""

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from fakeface_lab.garbage import loading_libraries
from fakeface_lab.settings import TuneSettings
from fakeface_lab.terminal import run_program

if TYPE_CHECKING:
    from fakeface_lab.detector.search import SearchResult

__all__ = ["main", "run_search"]


def run_search(settings: TuneSettings) -> "SearchResult | None":
    """Run a search, or resume the one with the same name; return its result, or None for a dry run."""
    from fakeface_lab.search.run.worker import launched_ahead

    is_worked_apart = settings.engine == "local" and not settings.dry_run
    with launched_ahead() if is_worked_apart else nullcontext():
        # TensorFlow takes seconds to load: `--help` and invalid settings should not wait for it.
        with loading_libraries():
            from fakeface_lab.detector.search import search_detector, show_plan

        if settings.dry_run:
            show_plan(settings)
            return None
        return search_detector(settings)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program(TuneSettings, "python -m fakeface_lab.tune", run_search, argv)


if __name__ == "__main__":
    sys.exit(main())
