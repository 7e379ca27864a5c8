"""The memory of a search: a parent run in MLflow and one child run a trial. There is no other.

A child run is made with its hyperparameters, sequence and place in the order of events before it is trained. Its
end is committed by one write of tags (end order, outcome, score); the run's status follows and is repaired where a
process died between the two.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from mlflow.entities import Run, RunTag

from fakeface_lab.errors import SearchError
from fakeface_lab.search.suggestion import Suggestion, TrialRecord
from fakeface_lab.tracking.patience import PatientWriter
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store

__all__ = ["Ledger", "LedgerTrial", "find_search", "open_search"]

_PAGE = 500


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


class Ledger:
    """Reads and writes the trials of one search; one process at a time holds it."""

    def __init__(self, parent: TrackedRun) -> None:
        self.parent = parent
        self._trials = {trial.record.sequence: trial for trial in self._read()}

    @property
    def trials(self) -> list[LedgerTrial]:
        """All trials in the order of their creation."""
        return [self._trials[sequence] for sequence in sorted(self._trials)]

    @property
    def records(self) -> list[TrialRecord]:
        """The same, as suggestions need them."""
        return [trial.record for trial in self.trials]

    def create(self, suggestion: Suggestion, name: str, tags: Mapping[str, str]) -> LedgerTrial:
        """Write a new trial and return it."""
        sequence = len(self._trials)
        all_tags = {
            "mlflow.runName": name,
            "mlflow.parentRunId": self.parent.run_id,
            "role": "trial",
            "trial": str(sequence),
            "created_order": str(self._next_order()),
            "values": json.dumps(dict(suggestion.values)),
            "bracket_values": json.dumps(dict(suggestion.bracket_values)),
            **tags,
        }
        store = self.parent.store
        run = self.parent.writer.call(lambda: store.client.create_run(store.experiment_id, tags=all_tags))
        return self._keep(_to_trial(run))

    def count_start(self, trial: LedgerTrial) -> LedgerTrial:
        """Count a start before it happens, so that one that kills everything is counted too."""
        return self._tag(trial, {"num_starts": str(trial.num_starts + 1)})

    def count_death(self, trial: LedgerTrial, reason: str) -> LedgerTrial:
        """Count a worker that died over this trial."""
        return self._tag(trial, {"num_deaths": str(trial.num_deaths + 1), "status_reason": reason})

    def count_epoch(self, trial: LedgerTrial, epochs_done: int) -> LedgerTrial:
        """Note progress: it clears the counts of starts and deaths."""
        return self._tag(trial, {"epochs_done": str(epochs_done), "num_starts": "1", "num_deaths": "0"}, wait=False)

    def end(
        self,
        trial: LedgerTrial,
        outcome: Literal["finished", "failed"],
        score: float | None,
        reason: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> LedgerTrial:
        """Commit the end of a trial."""
        score_tags = {} if score is None else {"score": repr(score)}
        ended = self._tag(
            trial,
            {
                **(tags or {}),
                **score_tags,
                "outcome": outcome,
                "ended_order": str(self._next_order()),
                "status_reason": reason,
            },
        )
        self._set_status(ended)
        return ended

    def _set_status(self, trial: LedgerTrial) -> None:
        status = "FINISHED" if trial.record.status == "finished" else "FAILED"
        client = self.parent.store.client
        self.parent.writer.call(lambda: client.set_terminated(trial.run_id, status))

    def _tag(self, trial: LedgerTrial, tags: Mapping[str, str], wait: bool = True) -> LedgerTrial:
        client, writer = self.parent.store.client, self.parent.writer
        entities = [RunTag(key, value[:5000]) for key, value in tags.items()]

        def write() -> None:
            client.log_batch(trial.run_id, tags=entities)

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

    def _read(self) -> list[LedgerTrial]:
        store, writer = self.parent.store, self.parent.writer
        query = f"tags.`mlflow.parentRunId` = '{self.parent.run_id}' and tags.role = 'trial'"
        runs: list[Run] = []
        token: str | None = None
        while True:
            search = partial(
                store.client.search_runs, [store.experiment_id], query, max_results=_PAGE, page_token=token
            )
            page = writer.call(search)
            runs += page
            token = page.token
            if not token:
                break
        trials = [_to_trial(run) for run in runs]
        for trial in trials:
            if trial.record.status != "running" and trial.run.info.status == "RUNNING":
                self._set_status(trial)
        return trials


def _to_trial(run: Run) -> LedgerTrial:
    tags = run.data.tags
    outcome = tags.get("outcome", "running")
    record = TrialRecord(
        sequence=int(tags["trial"]),
        values=json.loads(tags["values"]),
        bracket_values=json.loads(tags["bracket_values"]),
        created_order=int(tags["created_order"]),
        ended_order=int(tags["ended_order"]) if "ended_order" in tags else None,
        status=outcome,
        score=float(tags["score"]) if "score" in tags else None,
    )
    return LedgerTrial(
        record,
        run,
        num_starts=int(tags.get("num_starts", "0")),
        num_deaths=int(tags.get("num_deaths", "0")),
        epochs_done=int(tags.get("epochs_done", "0")),
    )


def find_search(store: Store, name: str) -> Run | None:
    """Return the parent run of the search called `name`, the one that no restart has superseded; None if none."""
    quoted = name.replace("'", "''")
    found = store.client.search_runs(
        [store.experiment_id],
        f"tags.search = '{quoted}' and tags.role = 'search'",
        order_by=["attributes.start_time DESC"],
    )
    return next((run for run in found if "superseded_by" not in run.data.tags), None)


def open_search(
    store: Store,
    writer: PatientWriter,
    name: str,
    identity: Mapping[str, Any],
    tags: Mapping[str, str],
    *,
    restart: bool,
    existing_run_id: str | None = None,
) -> Ledger:
    """Return the ledger of the search called `name`: continued where there is one, else new.

    Args:
        store: where.
        writer: through which all is written.
        name: of the search.
        identity: what must be equal for its trials to belong together.
        tags: further tags of a new parent run.
        restart: make a new parent; the old one is tagged as superseded, and nothing is deleted.
        existing_run_id: a run to take as the new parent.

    Raises:
        SearchError: a search of that name has another identity; names the differences.
        TrackingError: another process drives this search.
    """
    found = writer.call(lambda: find_search(store, name))
    text = json.dumps(identity, sort_keys=True, default=str)
    if found is not None and not restart:
        recorded = json.loads(found.data.tags["identity"])
        differences = _differences(recorded, json.loads(text))
        if differences:
            raise SearchError(
                f"search {name!r} exists with other settings ({'; '.join(differences)}); use those, choose another "
                f"--name, or start it over with --restart (nothing is deleted)"
            )
        return Ledger(TrackedRun.reopen(store, writer, found))
    all_tags = {**tags, "role": "search", "search": name, "identity": text}
    parent = TrackedRun.create(store, writer, name, all_tags, existing_run_id=existing_run_id)
    if found is not None:
        old_id = found.info.run_id
        writer.call(lambda: store.client.set_tag(old_id, "superseded_by", parent.run_id))
    return Ledger(parent)


def _differences(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    keys = sorted(set(recorded) | set(given))
    return [
        f"{key}: {recorded.get(key, 'absent')} there, {given.get(key, 'absent')} now"
        for key in keys
        if recorded.get(key) != given.get(key)
    ]
