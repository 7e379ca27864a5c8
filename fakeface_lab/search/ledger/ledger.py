"""The state of a search: a parent run in MLflow and one child run per trial. Nothing else is kept.

The commit protocol: a child run is created with its hyperparameters, its sequence and its place in the order of events
before it is trained. One write commits its end (score, outcome, place in the order). Files and model are uploaded after
that; then the tag `model` and the run's status close it. If a process died between two writes, or another program
declared the run dead, `repair` or the resumed search completes them.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, Literal, Self, TypeVar

from fakeface_lab.search.ledger.executions import SEARCH_RUN
from fakeface_lab.search.ledger.heartbeat import Heartbeat
from fakeface_lab.search.suggest.suggestion import Suggestion, TrialRecord
from fakeface_lab.tracking.duplicates import find_or_create, most_complete, remove_duplicates
from fakeface_lab.tracking.owner import OWNER_TAG, PROCESS, code_tags, end_at_once
from fakeface_lab.tracking.runs import Run, StoredRun, TrackedRun, point, with_tags
from fakeface_lab.tracking.store import join_text, split_text
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.objective import Objective, best_first

__all__ = ["Ledger", "LedgerRun", "LedgerTrial"]

_STATUS = {"finished": "FINISHED", "failed": "FAILED"}
_STOPPED_BY: dict[type[BaseException], str] = {KeyboardInterrupt: "Ctrl-C", SystemExit: "SIGTERM"}


@dataclass(frozen=True)
class LedgerRun:
    """A child run of a search as recorded in the store: a trial, or a final training.

    Attributes:
        run: MLflow's.
        num_starts: starts since its last newly finished epoch.
        num_deaths: deaths of its worker since then.
        num_errors: attempts that ended with an error of its own and were followed by another.
        epochs_done: finished epochs.
    """

    run: Run
    num_starts: int
    num_deaths: int
    num_errors: int
    epochs_done: int

    @classmethod
    def from_run(cls, run: Run) -> Self:
        """Read a child run from MLflow's run."""
        return cls(run, **_counts(run.data.tags))

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return str(self.run.info.run_id)

    @property
    def name(self) -> str:
        """The run's name in the table."""
        return str(self.run.info.run_name)

    @property
    def tags(self) -> dict[str, str]:
        """All tags of the run."""
        return dict(self.run.data.tags)


@dataclass(frozen=True)
class LedgerTrial(LedgerRun):
    """A trial as recorded in the store.

    Attributes:
        record: what later suggestions depend on.
    """

    record: TrialRecord

    @classmethod
    def from_run(cls, run: Run) -> Self:
        """Read a trial from MLflow's run."""
        tags = run.data.tags
        record = TrialRecord(
            sequence=int(tags["trial"]),
            values=json.loads(join_text(tags, "values")),
            bracket_values=json.loads(join_text(tags, "bracket_values")),
            created_order=int(tags["created_order"]),
            ended_order=int(tags["ended_order"]) if "ended_order" in tags else None,
            status=tags.get("outcome", "running"),
            score=float(tags["score"]) if "score" in tags else None,
        )
        return cls(run, **_counts(tags), record=record)

    @property
    def is_open(self) -> bool:
        """Whether something remains to be done: the training, or the upload of its files."""
        return self.record.status == "running" or (self.record.status == "finished" and "model" not in self.tags)


Child = TypeVar("Child", bound=LedgerRun)


class Ledger:
    """Reads and writes the trials of one search. The constructor only reads; one process at a time may write.

    Args:
        parent: the parent run; a `TrackedRun`, unless the ledger is only read.
    """

    def __init__(self, parent: StoredRun) -> None:
        self._parent = parent
        self._heartbeat: Heartbeat | None = None
        self._code_tags = code_tags()
        self._duplicates: dict[int, list[Run]] = {}
        for run in self.children("tags.role = 'trial'"):
            self._duplicates.setdefault(int(run.data.tags["trial"]), []).append(run)
        by_number = sorted(self._duplicates.items())
        self._trials = {number: LedgerTrial.from_run(most_complete(runs)) for number, runs in by_number}
        orders = [trial.record.created_order for trial in self._trials.values()]
        orders += [trial.record.ended_order or 0 for trial in self._trials.values()]
        self._last_order = max(orders, default=0)

    @property
    def parent(self) -> TrackedRun:
        """The parent run, open for writing."""
        assert isinstance(self._parent, TrackedRun), "this ledger is read-only"
        return self._parent

    @property
    def trials(self) -> list[LedgerTrial]:
        """All trials in the order of their creation."""
        return list(self._trials.values())

    @property
    def records(self) -> list[TrialRecord]:
        """All trials as `suggest` takes them."""
        return [trial.record for trial in self._trials.values()]

    @property
    def growth(self) -> dict[int, list[dict[str, Any]]]:
        """The hyperparameters that trials have found, serialized, by the number of the event that ended the trial."""
        found = {trial.record.ended_order: trial.tags for trial in self.trials if "found" in trial.tags}
        return {order: json.loads(join_text(tags, "found")) for order, tags in found.items() if order is not None}

    @property
    def num_events(self) -> int:
        """Number of creations and ends of trials; the next suggestion changes only with them."""
        return self._last_order

    def num_failed_last(self) -> int:
        """Return how many trials have failed since the last one that finished, in the order of their ends."""
        ended = [trial for trial in self.records if trial.ended_order is not None]
        ended.sort(key=lambda trial: -(trial.ended_order or 0))
        return sum(1 for _ in takewhile(lambda trial: trial.status == "failed", ended))

    @property
    def objective(self) -> Objective:
        """The metric that is the score, and its direction."""
        return Objective.from_tags(self._parent.run.data.tags)

    def best_first(self) -> list[LedgerTrial]:
        """Return the trials that have a score, the best first; of equal scores the earlier trial is first."""
        scores = {trial.sequence: trial.score for trial in self.records if trial.score is not None}
        return [self._trials[number] for number in best_first(scores, self.objective.direction)]

    def repair(self) -> None:
        """Delete duplicate runs of a trial, and correct statuses that contradict what was committed."""
        store, writer = self.parent.store, self.parent.writer
        for duplicates in self._duplicates.values():
            writer.call(partial(remove_duplicates, store, duplicates))
        for trial in self.trials:
            if not trial.is_open and trial.run.info.status != _STATUS[trial.record.status]:
                self.stored(trial).set_status(_STATUS[trial.record.status])

    def create(self, suggestion: Suggestion, name: str, tags: Mapping[str, str]) -> LedgerTrial:
        """Record a new trial and return it."""
        all_tags = {
            "role": "trial",
            "trial": str(len(self._trials)),
            "created_order": str(self._last_order + 1),
            **split_text("values", json.dumps(dict(suggestion.values))),
            **split_text("bracket_values", json.dumps(dict(suggestion.bracket_values))),
            **tags,
        }
        self.parent.require_owned()
        return self._keep(LedgerTrial.from_run(self.child("trial", name, all_tags)))

    def child(self, key: str, name: str, tags: Mapping[str, str]) -> Run:
        """Return the child run whose tag `key` has the value in `tags`; it is created if there is none."""
        identity = {"mlflow.runName": name, "mlflow.parentRunId": self.parent.run_id, OWNER_TAG: PROCESS}
        return find_or_create(self.parent.store, self.parent.writer, {**identity, **self._code_tags, **tags}, key)

    def count_start(self, child: Child) -> Child:
        """Count a start before it happens, so that one that crashes the machine is counted too."""
        return self.set_tags(child, {"num_starts": str(child.num_starts + 1)})

    def uncount_start(self, child: Child, reason: str) -> Child:
        """Take back a start that was ended by the machine and not by the training."""
        return self.set_tags(child, {"num_starts": str(max(0, child.num_starts - 1)), "status_reason": reason})

    def count_death(self, child: Child, reason: str) -> Child:
        """Count a death of the training's worker."""
        return self.set_tags(child, {"num_deaths": str(child.num_deaths + 1), "status_reason": reason})

    def count_error(self, child: Child, reason: str) -> Child:
        """Count an error of the training, which is tried again."""
        return self.set_tags(child, {"num_errors": str(child.num_errors + 1), "status_reason": reason})

    def count_epoch(self, child: Child, epochs_done: int) -> Child:
        """Note a finished epoch, which resets the counts of starts and deaths unless it only repeats an earlier one."""
        if epochs_done <= child.epochs_done:
            return child
        tags = {"epochs_done": str(epochs_done), "num_starts": "0", "num_deaths": "0"}
        self.stored(child).write(tags=tags, wait=False)
        return self._updated(child, tags)

    def end(
        self,
        trial: LedgerTrial,
        outcome: Literal["finished", "failed"],
        score: float | None,
        reason: str = "",
        tags: Mapping[str, str] | None = None,
        *,
        measured_at: tuple[int, int] | None = None,
    ) -> LedgerTrial:
        """Commit the end of a trial in one write. A failed trial is closed as well, a finished one by `close`.

        `reason` is for the user. `measured_at` is the epoch and the Unix time in ms of the metric `score`; without it
        the metric is not written.
        """
        self.parent.require_owned()
        all_tags = {
            **(tags or {}),
            "outcome": outcome,
            "ended_order": str(self._last_order + 1),
            "status_reason": reason,
            **({} if score is None else {"score": repr(score)}),
        }
        points = [] if score is None or measured_at is None else [point("score", score, *measured_at)]
        self.stored(trial).write(tags=all_tags, points=points)
        ended = self._updated(trial, all_tags)
        if outcome == "failed":
            self.stored(ended).set_status("FAILED")
        return ended

    def close(self, child: LedgerRun, *, has_model: bool, writer: PatientWriter) -> None:
        """Close a finished training after all its metrics and files are in the store; idempotent, from any thread."""
        stored = self.stored(child, writer)
        stored.set_tags(_model_tag(has_model))
        stored.set_status("FINISHED")

    def note_closed(self, child: Child, *, has_model: bool) -> Child:
        """Update this ledger's copy with what `close` has written."""
        return self._updated(child, _model_tag(has_model))

    def set_tags(self, child: Child, tags: Mapping[str, str]) -> Child:
        """Write tags that are not an event of the search."""
        self.stored(child).set_tags(tags)
        return self._updated(child, tags)

    @contextmanager
    def driving(self) -> Iterator[None]:
        """End the parent run with the block, whatever happens; until then it says that this process drives the search.

        Everything that writes belongs in one block: trials, final trainings and the report. Between two blocks another
        process would believe that nobody drives the search.
        """
        with self.parent.ending(), Heartbeat(self.parent) as self._heartbeat:
            yield

    def used_secs(self) -> float:
        """Return how long the search has been driven, earlier processes included, s; only within `driving`."""
        assert self._heartbeat is not None, "nobody drives this search"
        return self._heartbeat.used_secs()

    @contextmanager
    def killing_open_runs(self) -> Iterator[None]:
        """On any exception end the open child runs of this process as KILLED; the search can be resumed.

        Each write is tried once: the program is ending, and must not wait for an unreachable store.
        """
        try:
            yield
        except BaseException as err:
            reason, store = _STOPPED_BY.get(type(err), str(err)), self.parent.store
            own = f"attributes.status = 'RUNNING' and tags.{OWNER_TAG} = '{PROCESS}'"
            with suppress(Exception):
                executions = store.runs(f"tags.{SEARCH_RUN} = '{self.parent.run_id}' and {own}")
                for run in [*executions, *self._children_now(own)]:
                    end_at_once(store, run.info.run_id, "KILLED", f"stopped by {reason}")
            raise

    def children(self, query: str) -> list[Run]:
        """Return the child runs, trials and others, that match a query in MLflow's language."""
        return self._parent.writer.call(lambda: self._children_now(query))

    def _children_now(self, query: str) -> list[Run]:
        return self._parent.store.runs(f"tags.`mlflow.parentRunId` = '{self._parent.run_id}' and {query}")

    def stored(self, child: LedgerRun, writer: PatientWriter | None = None) -> StoredRun:
        """Return a child run for further writes, through the search's writer or another one."""
        return StoredRun(self.parent.store, writer or self.parent.writer, child.run)

    def _updated(self, child: Child, tags: Mapping[str, str]) -> Child:
        updated = type(child).from_run(with_tags(child.run, tags))
        if isinstance(updated, LedgerTrial):
            self._keep(updated)
        return updated

    def _keep(self, trial: LedgerTrial) -> LedgerTrial:
        record = trial.record
        self._last_order = max(self._last_order, record.created_order, record.ended_order or 0)
        self._trials[record.sequence] = trial
        return trial


def _model_tag(has_model: bool) -> dict[str, str]:
    return {"model": "logged" if has_model else "none"}


def _counts(tags: Mapping[str, str]) -> dict[str, int]:
    return {name: int(tags.get(name, "0")) for name in ("num_starts", "num_deaths", "num_errors", "epochs_done")}
