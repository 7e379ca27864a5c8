"""One search from settings to verdict: wires data, space, oracle, ledger, engine, driver and finale together."""

import os
from collections.abc import Callable
from typing import Any, Literal


from fakeface_lab.backend import keras_tuner, set_up_process, tf
from fakeface_lab.config import find_project
from fakeface_lab.console import console, print_data_card, print_places
from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import Split, make_split
from fakeface_lab.errors import ConfigError
from fakeface_lab.search.counts import num_trials_at_most
from fakeface_lab.search.detector import DetectorWork
from fakeface_lab.search.driver import Driver, Limits, is_better
from fakeface_lab.search.engines import Engine, Event, InlineEngine, LocalEngine
from fakeface_lab.search.finale import register, run_finals, verdict
from fakeface_lab.search.ledger import Ledger, LedgerTrial, open_search
from fakeface_lab.search.oracles import OracleSpec, build_oracle
from fakeface_lab.search.progress import SearchProgress
from fakeface_lab.search.settings import TuneSettings
from fakeface_lab.search.space import build_space
from fakeface_lab.search.work import save_work
from fakeface_lab.tracking.patience import PatientWriter
from fakeface_lab.tracking.runs import sweep_dead_runs
from fakeface_lab.tracking.store import open_store

__all__ = ["best_trial", "search_detector"]

DEFAULT_NUM_TRIALS = 12

_MAXIMISED = ("worst_stress", "mean_stress")


def search_detector(settings: TuneSettings) -> tuple[str, dict[str, Any], float, str]:
    """Run a whole search; return parent run id, best values, best score and verdict.

    Raises:
        FakefaceLabError: one of its kinds, with one line that says what to do.
    """
    project = find_project()
    num_threads = _threads_a_trial(settings)
    source = find_source(settings.data, settings.positive, project, settings.image_size)
    images = load_images(source, settings.image_size)
    split = make_split(images, settings.split, settings.seed)
    print_data_card(images, split)
    template = _template(settings)
    direction = _direction(settings.objective)
    work = DetectorWork(
        images, split, settings.objective, direction, tuple(settings.space), num_threads, settings.model_dump()
    )
    num_trials = num_trials_at_most(template)
    store = open_store(settings.tracking_uri, project, source.name)
    writer = PatientWriter(settings.tracking_patience_secs, console.print)
    name = settings.name or f"{settings.algorithm} {split.name} seed {settings.seed}"
    ledger = open_search(
        store,
        writer,
        name,
        _identity(settings, images, split, num_threads),
        {"split": split.name, "seed": str(settings.seed), "data_digest": images.digest},
        restart=settings.restart,
        existing_run_id=os.environ.get("MLFLOW_RUN_ID"),
    )
    parent = ledger.parent
    sweep_dead_runs(store)
    console.print(f"[bold]search[/]    {name}: {settings.algorithm}, {num_trials or 'any number of'} trials, "
                  f"{len(ledger.trials)} recorded so far")  # fmt: skip
    print_places(store, parent.name, parent.run_id)
    engine = _engine_maker(settings, work, ledger, num_threads)
    with parent.ending():
        with SearchProgress(ledger, settings.objective, direction, num_trials) as progress:
            limits = Limits(settings.epochs, settings.hours)
            Driver(ledger, template, work, engine, limits, seed=settings.seed, observer=progress).run()
        best, documented = best_trial(ledger, direction), ledger.trials[0]
        assert best.record.score is not None  # the best trial is a finished one
        parent.log_metrics({"best_score": best.record.score}, 0, int(best.run.info.start_time))
        text = ""
        if settings.final_seeds and documented.record.status == "finished":
            seeds = range(settings.seed, settings.seed + settings.final_seeds)
            finals = run_finals(ledger, work, engine, best, documented, seeds, console.print)
            comparison = verdict(store, finals)
            text = comparison.sentence("the best configuration", "the documented one")
            parent.set_tags({"verdict": comparison.verdict, "mlflow.note.content": text})
            aliases = register(store, finals, f"fakeface-{source.name}", comparison)
            console.print(f"[bold]verdict[/]   {text}")
            console.print(f"          registry fakeface-{source.name}: {aliases}")
    print_places(store, parent.name, parent.run_id)
    return parent.run_id, dict(best.record.values), best.record.score, text


def best_trial(ledger: Ledger, direction: Literal["min", "max"]) -> LedgerTrial:
    """Return the finished trial with the best score, the earliest of equal ones."""
    finished = [trial for trial in ledger.trials if trial.record.score is not None]
    best = finished[0]
    for trial in finished[1:]:
        if trial.record.score is not None and best.record.score is not None:
            best = trial if is_better(trial.record.score, best.record.score, direction) else best
    return best


def _threads_a_trial(settings: TuneSettings) -> int:
    """Return the threads of one training: the cores shared fairly among the workers."""
    all_threads = set_up_process(settings.threads if settings.engine == "inline" else 0)
    return settings.threads or max(1, all_threads // settings.workers)


def _direction(objective: str) -> Literal["min", "max"]:
    maximised = objective in _MAXIMISED or "accuracy" in objective
    return "max" if maximised else "min"


def _template(settings: TuneSettings) -> keras_tuner.Oracle:
    if settings.algorithm == "hyperband" and settings.trials is not None:
        raise ConfigError("trials: Hyperband has its own number of trials, given by epochs; leave --trials out")
    fixed = settings.hyperparameters.model_dump()
    spec = OracleSpec(
        settings.algorithm,
        build_space(settings.space, fixed),
        settings.objective,
        _direction(settings.objective),
        seed=settings.seed,
        max_trials=None if settings.algorithm in ("hyperband", "grid") else settings.trials or DEFAULT_NUM_TRIALS,
        num_initial_points=settings.initial_points,
        max_epochs=settings.epochs,
    )
    return build_oracle(spec)


def _identity(settings: TuneSettings, images: ImageSet, split: Split, num_threads: int) -> dict[str, Any]:
    """Return what must be equal for trials to belong to one search."""
    shared = settings.model_dump(
        include={"algorithm", "objective", "seed", "epochs", "image_size", "initial_points", "hyperparameters"},
        mode="json",
    )
    return {
        **shared,
        "data_digest": images.digest,
        "split": split.name,
        "space": {name: given.model_dump(exclude_defaults=True) for name, given in settings.space.items()},
        "num_threads": num_threads,
    }


def _engine_maker(
    settings: TuneSettings, work: DetectorWork, ledger: Ledger, num_threads: int
) -> Callable[[Callable[[Event], None]], Engine]:
    if settings.engine == "inline":
        return lambda handler: InlineEngine(work, handler)
    work_path = save_work(work, ledger.parent.folder)
    gpus = [str(index) for index, _ in enumerate(tf.config.list_physical_devices("GPU"))]
    return lambda handler: LocalEngine(
        work_path,
        handler,
        num_workers=settings.workers,
        num_threads=num_threads,
        hang_secs=settings.hang_secs,
        gpus=gpus,
    )
