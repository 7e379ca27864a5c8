"""The lines of a search: what ends, what it is compared with, and how long it will take."""

import pytest

from fakeface_lab.search.ledger.ledger import LedgerTrial
from fakeface_lab.search.run import progress
from fakeface_lab.search.run.engine import Event
from fakeface_lab.search.run.progress import SearchProgress
from fakeface_lab.search.suggest.suggestion import Suggestion
from fakeface_lab.tracking.store import Store
from tests.search.curve_work import open_ledger


class Clock:
    """Time as the test sets it."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_the_time_left_counts_running_trials_and_not_the_start_of_workers(
    local_store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "time", clock := Clock())
    ledger = open_ledger(local_store)

    def begun(number: int) -> LedgerTrial:
        trial = ledger.create(Suggestion({"x": 0.5, "kind": "a"}, {}), f"t{number:03d}", {"epochs_planned": "4"})
        shown.started(trial, 4)
        return trial

    def step(trial: LedgerTrial, epoch: int) -> None:
        shown.progressed(trial, Event("", "step", step=(epoch, 10, 10)))

    try:
        with SearchProgress(ledger, lambda: 6) as shown:
            first, second = begun(0), begun(1)
            clock.now = 100.0  # the workers start
            step(first, 1)
            clock.now = 130.0
            step(first, 4)
            step(second, 2)
            # In 30 s one trial less its first epoch, and half of another: 0.75 + 0.5 of 6.
            shown.ended(ledger.end(first, "finished", 0.25))
            clock.now = 140.0
            shown.ended(ledger.end(second, "failed", None, "no memory"))
            clock.now = 150.0
            shown.ended(ledger.end(begun(2), "finished", 0.125))
    finally:
        ledger.parent.lock.release()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "trial 1/6 (t000): val_loss 0.2500  best 0.2500 (t000), about 1 min 48 s left",
        "trial 2/6 (t001): failed: no memory",
        "trial 3/6 (t002): val_loss 0.1250  best 0.1250 (t002), better than defaults 0.2500 (t000), about 55 s left",
    ]
