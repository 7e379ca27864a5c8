"""Side: Optuna with its study in MLflow, through MLflow's `MlflowStorage`.

A study of the same name is resumed as MLflow's own `MlflowSparkStudy` does it. The storage has no heartbeat, which
Optuna's retry of interrupted trials needs.
"""

import os

import mlflow
import optuna
from curve import EXPERIMENT, NUM_EPOCHS, Trial, run_side, train_epoch
from mlflow.optuna.storage import MlflowStorage
from optuna_study import load_sampler, optimize, read_trials

__all__: list[str] = []


def _study() -> optuna.Study:
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    storage = MlflowStorage(experiment_id=mlflow.get_experiment_by_name(EXPERIMENT).experiment_id)
    if storage.get_study_id_by_name_if_exists(EXPERIMENT):
        return optuna.load_study(study_name=EXPERIMENT, storage=storage, sampler=load_sampler())
    return optuna.create_study(study_name=EXPERIMENT, storage=storage, sampler=load_sampler())


def _objective(trial: optuna.Trial) -> float:
    x, loss = trial.suggest_float("x", 0.0, 1.0), 0.0
    for epoch in range(1, NUM_EPOCHS + 1):
        loss = train_epoch(x, epoch)
        trial.report(loss, epoch)
    return loss


def _search() -> None:
    optimize(_study(), _objective)


def _trials() -> list[Trial]:
    return read_trials(_study())


if __name__ == "__main__":
    run_side(_search, _trials)
