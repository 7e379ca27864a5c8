"""Searches of a cheap curve in this process, and what of them must not depend on interruptions."""

from collections.abc import Mapping
from typing import Any

import keras_tuner

from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.run.engine import InlineEngine
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.tracking.store import Store
from tests.search.curve_work import Algorithm, CurveWork, Notes, open_ledger, template


def run(
    store: Store,
    algorithm: Algorithm = "random",
    *,
    notes: Notes | None = None,
    faults: Mapping[str, str] | None = None,
    oracle: keras_tuner.Oracle | None = None,
    hours: float | None = None,
    keep_models: str = "all",
    work: CurveWork | None = None,
    **identity: Any,
) -> Ledger:
    """Run or resume a search to its end in this process."""
    ledger = open_ledger(store, **identity)
    work = work or CurveWork(store.project / "trained.txt", dict(faults or {}))
    with ledger.driving():
        Trials(
            ledger,
            oracle or template(algorithm),
            work,
            InlineEngine(work),
            notes or Notes(),
            epochs=4,
            seed=3,
            hours=hours,
            keep_models=keep_models,
        ).run()
    return ledger


Facts = list[tuple[Any, ...]]


def facts(ledger: Ledger) -> Facts:
    """Return everything of a search that must not depend on interruptions."""
    client = ledger.parent.store.client
    rows = []
    for trial in ledger.trials:
        metrics = client.get_run(trial.run_id).data.metrics
        points = {
            key: [(point.step, point.value) for point in client.get_metric_history(trial.run_id, key)]
            for key in metrics
            if key != "epoch_secs"
        }
        assert all(len(steps) == len(dict(steps)) for steps in points.values()), points
        rows.append((trial.record, points, client.get_run(trial.run_id).info.status))
    return rows


def open_ledger_released(store: Store) -> Ledger:
    ledger = open_ledger(store)
    ledger.parent.lock.release()
    return ledger
