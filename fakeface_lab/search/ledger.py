"""The memory of a search: a parent run in MLflow and one child run a trial. There is no other.

A child run is made with its hyperparameters, sequence and place in the order of events before it is trained. Its
end is committed by one write of tags (end order, outcome, score); the run's status follows and is repaired where a
process died between the two, or where another program took the run for dead.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mlflow.entities import Metric, Param, Run, RunTag

from fakeface_lab.search.suggestion import Suggestion, TrialRecord
from fakeface_lab.tracking.provenance import code_tags
from fakeface_lab.tracking.runs import TrackedRun

__all__ = ["Ledger", "LedgerTrial"]

_PAGE = 500
_MAX_TAG_CHARS = 5000
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


class Ledger:
    """Reads and writes the trials of one search; one process at a time holds it."""

    def __init__(self, parent: TrackedRun) -> None:
        self.parent = parent
        self._code_tags = code_tags()
        children = self.children("tags.role = 'trial'")
        self._trials = {trial.record.sequence: trial for trial in map(_to_trial, children)}
        for trial in self.trials:
            if trial.record.status != "running" and trial.run.info.status != _STATUS[trial.record.status]:
                self._set_status(trial)

    @property
    def trials(self) -> list[LedgerTrial]:
        """All trials in the order of their creation."""
        return [self._trials[sequence] for sequence in sorted(self._trials)]

    @property
    def records(self) -> list[TrialRecord]:
        """The same, as suggestions need them."""
        return [trial.record for trial in self.trials]

    @property
    def num_events(self) -> int:
        """How many creations and ends there are: what is suggested next changes only with them."""
        return self._next_order() - 1

    def create(self, suggestion: Suggestion, name: str, tags: Mapping[str, str]) -> LedgerTrial:
        """Write a new trial and return it."""
        all_tags = {
            "role": "trial",
            "trial": str(len(self._trials)),
            "created_order": str(self._next_order()),
            "values": json.dumps(dict(suggestion.values)),
            "bracket_values": json.dumps(dict(suggestion.bracket_values)),
            **tags,
        }
        return self._keep(_to_trial(self.child("trial", name, all_tags)))

    def child(self, key: str, name: str, tags: Mapping[str, str]) -> Run:
        """Return the child run whose tag `key` is the given one, made where there is none.

        Looking first makes the write repeatable: a server may die after it made the run and before it said so.
        """
        store = self.parent.store
        all_tags = {"mlflow.runName": name, "mlflow.parentRunId": self.parent.run_id, **self._code_tags, **tags}

        def find_or_make() -> Run:
            found = self._children_now(f"tags.{key} = '{tags[key]}'")
            return found[0] if found else store.client.create_run(store.experiment_id, tags=all_tags)

        return self.parent.writer.call(find_or_make)

    def count_start(self, trial: LedgerTrial) -> LedgerTrial:
        """Count a start before it happens, so that one that kills everything is counted too."""
        return self._tag(trial, {"num_starts": str(trial.num_starts + 1)})

    def count_death(self, trial: LedgerTrial, reason: str) -> LedgerTrial:
        """Count a worker that died over this trial."""
        return self._tag(trial, {"num_deaths": str(trial.num_deaths + 1), "status_reason": reason})

    def count_epoch(self, trial: LedgerTrial, epochs_done: int) -> LedgerTrial:
        """Note progress: it clears the counts of starts and deaths. An epoch trained again is none."""
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
    ) -> LedgerTrial:
        """Commit the end of a trial."""
        score_tags: dict[str, str] = {} if score is None else {"score": repr(score)}
        facts = {"outcome": outcome, "ended_order": str(self._next_order()), "status_reason": reason}
        ended = self._tag(trial, {**(tags or {}), **score_tags, **facts})
        self._set_status(ended)
        return ended

    def end_as_repeated(self, trial: LedgerTrial, source: LedgerTrial) -> LedgerTrial:
        """Commit the end of a trial that need not be trained: `source` was the same, and its figures are copied."""
        client, writer = self.parent.store.client, self.parent.writer
        done = writer.call(lambda: client.get_run(source.run_id))
        params = [Param(key, value) for key, value in done.data.params.items()]
        writer.call(partial(client.log_batch, trial.run_id, params=params))
        for key in done.data.metrics:
            points: list[Metric] = writer.call(partial(client.get_metric_history, source.run_id, key))
            for first in range(0, len(points), _MAX_POINTS):
                chunk = points[first : first + _MAX_POINTS]
                writer.call(partial(client.log_batch, trial.run_id, metrics=chunk))
        tags = {"duplicate_of": str(source.record.sequence), "model": "none"}
        tags |= {key: source.tags[key] for key in ("kept_epoch", "epochs_done") if key in source.tags}
        reason = f"the same as trial {source.record.sequence}, whose result it has"
        return self.end(trial, "finished", source.record.score, reason, tags)

    def set_tags(self, trial: LedgerTrial, tags: Mapping[str, str]) -> LedgerTrial:
        """Write tags that are no event."""
        return self._tag(trial, tags)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """On any exception end the open child runs as KILLED; the search can be continued.

        Each write is tried once: the program is ending, and a store that is away must not hold it up.
        """
        try:
            yield
        except BaseException as err:
            reason = _STOPPED_BY.get(type(err), str(err))
            client = self.parent.store.client
            with suppress(Exception):
                for run in self._children_now("attributes.status = 'RUNNING'"):
                    client.set_tag(run.info.run_id, "status_reason", f"stopped by {reason}"[:_MAX_TAG_CHARS])
                    client.set_terminated(run.info.run_id, "KILLED")
            raise

    def _set_status(self, trial: LedgerTrial) -> None:
        client = self.parent.store.client
        self.parent.writer.call(lambda: client.set_terminated(trial.run_id, _STATUS[trial.record.status]))

    def _tag(self, trial: LedgerTrial, tags: Mapping[str, str], wait: bool = True) -> LedgerTrial:
        client, writer = self.parent.store.client, self.parent.writer
        entities = [RunTag(key, value[:_MAX_TAG_CHARS]) for key, value in tags.items()]
        write = partial(client.log_batch, trial.run_id, tags=entities)
        if wait:
            writer.call(write)
        else:
            writer.submit(write)
        trial.run.data.tags.update(tags)
        return self._keep(_to_trial(trial.run))

    def _keep(self, trial: LedgerTrial) -> LedgerTrial:
        self._trials[trial.record.sequence] = trial
        return trial

    def _next_order(self) -> int:
        orders = [trial.record.created_order for trial in self._trials.values()]
        orders += [trial.record.ended_order or 0 for trial in self._trials.values()]
        return max(orders, default=0) + 1

    def children(self, query: str) -> list[Run]:
        """Return the child runs, trials and others, that a query of MLflow finds."""
        return self.parent.writer.call(lambda: self._children_now(query))

    def _children_now(self, query: str) -> list[Run]:
        store = self.parent.store
        query = f"tags.`mlflow.parentRunId` = '{self.parent.run_id}' and {query}"
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = store.client.search_runs([store.experiment_id], query, max_results=_PAGE, page_token=token)
            runs += page
            token = page.token
            if not token:
                return runs


def _to_trial(run: Run) -> LedgerTrial:
    tags = run.data.tags
    record = TrialRecord(
        sequence=int(tags["trial"]),
        values=json.loads(tags["values"]),
        bracket_values=json.loads(tags["bracket_values"]),
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
