"""Ended trials in a ledger, recorded as the driver does."""

from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.suggest.suggestion import Suggestion


def add(
    ledger: Ledger,
    score: float | None,
    *,
    secs: float | None = None,
    reason: str = "",
    bracket: dict[str, object] | None = None,
    epochs: int = 5,
    **values: object,
) -> LedgerTrial:
    """Record an ended trial as the driver does."""
    suggestion = Suggestion(values=values, bracket_values=bracket or {})  # type: ignore[arg-type]
    trial = ledger.create(suggestion, f"t{len(ledger.trials):03d}", {})
    metrics = {"num_params": 1000.0} | ({} if secs is None else {"train_secs": secs})
    client = ledger.parent.store.client
    for name, value in metrics.items():
        client.log_metric(trial.run_id, name, value)
    trial = ledger.count_epoch(trial, epochs)
    outcome = "failed" if score is None else "finished"
    return ledger.end(trial, outcome, score, reason, {"kept_epoch": "4"})  # type: ignore[arg-type]
