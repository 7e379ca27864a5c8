"""Finds a search by its name, and opens it: a new one, or the existing one if its settings are the same."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from fakeface_lab.errors import SearchError
from fakeface_lab.search.ledger.heartbeat import refuse_second_driver
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.tracking.duplicates import duplicates_of, most_complete, remove_duplicates
from fakeface_lab.tracking.owner import OWNER_TAG, PROCESS, released_on_error
from fakeface_lab.tracking.runs import Run, StoredRun, TrackedRun
from fakeface_lab.tracking.store import Store, join_text, quote, split_text
from fakeface_lab.tracking.writer import PatientWriter

__all__ = ["THREADS_TAG", "choose_threads", "find_search", "open_search"]

# Threads per trial: chosen when the search began, and the same on any machine that resumes it.
THREADS_TAG = "num_threads"


def find_search(store: Store, name: str) -> Run | None:
    """Return the parent run of the search called `name` that no restart has superseded; None if there is none."""
    found = _current(_all_parents(store, name))
    return most_complete(found) if found else None


def _all_parents(store: Store, name: str) -> list[Run]:
    return store.runs(f"tags.search = {quote(name)} and tags.role = 'search'", newest_first=True)


def _current(parents: Sequence[Run]) -> list[Run]:
    """Return the newest parent run that no restart has superseded, and its duplicates."""
    current = [run for run in parents if "superseded_by" not in run.data.tags]
    return duplicates_of(current[0], current) if current else []


def choose_threads(search: Run | None, wanted: int) -> int:
    """Return the threads per trial: those that the search began with, else the wanted number (0: not chosen).

    Raises:
        SearchError: the search began with another number.
    """
    if search is None:
        return wanted
    recorded = int(search.data.tags.get(THREADS_TAG, "0"))
    if recorded and wanted not in (0, recorded):
        raise SearchError(
            f"threads = {wanted}: search {search.info.run_name!r} began with {recorded} per trial, and equal "
            f"results need equal threads; leave --threads (threads=) out, or choose another name"
        )
    return recorded or wanted


def open_search(
    store: Store,
    writer: PatientWriter,
    name: str,
    identity: Mapping[str, Any],
    tags: Mapping[str, str],
    *,
    restart: bool,
) -> Ledger:
    """Return the ledger of the search called `name`, existing or new.

    Args:
        store: where the search is recorded.
        writer: performs its writes.
        name: of the search.
        identity: what must be equal for trials to belong to one search.
        tags: further tags of a new parent run, which is the run that `MLFLOW_RUN_ID` names if it is set.
        restart: create a new parent run; the old one is tagged as superseded, and nothing is deleted.

    Raises:
        SearchError: a search of that name has another identity (lists the differences), or another process drives it.
        TrackingError: another process of this project folder has the parent run open.
    """
    parents = writer.call(lambda: _all_parents(store, name))
    duplicates = _current(parents)
    text = json.dumps(identity, sort_keys=True, default=str)
    found = None
    if duplicates:
        refuse_second_driver(store, writer, most_complete(duplicates))
        found = writer.call(lambda: remove_duplicates(store, duplicates))
    if found is not None and not restart:
        recorded, given = _flat(json.loads(join_text(found.data.tags, "identity"))), _flat(json.loads(text))
        differences = [
            f"{key}: {recorded.get(key, 'absent')} recorded, {given.get(key, 'absent')} given"
            for key in sorted(set(recorded) | set(given))
            if recorded.get(key) != given.get(key)
        ]
        if differences:
            raise SearchError(
                f"search {name!r} exists with other settings ({'; '.join(differences)}); use those, choose another "
                f"name (--name, project_name=), or start it over (--restart, overwrite=True; nothing is deleted)"
            )
        parent = TrackedRun.reopen(store, writer, found)
    else:
        all_tags = {**tags, "role": "search", "search": name} | split_text("identity", text)
        parent = TrackedRun.create(
            store, writer, name, all_tags, existing_run_id=os.environ.get("MLFLOW_RUN_ID"), key=_key(name, parents)
        )
        if parent.run.data.tags[OWNER_TAG] != PROCESS:
            parent.lock.release()
            parent.remove_files()
            raise SearchError(
                f"search {name!r}: another process has just begun it; wait for that process, or stop it first"
            )
    with released_on_error(parent.lock):
        if found is not None and restart:
            StoredRun(store, writer, found).set_tags({"superseded_by": parent.run_id})
        ledger = Ledger(parent)
        ledger.repair()
    return ledger


def _key(name: str, parents: Sequence[Run]) -> str:
    """Return a new run's key: equal in two processes that begin a search at the same time, so that one run remains."""
    ids = sorted(str(run.info.run_id) for run in parents)
    return hashlib.sha256(json.dumps([name, *ids]).encode()).hexdigest()[:32]


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
