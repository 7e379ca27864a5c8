"""The end of a search: the best and the documented configuration retrained, the test split opened, one verdict.

Both are trained on train + validation, over the same seeds, for as many epochs as their trial kept. The registry's
alias `champion` moves only on the verdict "better".
"""

import csv
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fakeface_lab.errors import SearchError
from fakeface_lab.evaluation.comparison import Comparison, compare
from fakeface_lab.results import read_outcome
from fakeface_lab.search.engines import Engine, Event
from fakeface_lab.search.ledger import Ledger, LedgerTrial
from fakeface_lab.search.work import Assignment, Work
from fakeface_lab.tracking.models import model_of_run
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store

__all__ = ["Finals", "PartScores", "part_scores", "register", "run_finals", "verdict"]

CHAMPION, CANDIDATE = "champion", "candidate"
_MAX_ATTEMPTS = 3
_POLL_SECS = 1.0


@dataclass(frozen=True)
class Finals:
    """The retrained runs, by seed.

    Attributes:
        best: of the best trial's configuration.
        documented: of trial 0's; the same runs where trial 0 is the best.
    """

    best: tuple[Run, ...]
    documented: tuple[Run, ...]


def run_finals(
    ledger: Ledger,
    work: Work,
    make_engine: Callable[[Callable[[Event], None]], Engine],
    best: LedgerTrial,
    documented: LedgerTrial,
    seeds: range,
    show: Callable[[str], None],
) -> Finals:
    """Retrain both configurations over all seeds; those that an earlier process finished are taken as they are.

    Raises:
        SearchError: a final training failed; says why.
    """
    sides = {"documented": documented} if best is documented else {"best": best, "documented": documented}
    assignments = {
        f"{side}-{seed}": Assignment(
            f"final-{side}-{seed}", trial.record.values, _kept_epoch(trial), seed, role="final"
        )
        for side, trial in sides.items()
        for seed in seeds
    }
    runs = _Retraining(ledger, work, make_engine, show).run(assignments)
    of_documented = tuple(runs[f"documented-{seed}"] for seed in seeds)
    of_best = of_documented if best is documented else tuple(runs[f"best-{seed}"] for seed in seeds)
    return Finals(of_best, of_documented)


def _kept_epoch(trial: LedgerTrial) -> int:
    return int(trial.run.data.tags["kept_epoch"])


class _Retraining:
    """Runs final assignments through an engine; each is a child run found again by its tag."""

    def __init__(
        self,
        ledger: Ledger,
        work: Work,
        make_engine: Callable[[Callable[[Event], None]], Engine],
        show: Callable[[str], None],
    ) -> None:
        self._parent, self._work, self._show = ledger.parent, work, show
        self._engine = make_engine(self._handle)
        self._running: dict[str, tuple[Assignment, TrackedRun]] = {}
        self._deaths: dict[str, int] = {}

    def run(self, assignments: Mapping[str, Assignment]) -> dict[str, Run]:
        done = {key: run for key in assignments if (run := self._find(key)) and run.info.status == "FINISHED"}
        waiting = [assignment for key, assignment in assignments.items() if key not in done]
        self._waiting = waiting
        try:
            while self._waiting or self._running:
                while self._waiting and self._engine.num_free():
                    self._start(self._waiting.pop(0))
                self._engine.wait(_POLL_SECS)
        finally:
            self._engine.stop()
            for _, run in self._running.values():
                run.lock.release()
        return {key: found for key in assignments if (found := self._find(key)) is not None}

    def _find(self, key: str) -> Run | None:
        store = self._parent.store
        query = f"tags.`mlflow.parentRunId` = '{self._parent.run_id}' and tags.final = '{key}'"
        found = self._parent.writer.call(lambda: store.client.search_runs([store.experiment_id], query))
        return found[0] if found else None

    def _start(self, assignment: Assignment) -> None:
        key = assignment.key.removeprefix("final-")
        store, writer = self._parent.store, self._parent.writer
        found = self._find(key)
        if found is None:
            tags = {"role": "final", "final": key, "seed": str(assignment.seed)}
            name = f"final {key.replace('-', ' seed ')}"
            run = TrackedRun.create(store, writer, name, tags, parent_run_id=self._parent.run_id)
        else:
            run = TrackedRun.reopen(store, writer, found)
        self._work.begin(run, assignment)
        self._running[assignment.key] = (assignment, run)
        self._show(f"{run.name}: {assignment.epochs} epochs on train + validation")
        self._engine.start(assignment, run.folder)

    def _handle(self, event: Event) -> None:
        assignment, run = self._running[event.key]
        match event.kind:
            case "epoch":
                assert event.record is not None
                run.log_metrics(event.record.metrics, event.record.epoch, event.record.ended_at_ms)
            case "done":
                outcome = read_outcome(run.folder)
                assert outcome is not None  # the worker writes it before it says so
                self._work.finish(run, assignment, outcome, keep_model=True)
                del self._running[event.key]
                run.end("FINISHED")
            case "died" if self._deaths.get(event.key, 0) + 1 < _MAX_ATTEMPTS:
                self._deaths[event.key] = self._deaths.get(event.key, 0) + 1
                del self._running[event.key]
                run.lock.release()
                self._waiting.append(assignment)
            case "died" | "failed":
                del self._running[event.key]
                run.end("FAILED", event.reason)
                raise SearchError(f"{run.name} failed: {event.reason}; the trials are kept, start again to retry")


@dataclass(frozen=True)
class PartScores:
    """Per-image scores of several runs on the same images.

    Attributes:
        files: names of the images.
        is_positive: bool (num_images,).
        scores: float64 (num_runs, num_images), probability of the class to detect.
    """

    files: tuple[str, ...]
    is_positive: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float64]


def part_scores(store: Store, runs: tuple[Run, ...], part: str = "test") -> PartScores:
    """Return the per-image scores that runs have logged for one split.

    Raises:
        SearchError: a run has none, or two runs were scored on different images.
    """
    tables = [_read_scores(store, run, part) for run in runs]
    first = tables[0]
    for run, table in zip(runs, tables, strict=True):
        if [row[0] for row in table] != [row[0] for row in first]:
            raise SearchError(f"run {run.info.run_name}: scored on other {part} images than {runs[0].info.run_name}")
    return PartScores(
        tuple(row[0] for row in first),
        np.array([row[1] for row in first], dtype=bool),
        np.array([[row[2] for row in table] for table in tables], dtype=np.float64),
    )


def _read_scores(store: Store, run: Run, part: str) -> list[tuple[str, bool, float]]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = store.client.download_artifacts(run.info.run_id, "scores.csv", folder)
        except (MlflowException, OSError) as err:
            raise SearchError(f"run {run.info.run_name}: has no scores.csv; was it stopped before its end?") from err
        with Path(path).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.reader(file)
            positive = next(table)[4].removeprefix("probability_")
            rows = [(row[0], row[2] == positive, float(row[4])) for row in table if row[3] == part]
    if not rows:
        raise SearchError(f"run {run.info.run_name}: has no scores on the {part} split")
    return rows


def verdict(store: Store, finals: Finals) -> Comparison:
    """Compare best and documented on the opened test split: exact McNemar on seed-averaged probabilities."""
    best, documented = part_scores(store, finals.best), part_scores(store, finals.documented)
    return compare(best.is_positive, best.scores, documented.scores)


def register(store: Store, finals: Finals, name: str, comparison: Comparison) -> dict[str, int]:
    """Register the first seed's models and return alias to version.

    The documented model takes `champion` where nobody holds it; the best one always takes `candidate`, and
    `champion` only where the verdict is "better". A run that is registered already keeps its version.
    """
    client = store.client
    try:
        client.create_registered_model(name)
    except MlflowException as err:
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    documented = _version(store, name, finals.documented[0])
    best = _version(store, name, finals.best[0])
    aliases = {CANDIDATE: best}
    held = CHAMPION in client.get_registered_model(name).aliases
    if not held:
        aliases[CHAMPION] = documented
    if comparison.verdict == "better":
        aliases[CHAMPION] = best
    for alias, version in aliases.items():
        client.set_registered_model_alias(name, alias, str(version))
    return aliases


def _version(store: Store, name: str, run: Run) -> int:
    client, run_id = store.client, run.info.run_id
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id == run_id:
            return int(version.version)
    source = model_of_run(store, run_id)
    if source is None:
        raise SearchError(f"run {run.info.run_name}: has no model to register; use --keep-models all")
    created = client.create_model_version(
        name, source, run_id, tags={"test_accuracy": str(run.data.metrics.get("test_accuracy"))}
    )
    return int(created.version)
