"""Runs the trials of a search with live output: a status line per running trial, and a permanent one when it ends."""

import time
from collections.abc import Callable

from keras_tuner import oracles as kt_oracles
from rich.live import Live
from rich.text import Text

from fakeface_lab.backend import keras_tuner
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.report.leaderboard import trial_0_name
from fakeface_lab.search.report.report import save_search_views
from fakeface_lab.search.run.engine import Engine, Event, Work
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.search.suggest.oracles import num_initial_points, num_trials_at_most
from fakeface_lab.search.suggest.template import prior_of, set_growth
from fakeface_lab.terminal import console, format_secs, print_places, say
from fakeface_lab.tracking.runs import StoredRun
from fakeface_lab.tracking.views import view_links

__all__ = ["SearchProgress", "print_search", "run_trials"]


def run_trials(
    ledger: Ledger,
    template: keras_tuner.Oracle,
    work: Work,
    engine: Engine,
    *,
    epochs: int,
    seed: int,
    hours: float | None = None,
    keep_models: str = "all",
) -> None:
    """Run the remaining trials of a search and show their progress; arguments and errors as in `Trials`."""
    parent = ledger.parent
    set_growth(template, ledger.growth)
    algorithm, num_trials = parent.run.data.tags["algorithm"], num_trials_at_most(template)
    at_most = f"at most {num_trials}" if num_trials else "any number of"
    say("search", f"{parent.name}: {algorithm}, {at_most} trials, {len(ledger.trials)} recorded so far")
    _warn_if_all_random(template, num_trials)
    save_search_views(ledger, template)
    print_search(parent)
    progress = SearchProgress(ledger, lambda: num_trials_at_most(template))
    trials = Trials(
        ledger, template, work, engine, progress, epochs=epochs, seed=seed, hours=hours, keep_models=keep_models
    )
    with progress:
        trials.run()


def _warn_if_all_random(template: keras_tuner.Oracle, num_trials: int | None) -> None:
    """Print a line if a Bayesian search ends before it asks its Gaussian process."""
    if num_trials is None or not isinstance(template, kt_oracles.BayesianOptimizationOracle):
        return
    # What the oracle was told of an older search counts as trials.
    num_random = num_initial_points(template) - len(prior_of(template))
    if num_random >= num_trials:
        console.print(
            f"          all of them are drawn at random: the Gaussian process is asked after {num_random} trials; "
            f"give fewer initial points or more trials",
            style="yellow",
        )


def print_search(parent: StoredRun) -> None:
    """Print where a search is and how to view it."""
    print_places(parent.store, parent.name, parent.run_id, view_links(parent.store, parent.run))


class SearchProgress:
    """A live status line per running trial; finished trials leave a permanent line.

    Args:
        ledger: of the search.
        num_trials_at_most: returns how many trials there can be, None without a limit; asked again after each trial.
    """

    def __init__(self, ledger: Ledger, num_trials_at_most: Callable[[], int | None]) -> None:
        self._ledger, self._num_trials_at_most = ledger, num_trials_at_most
        self._num_trials, self._trial_0 = num_trials_at_most(), trial_0_name(ledger.parent.run)
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._lines: dict[int, str] = {}
        self._running_fractions: dict[int, float] = {}
        self._measured_from, self._num_done_before = time.monotonic(), self._num_done()
        self._has_step = False

    def __enter__(self) -> "SearchProgress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, trial: LedgerTrial, epochs: int) -> None:
        """Add a status line; an interrupted trial leaves a permanent line as well."""
        if trial.epochs_done:
            console.print(f"{self._title(trial)}: resuming after epoch {trial.epochs_done}")
        self._show(trial, "starting")

    def progressed(self, trial: LedgerTrial, event: Event) -> None:
        """Update the status line."""
        if event.step is not None:
            epoch, step, num_steps = event.step
            total = trial.run.data.tags.get("epochs_planned", "?")
            self._show(trial, f"epoch {epoch}/{total} step {step}/{num_steps}")
            if total.isdigit() and num_steps:
                self._running_fractions[trial.record.sequence] = (epoch - 1 + step / num_steps) / int(total)
            if not self._has_step:  # until now worker processes have started
                self._has_step = True
                self._measured_from, self._num_done_before = time.monotonic(), self._num_done()

    def printed(self, trial: LedgerTrial, line: str) -> None:
        """Print what the user's code has printed in a worker process, and in which trial."""
        console.print(f"{self._title(trial)}: {line}")

    def retrying(self, trial: LedgerTrial, reason: str) -> None:
        """Print why a trial is tried again."""
        console.print(f"{self._title(trial)}: {reason}; trying again", style="yellow")

    def ended(self, trial: LedgerTrial) -> None:
        """Print the result of a trial and how it compares."""
        self._lines.pop(trial.record.sequence, None)
        self._running_fractions.pop(trial.record.sequence, None)
        self._num_trials = self._num_trials_at_most()
        if trial.record.status == "failed":
            reason = trial.run.data.tags.get("status_reason", "")
            console.print(f"{self._title(trial)}: failed: {reason}", style="yellow")
        else:
            score = f"{self._ledger.objective.name} {trial.record.score:.4f}"
            console.print(f"{self._title(trial)}: {score}  {self._scored_configuration()}{self._time_left()}")
        self._draw()

    def _title(self, trial: LedgerTrial) -> str:
        total = f"/{self._num_trials}" if self._num_trials else ""
        return f"trial {trial.record.sequence + 1}{total} ({trial.run.info.run_name})"

    def _scored_configuration(self) -> str:
        best, first = self._ledger.best_first()[0].record, self._ledger.trials[0].record
        text = f"best {best.score:.4f} (t{best.sequence:03d})"
        if first.score is None or best.sequence == 0:
            return text
        relation = "better than" if best.score != first.score else "not better than"
        return f"{text}, {relation} {self._trial_0} {first.score:.4f} (t000)"

    def _time_left(self) -> str:
        num_done = self._num_done()
        num_measured = num_done - self._num_done_before
        if not self._num_trials or num_measured <= 0 or num_done >= self._num_trials:
            return ""
        secs_per_trial = (time.monotonic() - self._measured_from) / num_measured
        return f", about {format_secs(secs_per_trial * (self._num_trials - num_done))} left"

    def _num_done(self) -> float:
        """Return how many trials are done, a running one as the fraction of its epochs."""
        num_ended = sum(record.status != "running" for record in self._ledger.records)
        return num_ended + sum(self._running_fractions.values())

    def _show(self, trial: LedgerTrial, text: str) -> None:
        self._lines[trial.record.sequence] = f"{self._title(trial)}: {text}"
        self._draw()

    def _draw(self) -> None:
        self._live.update(Text("\n".join(self._lines.values()), style="cyan"))
