"""The memory of a search: a parent run in MLflow and one child run per trial. There is no other.

A child run is made with its hyperparameters, sequence and place in the order of events before it is trained. Its end
is committed by one write (score, outcome, place in the order). What the training left behind, the model above all, is
uploaded after that; the tag `model` and the run's status then close it. Both are repaired if a process died between
two writes, or if another program took the run for dead.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self, TypeVar

from fakeface_lab.search.suggest.suggestion import Suggestion, TrialRecord
from fakeface_lab.tracking.lookup import furthest
from fakeface_lab.tracking.owner import OWNER_TAG, PROCESS, code_tags
from fakeface_lab.tracking.runs import (
    Run,
    StoredRun,
    TrackedRun,
    end_at_once,
    make_once,
    point,
    remove_twins,
    with_tags,
)
from fakeface_lab.tracking.store import join_text, split_text
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.objective import Objective, best_first

__all__ = ["Ledger", "LedgerRun", "LedgerTrial"]

_STATUS = {"finished": "FINISHED", "failed": "FAILED"}
_STOPPED_BY: dict[type[BaseException], str] = {KeyboardInterrupt: "Ctrl-C", SystemExit: "SIGTERM"}


@dataclass(frozen=True)
class LedgerRun:
    """A child run of a search as the store has it: a trial, or a final training.

    Attributes:
        run: MLflow's.
        num_starts: how often it was started since it last finished an epoch.
        num_deaths: how often its worker died since then.
        epochs_done: finished epochs.
    """

    run: Run
    num_starts: int
    num_deaths: int
    epochs_done: int

    @classmethod
    def of(cls, run: Run) -> Self:
        """Read it from a run's tags."""
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
    """A trial as the store has it.

    Attributes:
        record: what the suggestion of later trials is made from.
    """

    record: TrialRecord

    @classmethod
    def of(cls, run: Run) -> Self:
        """Read it from a run's tags."""
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
        """Whether something is still to be done: training, or the upload of what it left behind."""
        return self.record.status == "running" or (self.record.status == "finished" and "model" not in self.tags)


Child = TypeVar("Child", bound=LedgerRun)


class Ledger:
    """Reads and writes the trials of one search. Making one only reads; one process at a time may write.

    Args:
        parent: the parent run; one that is open for writing, unless the ledger is only read.
    """

    def __init__(self, parent: StoredRun) -> None:
        self._parent = parent
        self._code_tags = code_tags()
        self._twins: dict[int, list[Run]] = {}
        for run in self.children("tags.role = 'trial'"):
            self._twins.setdefault(int(run.data.tags["trial"]), []).append(run)
        self._trials = {number: LedgerTrial.of(furthest(self._twins[number])) for number in sorted(self._twins)}
        orders = [trial.record.created_order for trial in self._trials.values()]
        orders += [trial.record.ended_order or 0 for trial in self._trials.values()]
        self._last_order = max(orders, default=0)

    @property
    def parent(self) -> TrackedRun:
        """The parent run, open for writing."""
        assert isinstance(self._parent, TrackedRun), "this ledger is only read"
        return self._parent

    @property
    def trials(self) -> list[LedgerTrial]:
        """All trials in the order of their creation."""
        return list(self._trials.values())

    @property
    def records(self) -> list[TrialRecord]:
        """The same, as suggestions need them."""
        return [trial.record for trial in self._trials.values()]

    @property
    def num_events(self) -> int:
        """How many creations and ends there are: what is suggested next changes only with them."""
        return self._last_order

    @property
    def objective(self) -> Objective:
        """What the score is, and whether more of it is better."""
        return Objective.from_tags(self._parent.run.data.tags)

    def best_first(self) -> list[LedgerTrial]:
        """Return the trials that have a score, the best first; of equal scores the earlier trial is first."""
        scores = {number: trial.record.score for number, trial in self._trials.items()}
        ranked = best_first(
            {key: score for key, score in scores.items() if score is not None}, self.objective.direction
        )
        return [self._trials[number] for number in ranked]

    def repair(self) -> None:
        """Leave one run of each trial that was made twice, and set statuses that do not fit what was committed."""
        store, writer = self.parent.store, self.parent.writer
        for twins in self._twins.values():
            writer.call(partial(remove_twins, store, twins))
        for trial in self.trials:
            if not trial.is_open and trial.run.info.status != _STATUS[trial.record.status]:
                self._stored(trial).set_status(_STATUS[trial.record.status])

    def create(self, suggestion: Suggestion, name: str, tags: Mapping[str, str]) -> LedgerTrial:
        """Write a new trial and return it."""
        all_tags = {
            "role": "trial",
            "trial": str(len(self._trials)),
            "created_order": str(self._last_order + 1),
            **split_text("values", json.dumps(dict(suggestion.values))),
            **split_text("bracket_values", json.dumps(dict(suggestion.bracket_values))),
            **tags,
        }
        self.parent.require_owned()
        return self._keep(LedgerTrial.of(self.child("trial", name, all_tags)))

    def child(self, key: str, name: str, tags: Mapping[str, str]) -> Run:
        """Return the child run whose tag `key` is the given one; it is made if there is none."""
        identity = {"mlflow.runName": name, "mlflow.parentRunId": self.parent.run_id, OWNER_TAG: PROCESS}
        return make_once(self.parent.store, self.parent.writer, {**identity, **self._code_tags, **tags}, key)

    def count_start(self, child: Child) -> Child:
        """Count a start before it happens, so that one that kills everything is counted too."""
        return self.set_tags(child, {"num_starts": str(child.num_starts + 1)})

    def uncount_start(self, child: Child, reason: str) -> Child:
        """Take a start back that the machine ended, and not the training."""
        return self.set_tags(child, {"num_starts": str(max(0, child.num_starts - 1)), "status_reason": reason})

    def count_death(self, child: Child, reason: str) -> Child:
        """Count a worker that died over this training."""
        return self.set_tags(child, {"num_deaths": str(child.num_deaths + 1), "status_reason": reason})

    def count_epoch(self, child: Child, epochs_done: int) -> Child:
        """Note progress: it clears the counts of starts and deaths. An epoch that is trained again is no progress."""
        if epochs_done <= child.epochs_done:
            return child
        tags = {"epochs_done": str(epochs_done), "num_starts": "0", "num_deaths": "0"}
        self._stored(child).write(tags=tags, wait=False)
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
        """Commit the end of a trial in one write; a failed one is closed as well, a finished one by `close`.

        Args:
            trial: which.
            outcome: how it ended.
            score: its score, None if it failed.
            reason: why, for people.
            tags: further facts.
            measured_at: epoch and Unix time in ms of the metric `score`; None to write no metric.
        """
        self.parent.require_owned()
        facts = {"outcome": outcome, "ended_order": str(self._last_order + 1), "status_reason": reason}
        points = []
        if score is not None:
            facts["score"] = repr(score)
            points = [point("score", score, *measured_at)] if measured_at else []
        facts = {**(tags or {}), **facts}
        self._stored(trial).write(tags=facts, points=points)
        ended = self._updated(trial, facts)
        if outcome == "failed":
            self._stored(ended).set_status("FAILED")
        return ended

    def close(self, child: LedgerRun, *, has_model: bool, writer: PatientWriter) -> None:
        """Close a finished training whose figures and files are all in the store; repeatable, from any thread."""
        stored = self._stored(child, writer)
        stored.set_tags(_model_tag(has_model))
        stored.set_status("FINISHED")

    def note_closed(self, child: Child, *, has_model: bool) -> Child:
        """Take over here what `close` has written."""
        return self._updated(child, _model_tag(has_model))

    def copy_figures(self, trial: LedgerTrial, source: LedgerTrial, writer: PatientWriter) -> None:
        """Give a trial that need not be trained the parameters and metrics of the one that was the same."""
        self._stored(trial, writer).copy_figures(source.run)

    def set_tags(self, child: Child, tags: Mapping[str, str]) -> Child:
        """Write tags that are not an event."""
        self._stored(child).set_tags(tags)
        return self._updated(child, tags)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """On any exception end the open child runs of this process as KILLED; the search can be continued.

        Each write is tried once: the program is ending, and a store that is away must not hold it up.
        """
        try:
            yield
        except BaseException as err:
            reason = _STOPPED_BY.get(type(err), str(err))
            with suppress(Exception):
                for run in self._children_now(f"attributes.status = 'RUNNING' and tags.{OWNER_TAG} = '{PROCESS}'"):
                    end_at_once(self.parent.store, run.info.run_id, "KILLED", f"stopped by {reason}")
            raise

    def children(self, query: str) -> list[Run]:
        """Return the child runs, trials and others, that a query of MLflow finds."""
        return self._parent.writer.call(lambda: self._children_now(query))

    def _children_now(self, query: str) -> list[Run]:
        parent = self._parent
        of_parent = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
        return parent.store.runs(f"{of_parent} and {query}")

    def _stored(self, child: LedgerRun, writer: PatientWriter | None = None) -> StoredRun:
        return StoredRun(self.parent.store, writer or self.parent.writer, child.run)

    def _updated(self, child: Child, tags: Mapping[str, str]) -> Child:
        updated = type(child).of(with_tags(child.run, tags))
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
    return {name: int(tags.get(name, "0")) for name in ("num_starts", "num_deaths", "epochs_done")}
