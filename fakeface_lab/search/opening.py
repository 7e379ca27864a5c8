"""Which search a name means: a new one, or one to be continued if its settings are the same."""

import json
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Run

from fakeface_lab.errors import SearchError
from fakeface_lab.search.ledger import Ledger
from fakeface_lab.search.presence import refuse_second_driver
from fakeface_lab.tracking.patience import PatientWriter
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store

__all__ = ["find_search", "open_search"]


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
        SearchError: a search of that name has another identity (names the differences), or another process drives it.
        TrackingError: another process of this project folder has the parent run open.
    """
    found = writer.call(lambda: find_search(store, name))
    text = json.dumps(identity, sort_keys=True, default=str)
    if found is not None:
        refuse_second_driver(found)
    if found is not None and not restart:
        differences = _differences(_flat(json.loads(found.data.tags["identity"])), _flat(json.loads(text)))
        if differences:
            raise SearchError(
                f"search {name!r} exists with other settings ({'; '.join(differences)}); use those, choose another "
                f"name (--name, project_name=), or start it over (--restart, overwrite=True; nothing is deleted)"
            )
        return Ledger(TrackedRun.reopen(store, writer, found))
    all_tags = {**tags, "role": "search", "search": name, "identity": text}
    parent = TrackedRun.create(store, writer, name, all_tags, existing_run_id=existing_run_id)
    if found is not None:
        old_id = found.info.run_id
        writer.call(lambda: store.client.set_tag(old_id, "superseded_by", parent.run_id))
    return Ledger(parent)


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _differences(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    return [
        f"{key}: {recorded.get(key, 'absent')} there, {given.get(key, 'absent')} now"
        for key in sorted(set(recorded) | set(given))
        if recorded.get(key) != given.get(key)
    ]
