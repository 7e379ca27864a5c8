"""One search of the detector, from settings to verdict: data, space, trials, final trainings, registry, report."""

import json
from dataclasses import dataclass
from typing import Any

from fakeface_lab.backend import hide_gpus, keras_tuner, set_up_process
from fakeface_lab.config import find_project
from fakeface_lab.data.images import ImageSet, load_images
from fakeface_lab.data.sources import find_source, list_files
from fakeface_lab.data.splits import Split, make_split
from fakeface_lab.detector.finals import explain, register, run_finals, verdict
from fakeface_lab.detector.judging import ScoredTrial, SelectionReport, selection_report
from fakeface_lab.detector.mlflow_run import log_data
from fakeface_lab.detector.printing import Plan, plan_search, print_data_card, print_step
from fakeface_lab.detector.space import OracleSpec, build_oracle, build_space, write_best_settings
from fakeface_lab.detector.work import DetectorWork
from fakeface_lab.errors import ConfigError, without_credentials
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.ledger.resume import THREADS_TAG, choose_threads, find_search, open_search
from fakeface_lab.search.report.leaderboard import trial_0_name, trials_table
from fakeface_lab.search.report.report import publish_report
from fakeface_lab.search.run.engine import Engine
from fakeface_lab.search.run.placement import EngineSettings, open_engine
from fakeface_lab.search.run.progress import print_search, run_trials
from fakeface_lab.settings import TuneSettings
from fakeface_lab.terminal import console, say, wide_console
from fakeface_lab.tracking.datasets import OPENED_TAG, describe_openings, record_opening
from fakeface_lab.tracking.owner import sweep_dead_runs
from fakeface_lab.tracking.store import open_store
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.objective import Objective

__all__ = ["SearchResult", "estimate_search", "search_detector", "show_plan"]

DEFAULT_NUM_TRIALS = 12


@dataclass(frozen=True)
class SearchResult:
    """Where a search is, and its result.

    Attributes:
        run_id: MLflow's id of the parent run.
        best_values: hyperparameters of the best trial.
        best_score: its score.
        verdict: of the best against the documented configuration on the test split; empty without final trainings.
    """

    run_id: str
    best_values: dict[str, Any]
    best_score: float
    verdict: str


def estimate_search(settings: TuneSettings) -> Plan:
    """Return the estimated cost of a search; its data set is found, downloaded or drawn, as for the search itself.

    Raises:
        FakefaceLabError: the settings or the data cannot be searched.
    """
    template = _template(settings)
    _engine(settings, 1)
    source = find_source(settings.data, settings.positive, find_project(), settings.image_size)
    return plan_search(settings, template, list_files(source), _threads_per_trial(settings, settings.threads))


def show_plan(settings: TuneSettings) -> None:
    """Print space, trials, estimated time and disk use; nothing is trained or recorded.

    Raises:
        FakefaceLabError: the settings or the data cannot be searched.
    """
    plan = estimate_search(settings)
    say("search", f"{_name(settings)}: {settings.algorithm}, objective {settings.objective}")
    for name, given in settings.space.items():
        words = ", ".join(f"{key} {value}" for key, value in given.model_dump(exclude_defaults=True).items())
        console.print(f"space     {name}: {words}; documented {getattr(settings.hyperparameters, name)}")
    for line in plan.lines():
        console.print(line)
    if settings.engine == "ray" and settings.checkpoint_storage is None:
        console.print("nodes     trials of a lost one start again at their first epoch (see --checkpoint-storage)")
    elif settings.checkpoint_storage is not None:
        place = without_credentials(settings.checkpoint_storage)
        console.print(f"nodes     trials of a lost one resume from their checkpoints in {place}")


def search_detector(settings: TuneSettings) -> SearchResult:
    """Run a search, or resume the one of the same name, and return its result.

    Raises:
        FakefaceLabError: with one line that says what to do.
    """
    project = find_project()
    if settings.engine != "inline":
        hide_gpus()
    # First, so that invalid settings end the program before any image is decoded.
    template = _template(settings)
    _engine(settings, 1)
    source = find_source(settings.data, settings.positive, project, settings.image_size)
    images = load_images(source, settings.image_size)
    split = make_split(images, settings.split, settings.seed)
    print_data_card(images, split)
    print_step(settings)
    store = open_store(settings.tracking_uri, project, source.name)
    earlier = None if settings.restart else find_search(store, _name(settings))
    num_threads = _threads_per_trial(settings, choose_threads(earlier, settings.threads))
    work = DetectorWork(
        images, split, _objective(settings), tuple(settings.space), num_threads,
        settings.model_dump(mode="json"), settings.step, promotes=settings.algorithm == "hyperband",
    )  # fmt: skip
    ledger = open_search(
        store,
        PatientWriter(settings.tracking_patience_secs, console.print),
        _name(settings),
        _identity(settings, images, split),
        {
            "split": split.name,
            "seed": str(settings.seed),
            "data_digest": images.digest,
            **_objective(settings).tags(),
            "algorithm": settings.algorithm,
            "trial_0": "documented",
            THREADS_TAG: str(num_threads),
        },
        restart=settings.restart,
    )
    with ledger.driving():
        _describe(ledger, settings, images, num_threads)
        ledger.parent.writer.call(lambda: sweep_dead_runs(store))
        result = _search(settings, ledger, template, work, num_threads)
    ledger.parent.remove_files()
    print_search(ledger.parent)
    return result


def _describe(ledger: Ledger, settings: TuneSettings, images: ImageSet, num_threads: int) -> None:
    """Log to the parent run what its trials have in common."""
    fields = ("algorithm", "objective", "epochs", "seed", "split", "image_size")
    common = {name: getattr(settings, name) for name in fields}
    searched = {
        f"space.{name}": json.dumps(given.model_dump(exclude_defaults=True)) for name, given in settings.space.items()
    }
    ledger.parent.log_params(
        {**common, "direction": ledger.objective.direction, "num_threads": num_threads, **searched}
    )
    log_data(ledger.parent, images)


def _search(
    settings: TuneSettings,
    ledger: Ledger,
    template: keras_tuner.Oracle,
    work: DetectorWork,
    num_threads: int,
) -> SearchResult:
    parent = ledger.parent
    # Before the first trial: a search that is killed in it may have looked at them too.
    if work.split.test_is_validation:
        record_opening(parent, work.test_set, "each epoch of its trials")
    with open_engine(_engine(settings, num_threads), work, ledger) as engine:
        run_trials(
            ledger, template, work, engine, epochs=settings.epochs, seed=settings.seed, hours=settings.hours,
            keep_models=settings.keep_models,
        )  # fmt: skip
        best = ledger.best_first()[0]
        assert best.record.score is not None  # the best trial is a finished one
        text = _judge_best(settings, ledger, work, engine, best) if settings.final_seeds else ""
    _publish_result(ledger, template, settings, best, text)
    return SearchResult(parent.run_id, dict(best.record.values), best.record.score, text)


def _judge_best(settings: TuneSettings, ledger: Ledger, work: DetectorWork, engine: Engine, best: LedgerTrial) -> str:
    """Retrain, open the test split, judge, register; return the verdict in words."""
    parent = ledger.parent
    # From the search's own seed, so that a baseline of that seed is later compared with the final of the same seed.
    seeds = range(settings.seed, settings.seed + settings.final_seeds)
    finals = run_finals(ledger, work, engine, best, ledger.trials[0], seeds, work.test_set, console.print)
    comparison = verdict(parent.store, finals)
    text = explain(finals, comparison, len(ledger.trials))
    name = f"fakeface-{work.images.source.name}"
    registered = register(parent, finals, name, settings.objective)
    parent.set_tags({"verdict": "" if comparison is None else comparison.verdict})
    aliases = ", ".join(f"{alias} {version}" for alias, version in registered.aliases.items())
    say("registry", f"{name}: {aliases}; {registered.reason}")
    return text


def _publish_result(
    ledger: Ledger, template: keras_tuner.Oracle, settings: TuneSettings, best: LedgerTrial, verdict: str
) -> None:
    """Record and print the result of a search; repeated after a restart, it is the same.

    Args:
        ledger: of the search.
        template: the oracle.
        settings: of the search.
        best: the best trial.
        verdict: of the best against the documented configuration; empty without final trainings.
    """
    parent = ledger.parent
    selection = _selection(ledger, settings)
    documented = ledger.trials[0].record.score
    scores = {"best_score": best.record.score, "documented_score": documented}
    metrics = {name: score for name, score in scores.items() if score is not None}
    seal = _openings(ledger)
    text = " ".join([verdict, seal, *selection.sentences]).strip()
    table = publish_report(ledger, template, metrics | selection.metrics, text, write_best_settings)
    wide_console.print(trials_table(table, trial_0_name(parent.run)))
    logged = [trial.run_id for trial in ledger.trials if trial.tags.get("model") == "logged"]
    # float32 weights; a logged model has no optimizer.
    num_bytes = 4 * table.loc[table["run_id"].isin(logged), "num_params"].sum()
    say("models", f"{len(logged)} of trials kept, {num_bytes / 1e6:,.0f} MB (--keep-models)")
    for sentence in selection.sentences:
        say("worth", sentence)
    if verdict:
        say("verdict", verdict)
    if seal:
        say("seal", seal)


def _openings(ledger: Ledger) -> str:
    """Return how often the test images were opened; empty if this search has not opened them."""
    parent = ledger.parent
    opened = parent.read().data.tags.get(OPENED_TAG)
    return parent.writer.call(lambda: describe_openings(parent.store, opened)) if opened else ""


def _selection(ledger: Ledger, settings: TuneSettings) -> SelectionReport:
    """Return the best score corrected for having been selected; repeated configurations count once."""
    scored = [
        ScoredTrial(trial.run, trial.record.values, trial.record.score)
        for trial in ledger.trials
        if trial.record.score is not None and "duplicate_of" not in trial.run.data.tags
    ]
    store = ledger.parent.store
    return ledger.parent.writer.call(
        lambda: selection_report(
            store,
            scored,
            space=settings.space,
            algorithm=settings.algorithm,
            objective=settings.objective,
            maximize=ledger.objective.direction == "max",
            part="validation" if settings.split == "sealed" else "test",
        )
    )


def _name(settings: TuneSettings) -> str:
    return settings.name or f"{settings.algorithm} {settings.split} seed {settings.seed}"


def _engine(settings: TuneSettings, num_threads: int) -> EngineSettings:
    return EngineSettings(
        settings.engine, settings.workers, num_threads, settings.hang_secs, settings.ray_address,
        settings.cpus_per_trial, settings.gpus_per_trial, settings.memory_per_trial, settings.checkpoint_storage,
    )  # fmt: skip


def _threads_per_trial(settings: TuneSettings, chosen: int) -> int:
    """Return the number of threads per training: the chosen one, or for 0 the cores divided among the workers."""
    # With worker processes, this one trains nothing: only their number of threads affects results.
    all_threads = set_up_process(chosen if settings.engine == "inline" else 0)
    num_workers = 1 if settings.engine == "inline" else settings.workers
    return chosen or max(1, all_threads // num_workers)


def _objective(settings: TuneSettings) -> Objective:
    return Objective(settings.objective, "min" if settings.objective == "val_loss" else "max")


def _template(settings: TuneSettings) -> keras_tuner.Oracle:
    if settings.algorithm == "hyperband" and settings.trials is not None:
        raise ConfigError("trials: Hyperband has its own number of trials, given by epochs; leave --trials out")
    # A grid without a limit is complete.
    num_trials = None if settings.algorithm == "hyperband" else settings.trials
    if settings.algorithm in ("random", "bayesian"):
        num_trials = settings.trials or DEFAULT_NUM_TRIALS
    spec = OracleSpec(
        settings.algorithm,
        build_space(settings.space, settings.hyperparameters.model_dump()),
        _objective(settings),
        seed=settings.seed,
        max_trials=num_trials,
        num_initial_points=settings.initial_points,
        max_epochs=settings.epochs,
    )
    return build_oracle(spec)


def _identity(settings: TuneSettings, images: ImageSet, split: Split) -> dict[str, Any]:
    """Return what must be equal for trials to belong to one search."""
    # Without the number of trials, hours, workers and kept models, which may change between two starts. The number of
    # threads is recorded apart, so that a machine with other cores keeps it.
    shared = settings.model_dump(
        include={"algorithm", "objective", "seed", "epochs", "image_size", "initial_points", "hyperparameters"},
        mode="json",
    )
    return {
        **shared,
        # Left out if it is the plain one, as in searches that began before there was another.
        **({"step": settings.step} if settings.step != "plain" else {}),
        "data_digest": images.digest,
        "split": split.name,
        "space": {name: given.model_dump(exclude_defaults=True) for name, given in settings.space.items()},
    }
