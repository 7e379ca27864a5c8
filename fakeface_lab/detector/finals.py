"""The end of a search: the best and the documented configuration retrained, the test split opened, one verdict.

Both are trained on train + validation, over the same seeds, for as many epochs as their trial kept. Killed anywhere
and started again it goes on: a finished final run is taken as it is, and an opening of the test split counts once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from mlflow.entities import Run

from fakeface_lab.detector.judging import judge_finals
from fakeface_lab.errors import SearchError
from fakeface_lab.evaluation.comparison import Judgement
from fakeface_lab.search.ledger.heartbeat import Heartbeat
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.run.engine import Engine, Event
from fakeface_lab.search.run.work import Assignment, Work
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.seal import record_opening
from fakeface_lab.tracking.store import Store
from fakeface_lab.training.outcome import read_outcome

__all__ = ["Finals", "explain", "run_finals", "verdict"]

_MAX_DEATHS = 3
_POLL_SECS = 1.0


@dataclass(frozen=True)
class Finals:
    """The retrained runs, by seed.

    Attributes:
        best: of the best trial's configuration.
        documented: of trial 0's; the same runs where trial 0 is the best, none where it failed.
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
    test_set: str,
    show: Callable[[str], None],
) -> Finals:
    """Retrain both configurations over all seeds; those that an earlier process finished are taken as they are.

    The opening of `test_set` (see `seal_key`) is recorded first. The same finals continued or shown again are one
    opening; other ones, after further trials, are another.

    Raises:
        SearchError: a final training failed; says why.
    """
    sides = {"best": best, "documented": documented}
    if documented.record.status != "finished":
        del sides["documented"]
    elif documented.record.sequence == best.record.sequence:
        del sides["best"]
    assignments = {
        f"{side}-{seed}": Assignment(
            # After further trials another one may be the best.
            f"final-trial-{trial.record.sequence}-seed-{seed}",
            trial.record.values,
            int(trial.tags["kept_epoch"]),
            seed,
            role="final",
        )
        for seed in seeds
        for side, trial in sides.items()
    }
    record_opening(ledger.parent, test_set, f"trial {best.record.sequence}, seeds {seeds.start} to {seeds.stop - 1}")
    runs = _Retraining(ledger, work, make_engine, show).run(assignments)
    of_side = {side: tuple(runs[f"{side}-{seed}"] for seed in seeds) for side in sides}
    return Finals(of_side.get("best") or of_side["documented"], of_side.get("documented", ()))


class _Retraining:
    """Runs final assignments through an engine; each is a child run found again by its tag."""

    def __init__(
        self,
        ledger: Ledger,
        work: Work,
        make_engine: Callable[[Callable[[Event], None]], Engine],
        show: Callable[[str], None],
    ) -> None:
        self._ledger, self._parent, self._work, self._show = ledger, ledger.parent, work, show
        self._engine = make_engine(self._handle)
        self._running: dict[str, tuple[Assignment, TrackedRun]] = {}
        self._num_deaths: dict[str, int] = {}

    def run(self, assignments: Mapping[str, Assignment]) -> dict[str, Run]:
        runs = self._find_or_make(assignments)
        waiting = [place for place in assignments if runs[place].info.status != "FINISHED"]
        with self._ledger.stopping(), Heartbeat(self._parent):
            try:
                while waiting or self._running:
                    while waiting and self._engine.num_free():
                        place = waiting.pop(0)
                        self._start(assignments[place], runs[place])
                    self._engine.wait(_POLL_SECS)
            finally:
                self._engine.stop()
                for _, run in self._running.values():
                    run.lock.release()
        client, writer = self._parent.store.client, self._parent.writer
        return {place: writer.call(partial(client.get_run, run.info.run_id)) for place, run in runs.items()}

    def _find_or_make(self, assignments: Mapping[str, Assignment]) -> dict[str, Run]:
        """Return the runs by their place, which their tag `final` says; those of earlier finals are no finals now."""
        client, writer = self._parent.store.client, self._parent.writer
        keys = [assignment.key for assignment in assignments.values()]
        for run in self._ledger.children("tags.role = 'final'"):
            if run.data.tags["final_key"] not in keys:
                writer.call(partial(client.set_tag, run.info.run_id, "role", "former-final"))
        runs = {}
        for place, assignment in assignments.items():
            tags = {"role": "final", "final": place, "final_key": assignment.key, "seed": str(assignment.seed)}
            runs[place] = self._ledger.child("final_key", assignment.key.replace("-", " "), tags)
            for key in ("role", "final"):
                writer.call(partial(client.set_tag, runs[place].info.run_id, key, tags[key]))
        return runs

    def _start(self, assignment: Assignment, found: Run) -> None:
        run = TrackedRun.reopen(self._parent.store, self._parent.writer, found)
        self._running[assignment.key] = (assignment, run)
        self._work.begin(run, assignment)
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
                if outcome is None:
                    self._handle(Event(event.key, "died", reason="the worker left no readable result"))
                    return
                self._work.finish(run, assignment, outcome, keep_model=True)
                del self._running[event.key]
                run.end("FINISHED")
                run.remove_files()
            case "died" | "disturbed" if self._num_deaths.get(event.key, 0) + 1 < _MAX_DEATHS:
                self._num_deaths[event.key] = self._num_deaths.get(event.key, 0) + 1
                self._show(f"{run.name}: {event.reason}; trying again")
                self._engine.start(assignment, run.folder)
            case "died" | "disturbed" | "failed":
                del self._running[event.key]
                run.end("FAILED", event.reason)
                raise SearchError(f"{run.name} failed: {event.reason}; the trials are kept, start again to retry")


def verdict(store: Store, finals: Finals) -> Judgement | None:
    """Compare best and documented on the opened test split, by what the search has optimised; see `judge_finals`.

    None where there is nothing to compare: trial 0 is the best itself, or failed.
    """
    if not finals.documented or finals.best == finals.documented:
        return None
    return judge_finals(store, finals.best, finals.documented)


def explain(finals: Finals, comparison: Judgement | None, num_trials: int) -> str:
    """Return the verdict in plain words, in one line."""
    if comparison is not None:
        return comparison.sentence("the best configuration", "the documented one")
    if finals.documented:
        return (
            f"The documented configuration (trial 0) is the best of {num_trials} trials: there is nothing to compare."
        )
    return "There is no verdict: the documented configuration (trial 0) failed, so the best has nothing beside it."
