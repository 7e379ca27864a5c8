"""The memory of a search: a parent run in MLflow and one child run per trial. There is no other.

A child run is made with its hyperparameters, sequence and place in the order of events before it is trained. Its end
is committed by one write (score, outcome, place in the order). What the training left behind, the model above all, is
uploaded after that; the tag `model` and the run's status then close it, and both are repaired where a process died
between two writes, or where another program took the run for dead.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mlflow.entities import Metric, Param, Run, RunData

from fakeface_lab.search.suggest.suggestion import Suggestion, TrialRecord
from fakeface_lab.tracking.owner import OWNER_TAG, PROCESS
from fakeface_lab.tracking.provenance import code_tags
from fakeface_lab.tracking.runs import TrackedRun, furthest, make_once, remove_twins
from fakeface_lab.tracking.store import MAX_TAG_CHARS, as_entities, join_text, search_runs, split_text
from fakeface_lab.tracking.writer import PatientWriter

__all__ = ["Ledger", "LedgerTrial"]

_MAX_POINTS = 1000  # in one write
_STATUS = {"finished": "FINISHED", "failed": "FAILED"}
_STOPPED_BY: dict[type[BaseException], str] = {KeyboardInterrupt: "Ctrl-C", SystemExit: "SIGTERM"}


@dataclass(frozen=True)
class LedgerTrial:
    """A trial as the store has it.

    Attributes:
        record: what the suggestion of later trials is made from.
        run: the child run.
        num_starts: how often it was started since it last finished an epoch.
        num_deaths: how often its worker died since then.
        epochs_done: finished epochs.
    """

    record: TrialRecord
    run: Run
    num_starts: int
    num_deaths: int
    epochs_done: int

    @property
    def run_id(self) -> str:
        """MLflow's id of the child run."""
        return str(self.run.info.run_id)

    @property
    def tags(self) -> dict[str, str]:
        """All tags of the child run."""
        return dict(self.run.data.tags)

    @property
    def is_open(self) -> bool:
        """Whether something is still to be done: training, or the upload of what it left behind."""
        return self.record.status == "running" or (self.record.status == "finished" and "model" not in self.tags)


class Ledger:
    """Reads and writes the trials of one search. Making one only reads; one process at a time may write."""

    def __init__(self, parent: TrackedRun) -> None:
        self.parent = parent
        self._code_tags = code_tags()
        self._twins: dict[int, list[Run]] = {}
        for run in self.children("tags.role = 'trial'"):
            self._twins.setdefault(int(run.data.tags["trial"]), []).append(run)
        self._trials = {number: _to_trial(furthest(self._twins[number])) for number in sorted(self._twins)}
        orders = [trial.record.created_order for trial in self._trials.values()]
        orders += [trial.record.ended_order or 0 for trial in self._trials.values()]
        self._last_order = max(orders, default=0)

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

    def repair(self) -> None:
        """Leave one run of each trial that was made twice, and set statuses that do not fit what was committed."""
        client, writer = self.parent.store.client, self.parent.writer
        for twins in self._twins.values():
            writer.call(partial(remove_twins, client, twins))
        for trial in self.trials:
            if not trial.is_open and trial.run.info.status != _STATUS[trial.record.status]:
                self._set_status(trial, writer)

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
        return self._keep(_to_trial(self.child("trial", name, all_tags)))

    def child(self, key: str, name: str, tags: Mapping[str, str]) -> Run:
        """Return the child run whose tag `key` is the given one, made where there is none."""
        identity = {"mlflow.runName": name, "mlflow.parentRunId": self.parent.run_id, OWNER_TAG: PROCESS}
        return make_once(self.parent.store, self.parent.writer, {**identity, **self._code_tags, **tags}, key)

    def count_start(self, trial: LedgerTrial) -> LedgerTrial:
        """Count a start before it happens, so that one that kills everything is counted too."""
        return self._tag(trial, {"num_starts": str(trial.num_starts + 1)})

    def uncount_start(self, trial: LedgerTrial, reason: str) -> LedgerTrial:
        """Take a start back that the machine ended, and not the trial."""
        return self._tag(trial, {"num_starts": str(max(0, trial.num_starts - 1)), "status_reason": reason})

    def count_death(self, trial: LedgerTrial, reason: str) -> LedgerTrial:
        """Count a worker that died over this trial."""
        return self._tag(trial, {"num_deaths": str(trial.num_deaths + 1), "status_reason": reason})

    def count_epoch(self, trial: LedgerTrial, epochs_done: int) -> LedgerTrial:
        """Note progress: it clears the counts of starts and deaths. An epoch that is trained again is no progress."""
        if epochs_done <= trial.epochs_done:
            return trial
        return self._tag(trial, {"epochs_done": str(epochs_done), "num_starts": "0", "num_deaths": "0"}, wait=False)

    def end(
        self,
        trial: LedgerTrial,
        outcome: Literal["finished", "failed"],
        score: float | None,
        reason: str = "",
        tags: Mapping[str, str] | None = None,
        metrics: tuple[Metric, ...] = (),
    ) -> LedgerTrial:
        """Commit the end of a trial in one write; a failed one is closed as well, a finished one by `close`."""
        self.parent.require_owned()
        score_tags: dict[str, str] = {} if score is None else {"score": repr(score)}
        facts = {"outcome": outcome, "ended_order": str(self._last_order + 1), "status_reason": reason}
        ended = self._tag(trial, {**(tags or {}), **score_tags, **facts}, metrics)
        if outcome == "failed":
            self._set_status(ended, self.parent.writer)
        return ended

    def close(self, trial: LedgerTrial, *, has_model: bool, writer: PatientWriter) -> None:
        """Close a finished trial, all of whose figures and files are in the store; repeatable, from any thread."""
        client, tags = self.parent.store.client, {"model": "logged" if has_model else "none"}
        writer.call(partial(client.log_batch, trial.run_id, tags=as_entities(tags)))
        self._set_status(trial, writer)

    def note_closed(self, trial: LedgerTrial, *, has_model: bool) -> LedgerTrial:
        """Take over here what `close` has written."""
        return self._keep(_with_tags(trial, {"model": "logged" if has_model else "none"}))

    def copy_figures(self, trial: LedgerTrial, source: LedgerTrial, writer: PatientWriter) -> None:
        """Give a trial that need not be trained the parameters and metrics of the one that was the same."""
        client = self.parent.store.client
        done = writer.call(lambda: client.get_run(source.run_id))
        params = [Param(key, value) for key, value in done.data.params.items()]
        writer.call(partial(client.log_batch, trial.run_id, params=params))
        for key in done.data.metrics:
            points: list[Metric] = writer.call(partial(client.get_metric_history, source.run_id, key))
            for first in range(0, len(points), _MAX_POINTS):
                chunk = points[first : first + _MAX_POINTS]
                writer.call(partial(client.log_batch, trial.run_id, metrics=chunk))

    def set_tags(self, trial: LedgerTrial, tags: Mapping[str, str]) -> LedgerTrial:
        """Write tags that are not an event."""
        return self._tag(trial, tags)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """On any exception end the open child runs of this process as KILLED; the search can be continued.

        Each write is tried once: the program is ending, and a store that is away must not hold it up.
        """
        try:
            yield
        except BaseException as err:
            reason = _STOPPED_BY.get(type(err), str(err))
            client = self.parent.store.client
            with suppress(Exception):
                for run in self._children_now(f"attributes.status = 'RUNNING' and tags.{OWNER_TAG} = '{PROCESS}'"):
                    client.set_tag(run.info.run_id, "status_reason", f"stopped by {reason}"[:MAX_TAG_CHARS])
                    client.set_terminated(run.info.run_id, "KILLED")
            raise

    def children(self, query: str) -> list[Run]:
        """Return the child runs, trials and others, that a query of MLflow finds."""
        return self.parent.writer.call(lambda: self._children_now(query))

    def _children_now(self, query: str) -> list[Run]:
        store = self.parent.store
        return search_runs(
            store.client, [store.experiment_id], f"tags.`mlflow.parentRunId` = '{self.parent.run_id}' and {query}"
        )

    def _set_status(self, trial: LedgerTrial, writer: PatientWriter) -> None:
        client = self.parent.store.client
        writer.call(lambda: client.set_terminated(trial.run_id, _STATUS[trial.record.status]))

    def _tag(
        self, trial: LedgerTrial, tags: Mapping[str, str], metrics: tuple[Metric, ...] = (), *, wait: bool = True
    ) -> LedgerTrial:
        client, writer = self.parent.store.client, self.parent.writer
        write = partial(client.log_batch, trial.run_id, metrics=metrics, tags=as_entities(tags))
        if wait:
            writer.call(write)
        else:
            writer.submit(write)
        return self._keep(_with_tags(trial, tags))

    def _keep(self, trial: LedgerTrial) -> LedgerTrial:
        record = trial.record
        self._last_order = max(self._last_order, record.created_order, record.ended_order or 0)
        self._trials[record.sequence] = trial
        return trial


def _with_tags(trial: LedgerTrial, tags: Mapping[str, str]) -> LedgerTrial:
    run = trial.run
    params = [Param(key, value) for key, value in run.data.params.items()]
    metrics = [Metric(key, value, 0, 0) for key, value in run.data.metrics.items()]
    data = RunData(metrics, params, as_entities({**trial.tags, **tags}))
    return _to_trial(Run(run.info, data, run.inputs, run.outputs))


def _to_trial(run: Run) -> LedgerTrial:
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
    return LedgerTrial(
        record,
        run,
        num_starts=int(tags.get("num_starts", "0")),
        num_deaths=int(tags.get("num_deaths", "0")),
        epochs_done=int(tags.get("epochs_done", "0")),
    )
