"""One call of `Tuner.search`: where its trials run, opening or resuming the search, running it, and its result."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import cloudpickle
import numpy as np

from fakeface_lab.backend import hide_gpus, keras_tuner, num_cores, set_up_process, tf
from fakeface_lab.errors import ConfigError
from fakeface_lab.keras_tuner.hypermodel_work import HypermodelWork
from fakeface_lab.keras_tuner.warm_start import find_prior
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.ledger.resume import THREADS_TAG, open_search
from fakeface_lab.search.report.leaderboard import trial_0_name, trials_table
from fakeface_lab.search.report.report import publish_report
from fakeface_lab.search.run.placement import EngineKind, EngineSettings, open_engine
from fakeface_lab.search.run.progress import print_search, run_trials
from fakeface_lab.search.search import Search
from fakeface_lab.search.suggest.oracles import default_values, reseeded
from fakeface_lab.search.suggest.template import PriorTrial, asks_for_defaults, set_prior
from fakeface_lab.terminal import console, say, wide_console
from fakeface_lab.tracking.owner import sweep_dead_runs
from fakeface_lab.tracking.store import Store, join_text, split_text
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.fit_arguments import FitArguments
from fakeface_lab.training.hypermodel import ModelRecipe
from fakeface_lab.training.objective import Objective

_PRIOR_TAG = "prior_trials"  # of the parent run: what the oracle was told before the first question
_FIRST = "first trial"  # what trial 0 is called if it need not have the defaults

__all__ = ["choose_engine", "choose_num_threads", "open_tuner_search", "run_tuner_search"]


def choose_engine(work: HypermodelWork, wanted: EngineKind | None) -> EngineKind:
    """Return the engine that runs the trials.

    Args:
        work: what is sent to worker processes.
        wanted: the user's choice; None for worker processes if the work can be sent to them, else this process, which
            is then reported.

    Raises:
        ConfigError: worker processes are wanted and something cannot be sent to them.
    """
    obstacle = "engine='inline'" if wanted == "inline" else _explain_unpicklable(work.recipe, work.fit)
    if obstacle is None:
        hide_gpus()
        return wanted or "local"
    if wanted is not None and wanted != "inline":
        raise ConfigError(f"engine={wanted!r}: {obstacle} cannot be sent to another process; give arrays, or 'inline'")
    if wanted is None:
        console.print(
            f"trials run in this process: {obstacle} cannot be sent to a worker process. A crash ends the search "
            f"(run the script again to resume)",
            style="yellow",
        )
    return "inline"


def choose_num_threads(kind: EngineKind, workers: int, threads: int) -> int:
    """Return the number of threads per training.

    Args:
        kind: of the engine.
        workers: trials at the same time.
        threads: the user's choice; 0 to share the cores among the workers.

    Raises:
        ConfigError: TensorFlow already runs in this process, in which the trials run, with another number of threads.
    """
    if kind != "inline":
        return threads or max(1, num_cores() // workers)
    try:
        return set_up_process(threads)
    except ConfigError:  # TensorFlow already runs, as in a notebook: its number of threads is fixed
        if threads:
            raise
        return set_up_process(tf.config.threading.get_intra_op_parallelism_threads())


def _explain_unpicklable(recipe: ModelRecipe, fit: FitArguments) -> str | None:
    """Return which part cannot be sent to a worker process and why, None if all can."""
    parts = {"the hypermodel": recipe, "a callback": fit.callbacks, "what search() was given": (fit.args, fit.kwargs)}
    for name, part in parts.items():
        try:
            _ArrayFreePickler(io.BytesIO()).dump(part)
        except Exception as err:  # whatever the user's object raises
            # In Python 3.11 an f-string takes no backslash.
            return f"{name} ({str(err).partition(chr(10))[0]})"
    return None


class _ArrayFreePickler(cloudpickle.Pickler):
    """Leaves arrays out: they can always be pickled, and copying them takes time and memory."""

    def persistent_id(self, obj: object) -> str | None:
        return "array" if isinstance(obj, np.ndarray) and not obj.dtype.hasobject else None


def open_tuner_search(
    store: Store,
    writer: PatientWriter,
    name: str,
    work: HypermodelWork,
    template: keras_tuner.Oracle,
    earlier: Sequence[Search] = (),
    *,
    seed: int,
    restart: bool,
) -> tuple[Ledger, keras_tuner.Oracle]:
    """Return the ledger of the search, new or resumed, and the oracle with the seed that the search began with.

    Raises:
        ConfigError: a search of `earlier`, the searches of a warm start, tells nothing about this one; says why.
        SearchError: a search of this name has other settings, or another process drives it; names them.
    """
    prior = find_prior(template, earlier)
    tags = {
        "seed": str(seed),
        "oracle_seed": str(template.seed),
        "data_digest": work.dataset[1],
        **Objective(work.objective.name, work.objective.direction).tags(),
        "algorithm": type(template).__name__,
        "trial_0": "defaults" if asks_for_defaults(template) else _FIRST,
        THREADS_TAG: str(work.num_threads),
        **(split_text(_PRIOR_TAG, json.dumps([asdict(trial) for trial in prior])) if prior else {}),
    }
    identity = _identity(work, template, seed)
    if earlier:
        identity["warm_start"] = [search.run_id for search in earlier]
    ledger = open_search(store, writer, name, identity, tags, restart=restart)
    recorded = ledger.parent.run.data.tags
    if earlier:  # what was told when the search began: the earlier search may have grown
        told = [PriorTrial(**trial) for trial in json.loads(join_text(recorded, _PRIOR_TAG))]
        set_prior(template, told)
        say("warm start", f"{len(told)} finished trials of {', '.join(search.name for search in earlier)}")
    # An oracle without a seed draws one in each process.
    return ledger, reseeded(template, int(recorded.get("oracle_seed", template.seed)))


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
        **work.executions_settings(),
    }


def run_tuner_search(
    ledger: Ledger,
    template: keras_tuner.Oracle,
    work: HypermodelWork,
    engine: EngineSettings,
    *,
    seed: int,
    hours: float | None,
    keep_models: str,
) -> None:
    """Run the remaining trials, then write and print the result.

    Raises:
        AllTrialsFailedError: no trial has a score.
        TrackingError: the store was unreachable for too long; run the same script again later.
    """
    parent = ledger.parent
    with ledger.driving():
        parent.writer.call(lambda: sweep_dead_runs(parent.store))
        epochs = work.fit.epochs or 1
        with open_engine(engine, work, ledger) as opened:
            run_trials(
                ledger, template, work, opened, epochs=epochs, seed=seed, hours=hours, keep_models=keep_models
            )  # fmt: skip
        _publish_result(ledger, template)
    parent.remove_files()
    print_search(parent)


def _publish_result(ledger: Ledger, template: keras_tuner.Oracle) -> None:
    """Write and print the result of a search. There is no test split, so no verdict."""
    parent, best, objective = ledger.parent, ledger.best_first(), ledger.objective.name
    if not best:
        return
    score, defaults = best[0].record.score, ledger.trials[0].record.score
    if trial_0_name(parent.run) == _FIRST:
        defaults = None
    worth = f"{best[0].name}: the best {objective}, {score:.4f}"
    if defaults is not None:
        worth += f"; with all hyperparameters at their defaults (t000): {defaults:.4f}"
    # A repeated configuration was not another chance to be lucky.
    num_tried = sum("duplicate_of" not in trial.tags for trial in best)
    if num_tried > 1:
        worth += f". Picked as the best of {num_tried}, it looks better than it is: score it on held-out data"
    scores = {"best_score": score, "defaults_score": defaults}
    measured = {name: value for name, value in scores.items() if value is not None}
    table = publish_report(ledger, template, measured, f"{worth}.")
    if not console.quiet:
        wide_console.print(trials_table(table, trial_0_name(parent.run)))
        say("worth", f"{worth}.")
