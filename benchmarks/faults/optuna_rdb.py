"""Side: Optuna with its study in a database, through `RDBStorage`, and each trial logged to MLflow.

With all that Optuna's documentation offers against interruptions: heartbeat, retry of stale trials, a checkpoint that
the retried trial finds by the number of the first. The checkpoint also names the MLflow run, which is continued.
"""

import json
from pathlib import Path

import mlflow
import optuna
from curve import EXPERIMENT, NUM_EPOCHS, Trial, run_side, train_epoch
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna_study import load_sampler, optimize, read_trials

__all__: list[str] = []


def _study() -> optuna.Study:
    # Documented with 60 and 120 s, for trials of minutes or hours; ours take four seconds.
    storage = RDBStorage(
        "sqlite:///study.db",
        heartbeat_interval=1,
        grace_period=3,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=3),
    )
    return optuna.create_study(study_name=EXPERIMENT, storage=storage, sampler=load_sampler(), load_if_exists=True)


def _objective(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0.0, 1.0)
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial.study.get_trials(deepcopy=False)[trial.number])
    checkpoint = Path(f"checkpoint-{trial.number if first is None else first}.json")
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"run_id": None, "losses": []}
    with mlflow.start_run(run_id=state["run_id"], run_name=f"trial {trial.number}") as run:
        if state["run_id"] is None:
            mlflow.log_param("x", x)
        for epoch in range(len(state["losses"]) + 1, NUM_EPOCHS + 1):
            loss = train_epoch(x, epoch)
            mlflow.log_metric("val_loss", loss, step=epoch)
            trial.report(loss, epoch)
            state = {"run_id": run.info.run_id, "losses": [*state["losses"], loss]}
            new = checkpoint.with_suffix(".new")
            new.write_text(json.dumps(state))
            new.replace(checkpoint)
    return float(state["losses"][-1])


def _search() -> None:
    mlflow.set_experiment(EXPERIMENT)
    optimize(_study(), _objective)


def _trials() -> list[Trial]:
    return read_trials(_study())


if __name__ == "__main__":
    run_side(_search, _trials)
