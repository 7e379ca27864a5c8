"""One call of `Tuner.search`: where its trials run, opening the search, running it with live output, and its end."""

import time
from typing import Any

from rich.live import Live
from rich.text import Text

from fakeface_lab.backend import keras_tuner, num_cores, set_up_process, tf
from fakeface_lab.errors import ConfigError
from fakeface_lab.search.hypermodel_work import HypermodelWork
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.ledger.resume import THREADS_TAG, open_search
from fakeface_lab.search.report.leaderboard import trial_0_name, trials_table
from fakeface_lab.search.report.report import publish_report, save_search_views
from fakeface_lab.search.run.engine import EngineMaker, Event, Placement, Work
from fakeface_lab.search.run.local_engine import make_engine
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.search.suggest.oracles import default_values, num_trials_at_most, reseeded
from fakeface_lab.terminal import console, format_secs, print_places, say, wide_console
from fakeface_lab.tracking.owner import sweep_dead_runs
from fakeface_lab.tracking.runs import StoredRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.views import view_links
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.hypermodel import explain_unpicklable
from fakeface_lab.training.objective import Objective

__all__ = [
    "SearchProgress",
    "choose_placement",
    "open_tuner_search",
    "print_search",
    "run_trials",
    "run_tuner_search",
]


def choose_placement(
    work: HypermodelWork, wanted: Placement | None, workers: int, threads: int
) -> tuple[Placement, int]:
    """Return where the trials run and the number of threads per training.

    Args:
        work: what is sent to worker processes.
        wanted: the user's choice; None for worker processes if the work can be sent to them, else this process, which
            is then reported.
        workers: trials at the same time.
        threads: the user's choice; 0 to share the cores among the workers.

    Raises:
        ConfigError: worker processes are wanted and something cannot be sent to them, or TensorFlow already runs in
            this process with another number of threads.
    """
    obstacle = "engine='inline'" if wanted == "inline" else explain_unpicklable(work.recipe, work.fit)
    if obstacle is None:
        return "local", threads or max(1, num_cores() // workers)
    if wanted == "local":
        raise ConfigError(f"engine='local': {obstacle} cannot be sent to a worker process; give arrays, or 'inline'")
    if wanted is None:
        console.print(
            f"trials run in this process: {obstacle} cannot be sent to a worker process. A crash ends the search "
            f"(run the script again to resume)",
            style="yellow",
        )
    try:
        return "inline", set_up_process(threads)
    except ConfigError:  # TensorFlow already runs, as in a notebook: its number of threads is fixed
        if threads:
            raise
        return "inline", set_up_process(tf.config.threading.get_intra_op_parallelism_threads())


def open_tuner_search(
    store: Store,
    writer: PatientWriter,
    name: str,
    work: HypermodelWork,
    template: keras_tuner.Oracle,
    *,
    seed: int,
    restart: bool,
) -> tuple[Ledger, keras_tuner.Oracle]:
    """Return the ledger of the search, new or resumed, and the oracle with the seed that the search began with.

    Raises:
        SearchError: a search of this name has other settings, or another process drives it; names them.
    """
    tags = {
        "seed": str(seed),
        "oracle_seed": str(template.seed),
        "data_digest": work.dataset[1],
        **Objective(work.objective.name, work.objective.direction).tags(),
        "algorithm": type(template).__name__,
        "trial_0": "defaults",
        THREADS_TAG: str(work.num_threads),
    }
    ledger = open_search(store, writer, name, _identity(work, template, seed), tags, restart=restart)
    # An oracle without a seed draws one in each process.
    return ledger, reseeded(template, int(ledger.parent.run.data.tags.get("oracle_seed", template.seed)))


# Settings of an oracle that may change between two runs of a search, or that have no effect here.
_FREE_ORACLE_SETTINGS = (
    "max_trials", "seed", "verbose", "max_retries_per_trial", "max_consecutive_failed_trials", "multi_worker",
    "should_report",
)  # fmt: skip


def _identity(work: HypermodelWork, template: keras_tuner.Oracle, seed: int) -> dict[str, Any]:
    """Return what must be equal for trials to belong to one search."""
    settings = {
        key: value
        for key, value in vars(template).items()
        if key not in _FREE_ORACLE_SETTINGS and not key.startswith("_") and isinstance(value, int | float | str | None)
    }
    return {
        "oracle": {"class": type(template).__name__, **settings},
        "objective": str(work.objective),
        "space": {hp.name: hp.get_config() for hp in template.hyperparameters.space},
        "model": work.recipe.digest(default_values(work.recipe.space), seed),
        "data_digest": work.dataset[1],
        "fit": work.fit.settings(),
        "epochs": work.fit.epochs,
        "seed": seed,
    }


def run_tuner_search(
    ledger: Ledger,
    template: keras_tuner.Oracle,
    work: HypermodelWork,
    placement: Placement,
    *,
    workers: int,
    hang_secs: float,
    seed: int,
) -> None:
    """Run the remaining trials, then write and print the result.

    Raises:
        AllTrialsFailedError: no trial has a score.
        TrackingError: the store was unreachable for too long; run the same script again later.
    """
    parent = ledger.parent
    with parent.ending():
        sweep_dead_runs(parent.store)
        engine = make_engine(
            placement, work, ledger, workers=workers, num_threads=work.num_threads, hang_secs=hang_secs
        )
        run_trials(ledger, template, work, engine, epochs=work.fit.epochs or 1, seed=seed)
        _close(ledger, template)
    parent.remove_files()
    print_search(parent)


def print_search(parent: StoredRun) -> None:
    """Print where a search is and how to view it."""
    print_places(parent.store, parent.name, parent.run_id, view_links(parent.store, parent.run))


def _close(ledger: Ledger, template: keras_tuner.Oracle) -> None:
    """Write and print the result of a search. There is no test split, so no verdict."""
    parent, best, objective = ledger.parent, ledger.best_first(), ledger.objective.name
    if not best:
        return
    score, defaults = best[0].record.score, ledger.trials[0].record.score
    worth = f"{best[0].name}: the best {objective}, {score:.4f}"
    if defaults is not None:
        worth += f"; with all hyperparameters at their defaults (t000): {defaults:.4f}"
    # A repeated configuration was not another chance to be lucky.
    num_tried = sum("duplicate_of" not in trial.tags for trial in best)
    if num_tried > 1:
        worth += f". Picked as the best of {num_tried}, it looks better than it is: score it on held-out data"
    scores = {"best_score": score, "defaults_score": defaults}
    measured = {name: value for name, value in scores.items() if value is not None}
    parent.log_metrics(measured, 0, int(parent.run.info.start_time))
    table = publish_report(ledger, template, f"{worth}.")
    if not console.quiet:
        wide_console.print(trials_table(table, trial_0_name(parent.run)))
        say("worth", f"{worth}.")


def run_trials(
    ledger: Ledger,
    template: keras_tuner.Oracle,
    work: Work,
    make_engine: EngineMaker,
    *,
    epochs: int,
    seed: int,
    hours: float | None = None,
    keep_models: str = "all",
) -> None:
    """Run the remaining trials of a search and show their progress; arguments and errors as in `Trials`."""
    parent, num_trials = ledger.parent, num_trials_at_most(template)
    algorithm, at_most = parent.run.data.tags["algorithm"], f"at most {num_trials}" if num_trials else "any number of"
    say("search", f"{parent.name}: {algorithm}, {at_most} trials, {len(ledger.trials)} recorded so far")
    save_search_views(ledger, template)
    print_search(parent)
    progress = SearchProgress(ledger, num_trials)
    trials = Trials(
        ledger, template, work, make_engine, progress, epochs=epochs, seed=seed, hours=hours, keep_models=keep_models
    )
    with progress:
        trials.run()


class SearchProgress:
    """A live status line per running trial; finished trials leave a permanent line."""

    def __init__(self, ledger: Ledger, num_trials: int | None) -> None:
        self._ledger, self._num_trials, self._trial_0 = ledger, num_trials, trial_0_name(ledger.parent.run)
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._lines: dict[int, str] = {}
        self._started = time.monotonic()
        self._num_ended_before = self._num_ended()

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

    def retrying(self, trial: LedgerTrial, reason: str) -> None:
        """Print why a trial is tried again."""
        console.print(f"{self._title(trial)}: {reason}; trying again", style="yellow")

    def ended(self, trial: LedgerTrial) -> None:
        """Print the result of a trial and how it compares."""
        self._lines.pop(trial.record.sequence, None)
        if trial.record.status == "failed":
            reason = trial.run.data.tags.get("status_reason", "")
            console.print(f"{self._title(trial)}: failed: {reason}", style="yellow")
        else:
            score = f"{self._ledger.objective.name} {trial.record.score:.4f}"
            console.print(f"{self._title(trial)}: {score}  {self._standing()}{self._time_left()}")
        self._draw()

    def _title(self, trial: LedgerTrial) -> str:
        total = f"/{self._num_trials}" if self._num_trials else ""
        return f"trial {trial.record.sequence + 1}{total} ({trial.run.info.run_name})"

    def _standing(self) -> str:
        best, first = self._ledger.best_first()[0].record, self._ledger.trials[0].record
        text = f"best {best.score:.4f} (t{best.sequence:03d})"
        if first.score is None or best.sequence == 0:
            return text
        relation = "better than" if best.score != first.score else "not better than"
        return f"{text}, {relation} {self._trial_0} {first.score:.4f} (t000)"

    def _time_left(self) -> str:
        num_ended = self._num_ended()
        num_measured = num_ended - self._num_ended_before
        if not self._num_trials or not num_measured or num_ended >= self._num_trials:
            return ""
        secs_per_trial = (time.monotonic() - self._started) / num_measured
        return f", about {format_secs(secs_per_trial * (self._num_trials - num_ended))} left"

    def _num_ended(self) -> int:
        return sum(record.status != "running" for record in self._ledger.records)

    def _show(self, trial: LedgerTrial, text: str) -> None:
        self._lines[trial.record.sequence] = f"{self._title(trial)}: {text}"
        self._draw()

    def _draw(self) -> None:
        self._live.update(Text("\n".join(self._lines.values()), style="cyan"))
