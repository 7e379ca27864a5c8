"""A finished or running search, read from the store; nothing is written, so its driver is not disturbed."""

from dataclasses import replace
from typing import Any, Literal

import pandas as pd

from fakeface_lab.backend import keras
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

__all__ = ["Search"]

_PATIENCE_SECS = 60.0


class Search:
    """A snapshot of one search in the store; `refresh` reads it again.

    Args:
        name: of the search (`Tuner(project_name=)`), or the id of its parent run.
        tracking_uri: the MLflow store; default: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the project folder.

    Raises:
        NotFoundError: the store has no such search, or several of that name; lists their ids.
        TrackingError: there is no store, or it does not answer.
    """

    def __init__(self, name: str, *, tracking_uri: str | None = None) -> None:
        store = open_for_models(tracking_uri, find_project())
        run = find_run(store, name)
        if run.data.tags.get("role") != "search":
            raise NotFoundError(f"{name}: is a single run, not a search; see `python -m fakeface_lab.compare`")
        self._store = replace(store, experiment_id=run.info.experiment_id)
        self._parent = StoredRun(self._store, PatientWriter(_PATIENCE_SECS, console.print), run)
        self._ledger = Ledger(self._parent)

    def refresh(self) -> None:
        """Read the store again."""
        self._parent = replace(self._parent, run=self._parent.read())
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
        """Recorded status; still `running` if the search's process was killed and no later program has noticed."""
        status = self._parent.run.info.status
        return "running" if status == "RUNNING" else "finished" if status == "FINISHED" else "stopped"

    @property
    def objective(self) -> Objective:
        """The metric that is the score, and its direction."""
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
            ModelError: the trial's run has no model, or loading it needs code of custom layers that is not imported.
            SearchError: no trial has a score yet.
        """
        best = self._best()
        model = load_logged_model(self._store, best.run_id)
        if model is None:
            raise ModelError(f"{best.name} of search {self.name}: its run has logged no model")
        return model

    def _best(self) -> LedgerTrial:
        # Of equal scores the earliest is first, so this is never a repeated trial, which has no model of its own.
        best = self._ledger.best_first()
        if not best:
            raise SearchError(f"search {self.name!r}: no trial has a score yet")
        return best[0]
