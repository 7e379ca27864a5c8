"""Program: which run is better, and can the difference be trusted? Reads the store only, trains nothing.

python -m fakeface_lab.compare                     # the latest searches and baselines
python -m fakeface_lab.compare SEARCH              # its trials, and its best against the documented configuration
python -m fakeface_lab.compare RUN OTHER [...]     # the first against each of the others, image by image
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fakeface_lab.config import find_project
from fakeface_lab.garbage import loading_libraries
from fakeface_lab.settings import CompareSettings
from fakeface_lab.terminal import console, run_program, say, wide_console

if TYPE_CHECKING:
    from fakeface_lab.detector.ranking import ScoredConfiguration
    from fakeface_lab.tracking.lookup import Run
    from fakeface_lab.tracking.store import Store

__all__ = ["CompareResult", "main", "run_compare"]

EXIT_NOT_BETTER = 3  # not 2, which is a user error


@dataclass(frozen=True)
class CompareResult:
    """The verdicts of a comparison.

    Attributes:
        verdicts: of the first run against each of the others, or of the best configuration of a search against the
            documented one; values of `evaluation.comparison.Verdict`. Empty if nothing was compared.
    """

    verdicts: tuple[str, ...] = ()

    def exit_code(self, require: str | None) -> int:
        """Return 0 if nothing is required or every verdict is as required, else 3."""
        return 0 if require is None or set(self.verdicts) == {require} else EXIT_NOT_BETTER


def run_compare(settings: CompareSettings) -> CompareResult:
    """Print tables and verdicts, and return the verdicts.

    Raises:
        FakefaceLabError: a subclass; the message is one line that says what to do.
    """
    with loading_libraries():
        from fakeface_lab.detector.judging import judge
        from fakeface_lab.detector.ranking import latest_configurations, named_configurations
        from fakeface_lab.tracking.lookup import find_run, open_for_reading

    store = open_for_reading(settings.tracking_uri, find_project())
    if not settings.runs:
        configurations, left_out = latest_configurations(store)
        _print_rankings(store, configurations)
        for reason in left_out:
            console.print(f"left out  {reason}", style="dim")
        return CompareResult()
    # A search alone is compared within itself; next to other runs, its best stands for it.
    if len(settings.runs) == 1:
        search = find_run(store, settings.runs[0])
        if search.data.tags.get("role") == "search":
            return _show_search(store, search)
    configurations = named_configurations(store, settings.runs)
    _print_rankings(store, configurations)
    judged = judge(configurations)
    for one in judged:
        say("verdict", one.sentence)
    if len(judged) > 1:
        console.print(f"          p-values are adjusted for {len(judged)} comparisons (Holm)", style="dim")
    return CompareResult(tuple(one.comparison.verdict for one in judged))


def _show_search(store: "Store", search: "Run") -> CompareResult:
    from fakeface_lab.detector.judging import judge_finals
    from fakeface_lab.detector.ranking import finals_of, is_of_detector
    from fakeface_lab.search.report.leaderboard import read_leaderboard, trial_0_name, trials_table
    from fakeface_lab.tracking.views import view_links

    for label, line in store.how_to_open(view_links(store, search)):
        say(label, line)
    table = read_leaderboard(store, search)
    wide_console.print(trials_table(table, trial_0_name(search)))
    best, documented = finals_of(store, search, table) if is_of_detector(search) else (None, None)
    if not is_of_detector(search):
        say("verdict", "none: its test data are not in the store; evaluate the best model on held-out data")
    elif best is None or documented is None:
        say("verdict", "none: no finals of both the best and the documented configuration")
    elif best.runs == documented.runs:
        say("verdict", "none: the documented configuration is itself the best trial")
    else:
        _print_rankings(store, [best, documented])
        comparison = judge_finals(store, best.runs, documented.runs)
        say("verdict", comparison.sentence("the best configuration", "the documented one"))
        return CompareResult((comparison.verdict,))
    return CompareResult()


def _print_rankings(store: "Store", configurations: Sequence["ScoredConfiguration"]) -> None:
    from fakeface_lab.detector.ranking import by_evaluation_set, ranking_table
    from fakeface_lab.tracking.datasets import describe_openings

    for images, members in by_evaluation_set(configurations).items():
        say(str(images), f" ({images.caution})" if images.caution else "", style="yellow")
        wide_console.print(ranking_table(members))
        if images.test_set is not None:
            say("seal", describe_openings(store, images.test_set))


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    prog = "python -m fakeface_lab.compare"
    return run_program(CompareSettings, prog, lambda given: run_compare(given).exit_code(given.require), argv)


if __name__ == "__main__":
    sys.exit(main())
