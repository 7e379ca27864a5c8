"""A finished or running search, read from the store: nothing is written, and whoever drives it is not disturbed."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd
from keras_tuner.engine import trial as kt_trial

from fakeface_lab.backend import keras, keras_tuner
from fakeface_lab.config import find_project
from fakeface_lab.errors import ModelError, NotFoundError, SearchError
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.report.leaderboard import read_leaderboard
from fakeface_lab.terminal import console
from fakeface_lab.tracking.lookup import find_run, open_for_models
from fakeface_lab.tracking.models import load_logged_model
from fakeface_lab.tracking.runs import StoredRun
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.objective import Objective

__all__ = ["Search", "ShownTrials", "shown_trials"]

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


_PATIENCE_SECS = 60.0


class Search:
    """What the store knew of one search when it was opened; `refresh` reads it again.

    Args:
        name: of the search (`Tuner(project_name=)`), or the id of its parent run.
        tracking_uri: the MLflow store; default: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the project folder.

    Raises:
        NotFoundError: the store has no such search, or several of that name; names their ids.
        TrackingError: there is no store, or it does not answer.
    """

    def __init__(self, name: str, *, tracking_uri: str | None = None) -> None:
        store = open_for_models(tracking_uri, find_project())
        run = find_run(store, name)
        if run.data.tags.get("role") != "search":
            raise NotFoundError(f"{name}: is a single run, not a search; see `python -m fakeface_lab.compare`")
        self._store = replace(store, experiment_id=run.info.experiment_id)
        self._writer = PatientWriter(_PATIENCE_SECS, console.print)
        self._parent = StoredRun(self._store, self._writer, run)
        self._ledger = Ledger(self._parent)

    def refresh(self) -> None:
        """Read the store again."""
        self._parent = StoredRun(self._store, self._writer, self._parent.read())
        self._ledger = Ledger(self._parent)

    @property
    def name(self) -> str:
        """Name of the search."""
        return str(self._parent.run.data.tags["search"])

    @property
    def run_id(self) -> str:
        """MLflow's id of the parent run."""
        return self._parent.run_id

    @property
    def status(self) -> Literal["running", "finished", "stopped"]:
        """`running` also if its process was killed and nothing has noticed yet."""
        status = self._parent.run.info.status
        return "running" if status == "RUNNING" else "finished" if status == "FINISHED" else "stopped"

    @property
    def objective(self) -> Objective:
        """What the score is, and whether more of it is better."""
        return self._ledger.objective

    @property
    def trials(self) -> list[LedgerTrial]:
        """All trials in the order of their creation."""
        return self._ledger.trials

    def leaderboard(self) -> pd.DataFrame:
        """Return one row per trial, the best first; columns as in `report.leaderboard.leaderboard`."""
        return read_leaderboard(self._store, self._parent.run)

    def best_values(self) -> dict[str, Any]:
        """Return the hyperparameters of the best trial by name.

        Raises:
            SearchError: no trial has a score yet.
        """
        return dict(self._best().record.values)

    def load_best_model(self) -> keras.Model:
        """Return the model of the best trial with the weights that its score describes, without its optimizer.

        Raises:
            ModelError: the trial's run has no model, or it cannot be loaded without the code of its layers.
            SearchError: no trial has a score yet.
        """
        best = self._best()
        model = load_logged_model(self._store, best.run_id)
        if model is None:
            raise ModelError(f"{best.name} of search {self.name}: its run has logged no model")
        return model

    def _best(self) -> LedgerTrial:
        # Of equal scores the earliest is first, so a repeated trial, which has no model of its own, never is.
        best = self._ledger.best_first()
        if not best:
            raise SearchError(f"search {self.name!r}: no trial has a score yet")
        return best[0]
