"""One call of `Tuner.search`, from the oracle and the work to the report: opened, placed, run, closed."""

import io
import time
from typing import Any

import cloudpickle
import numpy as np
from rich.live import Live
from rich.text import Text

from fakeface_lab.backend import keras_tuner, num_cores, set_up_process, tf
from fakeface_lab.errors import ConfigError
from fakeface_lab.search.hypermodel_work import HypermodelWork
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.ledger.resume import THREADS_TAG, open_search
from fakeface_lab.search.report.leaderboard import trial_0_name, trials_table
from fakeface_lab.search.report.report import publish_report
from fakeface_lab.search.run.engine import EngineMaker, Event, Placement, Work
from fakeface_lab.search.run.local_engine import make_engine
from fakeface_lab.search.run.trials import Limits, Trials
from fakeface_lab.search.suggest.oracles import default_values, num_trials_at_most, reseeded
from fakeface_lab.terminal import console, format_secs, print_places, say, wide_console
from fakeface_lab.tracking.owner import sweep_dead_runs
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.objective import Objective

__all__ = ["SearchProgress", "open_tuner_search", "place", "run_trials", "run_tuner_search"]


class SearchProgress:
    """One living line a running trial, and a line that stays for each ended one."""

    def __init__(self, ledger: Ledger, num_trials: int | None) -> None:
        self._ledger, self._num_trials, self._trial_0 = ledger, num_trials, trial_0_name(ledger.parent.run)
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._lines: dict[int, str] = {}
        self._started = time.monotonic()
        self._num_ended_before = len([trial for trial in ledger.trials if trial.record.status != "running"])

    def __enter__(self) -> "SearchProgress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def trial_started(self, trial: LedgerTrial, epochs: int) -> None:
        """Begin a living line, and say for good where an interrupted trial was."""
        if trial.epochs_done:
            console.print(f"{self._title(trial)}: was interrupted after epoch {trial.epochs_done}, taken up again")
        self._lines[trial.record.sequence] = f"{self._title(trial)}: starting"
        self._draw()

    def trial_progressed(self, trial: LedgerTrial, event: Event) -> None:
        """Update the living line."""
        if event.step is not None:
            epoch, step, num_steps = event.step
            total = trial.run.data.tags.get("epochs_planned", "?")
            self._lines[trial.record.sequence] = f"{self._title(trial)}: epoch {epoch}/{total} step {step}/{num_steps}"
            self._draw()

    def trial_ended(self, trial: LedgerTrial) -> None:
        """Print the ended trial and how it compares."""
        self._lines.pop(trial.record.sequence, None)
        if trial.record.status == "failed":
            reason = trial.run.data.tags.get("status_reason", "")
            console.print(f"{self._title(trial)}: failed: {reason}", style="yellow")
        else:
            score = f"{self._ledger.objective.name} {trial.record.score:.4f}"
            console.print(f"{self._title(trial)}: {score}  {self._standing()}{self._time_left()}")
        self._draw()

    def died(self, trial: LedgerTrial, reason: str) -> None:
        """Print why a trial is tried again."""
        console.print(f"{self._title(trial)}: {reason}; trying again", style="yellow")

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
        ended = len([trial for trial in self._ledger.trials if trial.record.status != "running"])
        measured = ended - self._num_ended_before
        if not self._num_trials or not measured or ended >= self._num_trials:
            return ""
        secs_a_trial = (time.monotonic() - self._started) / measured
        return f", about {format_secs(secs_a_trial * (self._num_trials - ended))} left"

    def _draw(self) -> None:
        self._live.update(Text("\n".join(self._lines.values()), style="cyan"))


# Settings of an oracle that may change while its search goes on, or that have no meaning here.
_FREE_ORACLE_SETTINGS = (
    "max_trials", "seed", "verbose", "max_retries_per_trial", "max_consecutive_failed_trials", "multi_worker",
    "should_report",
)  # fmt: skip


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
    """Return the ledger of the search, new or continued, and the oracle with the seed that the search began with.

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
    identity = _identity(work, template, seed)
    ledger = open_search(store, writer, name, identity, tags, restart=restart)
    # An oracle without a seed draws one in each process.
    return ledger, reseeded(template, int(ledger.parent.run.data.tags.get("oracle_seed", template.seed)))


def run_trials(
    ledger: Ledger,
    template: keras_tuner.Oracle,
    work: Work,
    make_engine: EngineMaker,
    limits: Limits,
    *,
    seed: int,
    keep_models: str = "all",
) -> None:
    """Run the trials that are left of a search, and show how it goes; arguments and errors as in `Trials`."""
    parent, num_trials = ledger.parent, num_trials_at_most(template)
    algorithm, at_most = parent.run.data.tags["algorithm"], f"at most {num_trials}" if num_trials else "any number of"
    say("search", f"{parent.name}: {algorithm}, {at_most} trials, {len(ledger.trials)} recorded so far")
    print_places(parent.store, parent.name, parent.run_id)
    with SearchProgress(ledger, num_trials) as progress:
        Trials(
            ledger, template, work, make_engine, limits, seed=seed, observer=progress, keep_models=keep_models
        ).run()  # fmt: skip


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
    """Run what is left of the search, and write and print its end.

    Raises:
        AllTrialsFailedError: no trial has a score.
        TrackingError: the store stayed away too long; run the same script again later.
    """
    parent = ledger.parent
    with parent.ending():
        sweep_dead_runs(parent.store)
        engine = make_engine(
            placement, work, ledger, workers=workers, num_threads=work.num_threads, hang_secs=hang_secs
        )
        run_trials(ledger, template, work, engine, Limits(work.fit.epochs or 1), seed=seed)
        _close(ledger)
    parent.remove_files()
    print_places(parent.store, parent.name, parent.run_id)


def _close(ledger: Ledger) -> None:
    """Write and print the end of a search; there is no test split, so no verdict."""
    parent, best, objective = ledger.parent, ledger.best_first(), ledger.objective.name
    if not best:
        return
    score, defaults = best[0].record.score, ledger.trials[0].record.score
    metrics = {"best_score": score, "defaults_score": defaults}
    worth = f"{best[0].name}: the best {objective}, {score:.4f}"
    if defaults is not None:
        worth += f"; with all hyperparameters at their defaults (t000): {defaults:.4f}"
    # A repeated configuration was not another chance to be lucky.
    num_tried = sum("duplicate_of" not in trial.tags for trial in best)
    if num_tried > 1:
        worth += f". Picked as the best of {num_tried}, it looks better than it is: score it on data kept apart"
    measured = {name: value for name, value in metrics.items() if value is not None}
    parent.log_metrics(measured, 0, int(parent.run.info.start_time))
    table = publish_report(ledger, f"{worth}.")
    if not console.quiet:
        wide_console.print(trials_table(table, trial_0_name(parent.run)))
        say("worth", f"{worth}.")


def _identity(work: HypermodelWork, template: keras_tuner.Oracle, seed: int) -> dict[str, Any]:
    """Return what must be equal for trials to belong to one search."""
    settings = {
        key: value
        for key, value in vars(template).items()
        if key not in _FREE_ORACLE_SETTINGS and not key.startswith("_")
        and (value is None or isinstance(value, (int, float, str)))
    }  # fmt: skip
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


def place(work: HypermodelWork, wanted: Placement | None, workers: int, threads: int) -> tuple[Placement, int]:
    """Return where the trials run and the threads of one training; say it where it is not what one would expect.

    Args:
        work: what is to be sent; its number of threads does not matter yet.
        wanted: what the user chose, None for worker processes where they can be had.
        workers: trials at the same time.
        threads: what the user chose, 0 for the cores shared among the workers.

    Raises:
        ConfigError: worker processes are wanted and something cannot be sent to them; or this process has begun to
            work with another number of threads.
    """
    obstacle = "engine='inline'" if wanted == "inline" else _obstacle(work)
    if obstacle is None:
        return "local", threads or max(1, num_cores() // workers)
    if wanted == "local":
        raise ConfigError(f"engine='local': {obstacle} cannot be sent to a worker process; give arrays, or 'inline'")
    if wanted is None:
        console.print(
            f"trials run in this process: {obstacle} cannot be sent to a worker process. A crash ends the search "
            f"(start it again, it goes on)",
            style="yellow",
        )
    return "inline", _set_up_here(threads)


class _Sendable(cloudpickle.Pickler):
    """Tries whether something can be pickled, without its arrays."""

    def persistent_id(self, obj: object) -> str | None:
        return "array" if isinstance(obj, np.ndarray) and not obj.dtype.hasobject else None


def _obstacle(work: HypermodelWork) -> str | None:
    """Return what keeps the work from being sent to a worker process, or None."""
    parts = {
        "the hypermodel": work.recipe,
        "a callback": work.fit.callbacks,
        "what search() was given": (work.fit.args, work.fit.kwargs),
    }
    for name, part in parts.items():
        try:
            _Sendable(io.BytesIO()).dump(part)
        except Exception as err:  # whatever the user's object raises
            return f"{name} ({str(err).partition(chr(10))[0]})"
    return None


def _set_up_here(threads: int) -> int:
    """Make this process deterministic, and return its number of threads: fixed once TensorFlow has begun to work."""
    try:
        return set_up_process(threads)
    except ConfigError as err:
        fixed = int(tf.config.threading.get_intra_op_parallelism_threads()) or num_cores()
        if threads not in (0, fixed):
            raise ConfigError(
                f"threads = {threads}: TensorFlow already runs with {fixed} in this process; leave threads out"
            ) from err
        tf.config.experimental.enable_op_determinism()
        return fixed
