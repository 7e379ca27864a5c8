"""Runs that exist once, although a server may create one and its answer be lost: each attempt looks for it first."""

from collections.abc import Mapping, Sequence

from mlflow.entities import Run

from fakeface_lab.tracking.store import Store, quote, search_runs
from fakeface_lab.tracking.writer import PatientWriter

__all__ = ["KEY_TAG", "duplicates_of", "find_or_create", "most_complete", "remove_duplicates"]

# Chosen by the creator of a run, so that the run is found again if the store's answer is lost.
KEY_TAG = "run_key"


def find_or_create(store: Store, writer: PatientWriter, tags: Mapping[str, str], key: str) -> Run:
    """Return the run, among the children of its parent, whose tag `key` equals that in `tags`; created if missing.

    The server or the network may fail after a run is created and before the answer arrives. So each attempt searches
    first, and of several such runs all but one are deleted.
    """
    query = f"tags.`{key}` = {quote(tags[key])}"
    if "mlflow.parentRunId" in tags:
        query += f" and tags.`mlflow.parentRunId` = '{tags['mlflow.parentRunId']}'"

    def find_or_make() -> Run:
        client, places = store.client, [store.experiment_id]
        if not search_runs(client, places, query):
            client.create_run(store.experiment_id, tags=dict(tags))
        return remove_duplicates(store, search_runs(client, places, query))

    return writer.call(find_or_make)


def remove_duplicates(store: Store, runs: Sequence[Run]) -> Run:
    """Delete all but one of several runs that a lost answer has duplicated; return the remaining one."""
    kept = most_complete(runs)
    for run in runs:
        if run is not kept:
            store.client.delete_run(run.info.run_id)
    return kept


def most_complete(runs: Sequence[Run]) -> Run:
    """Return the run that was written to among the duplicates of one run; the others are empty."""
    # An arbitrary choice kept an empty one in 7 of 12 cases, and a finished trial was lost.
    # The id last, so that two processes choose the same one.
    return max(runs, key=lambda run: (_num_entries(run), -run.info.start_time, run.info.run_id))


def _num_entries(run: Run) -> int:
    return len(run.data.tags) + len(run.data.params) + len(run.data.metrics)


def duplicates_of(run: Run, runs: Sequence[Run]) -> list[Run]:
    """Return the duplicates of a run among `runs`, itself included: a lost answer of the store created it twice."""
    key = run.data.tags.get(KEY_TAG)
    return [run] if key is None else [other for other in runs if other.data.tags.get(KEY_TAG) == key]
