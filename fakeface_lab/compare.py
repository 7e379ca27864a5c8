"""Program: which run is better, and is the difference to be believed? From the store alone, nothing is trained.

python -m fakeface_lab.compare                     # the latest searches and baselines
python -m fakeface_lab.compare SEARCH              # its trials, and its winner against the documented one
python -m fakeface_lab.compare RUN OTHER [...]     # the first against each of the others, image by image
"""

import sys
from typing import TYPE_CHECKING

from fakeface_lab.config import find_project
from fakeface_lab.settings import CompareSettings
from fakeface_lab.terminal import run_program

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fakeface_lab.detector.standings import Standing
    from fakeface_lab.tracking.lookup import Run
    from fakeface_lab.tracking.store import Store

__all__ = ["main", "run_compare"]

EXIT_NOT_BETTER = 3


def run_compare(settings: CompareSettings) -> int:
    """Print the tables and the verdicts, and return the exit code.

    Raises:
        FakefaceLabError: one of its kinds, with one line that says what to do.
    """
    from fakeface_lab.detector.judging import judge
    from fakeface_lab.detector.standings import latest_standings, named_standings
    from fakeface_lab.terminal import console, say
    from fakeface_lab.tracking.lookup import find_named, open_for_reading

    store = open_for_reading(settings.tracking_uri, find_project())
    if not settings.runs:
        standings, left_out = latest_standings(store)
        _print_standings(store, standings)
        for reason in left_out:
            console.print(f"left out  {reason}", style="dim")
        return 0
    if len(settings.runs) == 1:
        search = find_named(store, settings.runs[0])
        if search.data.tags.get("role") == "search":
            return _show_search(store, search, settings.require)
    standings = named_standings(store, settings.runs)
    _print_standings(store, standings)
    judged = judge(standings)
    for one in judged:
        say("verdict", one.sentence)
    if len(judged) > 1:
        console.print(f"          p-values are adjusted for {len(judged)} comparisons (Holm)", style="dim")
    return _exit_code([one.comparison.verdict for one in judged], settings.require)


def _show_search(store: "Store", search: "Run", require: str | None) -> int:
    from fakeface_lab.detector.judging import judge_finals
    from fakeface_lab.detector.standings import finals_of, is_of_detector
    from fakeface_lab.search.report.leaderboard import read_leaderboard, trial_0_name, trials_table
    from fakeface_lab.terminal import say, wide_console

    wide_console.print(trials_table(read_leaderboard(store, search), trial_0_name(search)))
    if not is_of_detector(search):
        say("verdict", "none: its test data are not here; measure the best model on data kept apart")
        return _exit_code([], require)
    best, documented = finals_of(store, search)
    if best is None or documented is None:
        say("verdict", "none: no finals of both the best and the documented configuration")
        return _exit_code([], require)
    if best.runs == documented.runs:
        say("verdict", "none: the documented configuration is itself the best trial")
        return _exit_code([], require)
    _print_standings(store, [best, documented])
    comparison = judge_finals(store, best.runs, documented.runs)
    say("verdict", comparison.sentence("the best configuration", "the documented one"))
    return _exit_code([comparison.verdict], require)


def _print_standings(store: "Store", standings: "Sequence[Standing]") -> None:
    from fakeface_lab.detector.standings import by_ground, standings_table
    from fakeface_lab.terminal import say, wide_console
    from fakeface_lab.tracking.seal import describe_openings

    for ground, members in by_ground(standings).items():
        say(str(ground), f" ({ground.caution})" if ground.caution else "", style="yellow")
        wide_console.print(standings_table(members))
        if ground.test_set is not None:
            say("seal", describe_openings(store, ground.test_set))


def _exit_code(verdicts: list[str], require: str | None) -> int:
    return 0 if require is None or (verdicts and all(verdict == require for verdict in verdicts)) else EXIT_NOT_BETTER


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program(CompareSettings, "python -m fakeface_lab.compare", run_compare, argv)


if __name__ == "__main__":
    sys.exit(main())
