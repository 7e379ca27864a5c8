"""The runs of a trial's executions: children of the trial's run, found by their number."""

from fakeface_lab.tracking.lookup import Run
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.training.executions import execution_folder

__all__ = ["BEST_EXECUTION", "EXECUTION", "SEARCH_RUN", "execution_run", "runs_with_models"]

EXECUTION = "execution"  # tag of an execution's run: its number
BEST_EXECUTION = "best_execution"  # tag of a trial: the run of the execution whose model is the trial's
SEARCH_RUN = "search_run"  # tag of an execution's run: the parent run of the search, whose grandchild it is


def execution_run(trial: TrackedRun, number: int, name: str) -> TrackedRun:
    """Return the run of an execution, created if it is missing; its lock is that of the trial's run."""
    # The trial's number without its values: legends of MLflow's charts cut long names.
    short = trial.name.partition(" ")[0]
    tags = {
        "role": "execution",
        EXECUTION: str(number),
        SEARCH_RUN: trial.run.data.tags["mlflow.parentRunId"],
        "trial": trial.run.data.tags["trial"],
    }
    return trial.part(EXECUTION, f"{short} {name}", tags, execution_folder(trial.folder, number))


def runs_with_models(store: Store, trial: Run) -> list[str]:
    """Return the ids of the runs that may have a model of a trial: its own and those of its executions."""
    executions = store.runs(f"tags.`mlflow.parentRunId` = '{trial.info.run_id}' and tags.role = 'execution'")
    return [run.info.run_id for run in [trial, *executions]]
