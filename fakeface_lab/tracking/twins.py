"""Runs that exist twice because the store's answer to their creation was lost: found, and one of them left.

Loads no TensorFlow.
"""

from collections.abc import Mapping, Sequence

from mlflow.entities import Run

from fakeface_lab.tracking.store import Store, quote, search_runs
from fakeface_lab.tracking.writer import PatientWriter

__all__ = ["KEY_TAG", "find_latest", "furthest", "make_once", "remove_twins", "twins_of"]

# Given by whoever makes a run, so that it is found again where the store's answer got lost.
KEY_TAG = "run_key"


def make_once(store: Store, writer: PatientWriter, tags: Mapping[str, str], key: str) -> Run:
    """Return the run whose tag `key` is the one in `tags`, among the children of its parent; made where there is none.

    A server may make a run and die, or the network fail, before the answer arrives: so each attempt looks first, and
    of several runs that come to light one is left.
    """
    query = f"tags.`{key}` = {quote(tags[key])}"
    if "mlflow.parentRunId" in tags:
        query += f" and tags.`mlflow.parentRunId` = '{tags['mlflow.parentRunId']}'"

    def find_or_make() -> Run:
        client, places = store.client, [store.experiment_id]
        if not search_runs(client, places, query):
            client.create_run(store.experiment_id, tags=dict(tags))
        return remove_twins(store, search_runs(client, places, query))

    return writer.call(find_or_make)


def remove_twins(store: Store, runs: Sequence[Run]) -> Run:
    """Delete all but the one of several runs that are meant to be one, and return that one."""
    kept = furthest(runs)
    for run in runs:
        if run is not kept:
            store.client.delete_run(run.info.run_id)
    return kept


def furthest(runs: Sequence[Run]) -> Run:
    """Return the one of several runs that are meant to be one: only one of them was ever written to."""
    return max(
        runs,
        key=lambda run: (len(run.data.tags) + len(run.data.params) + len(run.data.metrics), -run.info.start_time),
    )


def twins_of(run: Run, runs: Sequence[Run]) -> list[Run]:
    """Return those of the runs, itself included, that a lost answer of the store made of one."""
    key = run.data.tags.get(KEY_TAG)
    return [run] if key is None else [other for other in runs if other.data.tags.get(KEY_TAG) == key]


def find_latest(store: Store, fingerprint: str) -> Run | None:
    """Return the newest run with this fingerprint, finished or to be continued; None if there is none."""
    query = f"tags.fingerprint = '{fingerprint}'"
    found = [
        run
        for run in search_runs(store.client, [store.experiment_id], query, newest_first=True)
        # A training that diverged would diverge again.
        if "diverged" not in run.data.tags.get("status_reason", "")
    ]
    return furthest(twins_of(found[0], found)) if found else None
