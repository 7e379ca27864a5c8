"""The trials of a search as KerasTuner shows them: `Trial` objects made from what the store has."""

from dataclasses import dataclass, field

from keras_tuner.engine import trial as kt_trial

from fakeface_lab.backend import keras_tuner
from fakeface_lab.search.ledger.ledger import Ledger

__all__ = ["ShownTrials", "shown_trials"]

_STATUSES = {"finished": "COMPLETED", "failed": "FAILED", "running": "RUNNING"}


@dataclass(frozen=True)
class ShownTrials:
    """What an oracle is given to show.

    Attributes:
        trials: KerasTuner's, by trial id.
        run_ids: by trial id, the run in MLflow that has the trial's model.
    """

    trials: dict[str, kt_trial.Trial] = field(default_factory=dict)
    run_ids: dict[str, str] = field(default_factory=dict)


def shown_trials(ledger: Ledger, space: keras_tuner.HyperParameters) -> ShownTrials:
    """Return all trials of a search, the oldest first; `space` describes their hyperparameters."""
    shown = ShownTrials()
    for trial in ledger.trials:
        record = trial.record
        hp = space.copy()
        hp.values = {**record.values, **record.bracket_values}
        made = kt_trial.Trial(hp, str(record.sequence), _STATUSES[record.status])
        made.score = record.score
        made.best_step = int(trial.tags.get("kept_epoch", "0"))
        made.message = trial.tags.get("status_reason") or None
        shown.trials[made.trial_id] = made
        # A repeated configuration has the result of an earlier trial, and its model.
        source = trial.tags.get("duplicate_of")
        shown.run_ids[made.trial_id] = shown.run_ids[source] if source is not None else trial.run_id
    return shown
