"""The end of a search: both configurations retrained, the test split opened, one verdict, the registry updated.

The best and the documented configuration are trained on train + validation, with the same seeds, for as many epochs as
their trials kept. All of it resumes after a kill: finished runs are reused, and the test split is opened once.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fakeface_lab.detector.judging import judge_finals, judge_runs
from fakeface_lab.errors import NotFoundError, SearchError
from fakeface_lab.evaluation.comparison import Judgement
from fakeface_lab.search.ledger.ledger import Ledger, LedgerRun, LedgerTrial
from fakeface_lab.search.run.driver import Driver
from fakeface_lab.search.run.engine import Assignment, Engine, Event, Work
from fakeface_lab.tracking.datasets import record_opening
from fakeface_lab.tracking.lookup import get_run
from fakeface_lab.tracking.owner import remove_folder
from fakeface_lab.tracking.registry import (
    alias_version,
    create_registered_model,
    describe_version,
    get_version,
    register_version,
    set_alias,
)
from fakeface_lab.tracking.runs import Run, StoredRun, TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.training.outcome import Outcome

__all__ = ["Finals", "Registration", "explain", "register", "run_finals", "verdict"]


@dataclass(frozen=True)
class Finals:
    """The retrained runs, by seed.

    Attributes:
        best: of the best trial's configuration.
        documented: of trial 0's; the same runs if trial 0 is the best, none if it failed.
    """

    best: tuple[Run, ...]
    documented: tuple[Run, ...]


def run_finals(
    ledger: Ledger,
    work: Work,
    engine: Engine,
    best: LedgerTrial,
    documented: LedgerTrial,
    seeds: range,
    test_set: str,
    show: Callable[[str], None],
) -> Finals:
    """Retrain both configurations with each seed; runs that an earlier process finished are reused.

    The opening of `test_set` (see `seal_key`) is recorded first. Resuming or showing the same finals again is the same
    opening; finals of another best trial are a new one.

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
            # The trial is part of the key: after more trials, another one may be the best.
            f"final-trial-{trial.record.sequence}-seed-{seed}",
            trial.record.values,
            int(trial.tags["kept_epoch"]),
            seed,
            role="final",
        )
        for seed in seeds
        for side, trial in sides.items()
    }
    # Before the retraining, which scores the test images: a process that is killed in it may have seen them.
    record_opening(ledger.parent, test_set, f"trial {best.record.sequence}, seeds {seeds.start} to {seeds.stop - 1}")
    retraining = _Retraining(ledger, work, engine, assignments, show)
    retraining.run()
    runs = retraining.runs()
    of_side = {side: tuple(runs[f"{side}-{seed}"] for seed in seeds) for side in sides}
    return Finals(of_side.get("best") or of_side["documented"], of_side.get("documented", ()))


class _Retraining(Driver[LedgerRun]):
    """Drives the final trainings; each is a child run, found again by its tag `final_key`."""

    def __init__(
        self, ledger: Ledger, work: Work, engine: Engine, assignments: Mapping[str, Assignment],
        show: Callable[[str], None],
    ) -> None:  # fmt: skip
        super().__init__(ledger, work, engine, _RetrainingProgress(show))
        self._runs = self._find_or_make(assignments)
        waiting = {slot: run for slot, run in self._runs.items() if run.info.status != "FINISHED"}
        self._waiting = deque((LedgerRun.from_run(run), assignments[slot]) for slot, run in waiting.items())

    def runs(self) -> dict[str, Run]:
        """Return the runs by their slot, as they are now."""
        parent = self.ledger.parent
        return {slot: StoredRun(parent.store, parent.writer, run).read() for slot, run in self._runs.items()}

    def next(self) -> tuple[LedgerRun, Assignment] | None:
        """Return the next unfinished final."""
        if not self._waiting:
            return None
        child, assignment = self._waiting.popleft()
        if child.run.info.status == "FAILED":  # by an earlier process
            # Rerunning the command is the user's retry, so the attempts count from zero again.
            child = self.ledger.set_tags(child, {"num_starts": "0", "num_deaths": "0"})
        return child, assignment

    def commit(self, child: LedgerRun, outcome: Outcome) -> LedgerRun:
        """Forget why earlier attempts died; a final has no score, and is finished when it is closed."""
        # The epochs too: a training whose checkpoint was on disk when the driver was killed does not report them again.
        tags = {"status_reason": "", "epochs_done": str(len(outcome.records))}
        changed = {name: value for name, value in tags.items() if child.tags.get(name, "") != value}
        return self.ledger.set_tags(child, changed) if changed else child

    def fail(self, child: LedgerRun, reason: str) -> None:
        """End the run as failed, and the search with it."""
        parent = self.ledger.parent
        # Parameters that are still queued would never be written: no restart repeats the writes of a failed run.
        self.uploads.wait_for(child)
        stored = StoredRun(parent.store, parent.writer, child.run)
        stored.set_tags({"status_reason": reason})
        stored.set_status("FAILED")
        raise SearchError(f"{child.name} failed: {reason}; the trials are kept, rerun the same command to retry")

    def clean_up(self, closed: Sequence[LedgerRun]) -> None:
        """Delete the local files of closed finals."""
        for child in closed:
            remove_folder(self.ledger.parent.store.work_folder / child.run_id)
        self.remove_copies(child.run_id for child in closed)

    def _find_or_make(self, assignments: Mapping[str, Assignment]) -> dict[str, Run]:
        """Return the run of each slot (tag `final`, such as `best-0`); runs of earlier finals lose their role."""
        parent = self.ledger.parent
        keys = [assignment.key for assignment in assignments.values()]
        for run in self.ledger.children("tags.role = 'final'"):
            if run.data.tags["final_key"] not in keys:
                StoredRun(parent.store, parent.writer, run).set_tags({"role": "former-final"})
        runs = {}
        for slot, assignment in assignments.items():
            tags = {"role": "final", "final": slot, "final_key": assignment.key, "seed": str(assignment.seed)}
            run = self.ledger.child("final_key", assignment.key.replace("-", " "), tags)
            # A run that was found may have lost the role when fewer seeds were asked for.
            StoredRun(parent.store, parent.writer, run).set_tags({"role": "final", "final": slot})
            runs[slot] = run
        return runs


@dataclass(frozen=True)
class _RetrainingProgress:
    """Shows which final starts, and which is retried."""

    show: Callable[[str], None]

    def started(self, trial: LedgerRun, epochs: int) -> None:
        if trial.num_deaths == 0:
            self.show(f"{trial.name}: {epochs} epochs on train + validation")

    def progressed(self, trial: LedgerRun, event: Event) -> None: ...

    def ended(self, trial: LedgerRun) -> None: ...

    def printed(self, trial: LedgerRun, line: str) -> None: ...

    def retrying(self, trial: LedgerRun, reason: str) -> None:
        self.show(f"{trial.name}: {reason}; trying again")


def verdict(store: Store, finals: Finals) -> Judgement | None:
    """Compare best and documented on the opened test split, by what the search has optimized; see `judge_finals`.

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
    return "There is no verdict: the documented configuration (trial 0) failed, so there is nothing to compare."


CHAMPION, CANDIDATE = "champion", "candidate"
_DONE_TAG, _PLAN_TAG, _JUDGED_TAG = "registered", "registering", "judged_runs"


@dataclass(frozen=True)
class Registration:
    """What was registered.

    Attributes:
        aliases: alias to version, of those that this search has set.
        reason: why the champion is the champion, in one line.
    """

    aliases: dict[str, int]
    reason: str


def register(parent: TrackedRun, finals: Finals, name: str, objective: str) -> Registration:
    """Register the models of some finals, once: showing an old result again moves no alias.

    If there is no champion, the documented configuration becomes it. The best one always takes `candidate`, and
    `champion` only if it beats the present champion on the same test images. The plan is written to the parent run
    first, so that a process that was killed halfway does the same when it resumes.

    Raises:
        SearchError: a model is no longer in the store.
    """
    parent.require_owned()  # creating a version writes nothing to this run: a replaced process would not be stopped
    tags = parent.read().data.tags
    done, plan = (json.loads(tags.get(tag, "{}")) for tag in (_DONE_TAG, _PLAN_TAG))
    these = _fingerprint([*finals.best, *finals.documented])
    if done.get("runs") != these:
        done = parent.writer.call(lambda: _apply(parent, _current(parent, plan, these, finals, name, objective)))
    return Registration(dict(done["aliases"]), done["reason"])


def _current(
    parent: TrackedRun, plan: dict[str, Any], these: str, finals: Finals, name: str, objective: str
) -> dict[str, Any]:
    """Return the plan of an earlier process, unless it is for other finals or another search has moved the champion."""
    # The champion is still the one that the plan was made against, or already the one that it sets.
    if plan.get("runs") == these and alias_version(parent.store, name, CHAMPION) in (
        plan["held"],
        plan["aliases"].get(CHAMPION),
    ):
        return plan
    made = _plan(parent, finals, name, objective) | {"name": name, "runs": these}
    parent.set_tags({_PLAN_TAG: json.dumps(made)})
    return made


def _apply(parent: TrackedRun, plan: dict[str, Any]) -> dict[str, Any]:
    for alias, version in plan["aliases"].items():
        set_alias(parent.store, plan["name"], alias, version)
    # Last: until then a restart carries the plan out again, which changes nothing.
    parent.set_tags({_DONE_TAG: json.dumps(plan)})
    return plan


def _plan(parent: TrackedRun, finals: Finals, name: str, objective: str) -> dict[str, Any]:
    store = parent.store
    create_registered_model(store, name)
    held = alias_version(store, name, CHAMPION)
    candidate = _version(parent, name, finals.best)
    aliases = {CANDIDATE: candidate}
    champion, reason = held, "there is no champion: the documented configuration failed"
    if champion is None and finals.documented:
        champion = aliases[CHAMPION] = _version(parent, name, finals.documented)
        reason = f"version {champion}, the documented configuration, is the first champion"
    # The champion of an earlier search may be stronger than the documented one, which the verdict is about.
    if champion is not None and champion != candidate:
        verdict = _challenge(store, name, finals.best, champion, objective)
        if verdict == "better":
            aliases[CHAMPION] = candidate
            reason = f"version {candidate} is better than version {champion} on the same test images and replaces it"
        else:
            reason = f"version {champion} stays champion; version {candidate} compared with it: {verdict}"
    elif champion is not None and held is not None:
        reason = f"version {champion} is already champion"
    return {"held": held, "aliases": aliases, "reason": reason}


def _challenge(store: Store, name: str, best: Sequence[Run], champion: int, objective: str) -> str:
    """Return the verdict of the best against the champion, or why there is none."""
    version = get_version(store, name, champion)
    # A version that was registered by hand has no such tag; then only its own run can be judged.
    run_ids = json.loads(version.tags.get(_JUDGED_TAG, json.dumps([version.run_id])))
    try:
        champions = [get_run(store, run_id) for run_id in run_ids]
    except NotFoundError:
        return "not comparable, its runs are no longer in the store"
    try:
        return judge_runs(store, best, champions, objective).verdict
    except (NotFoundError, SearchError) as err:
        return f"not comparable, {err}"


def _version(parent: TrackedRun, name: str, runs: Sequence[Run]) -> int:
    """Return the version of the first seed's model, created if needed, and record on it which runs were judged."""
    # Not the seed with the best test score, which would be another selection, and not an average over all seeds, which
    # would multiply the memory and time of each prediction.
    first = runs[0]
    store = parent.store
    version = register_version(StoredRun(store, parent.writer, first), name)
    if version is None:
        raise SearchError(f"run {first.info.run_name}: its model is no longer in {store.uri}; use --restart")
    accuracies = [str(run.data.metrics.get("test_accuracy")) for run in runs]
    facts = {_JUDGED_TAG: json.dumps([run.info.run_id for run in runs]), "test_accuracy": accuracies[0]}
    describe_version(
        store, name, version, facts,
        f"{first.info.run_name}: test accuracy {accuracies[0]} by itself. Verdicts about it average the probabilities "
        f"of {len(runs)} seeds (test accuracy {', '.join(accuracies)}); registered is the first, whatever it scored.",
    )  # fmt: skip
    return version


def _fingerprint(runs: Sequence[Run]) -> str:
    return hashlib.sha256(" ".join(run.info.run_id for run in runs).encode()).hexdigest()[:16]
