"""Side: Ray Tune with its MLflow logger; each epoch leaves a checkpoint, and `Tuner.restore` resumes."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# Read on import: Ray listens on loopback only, and tells nobody that it is used.
os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import ray
from curve import EXPERIMENT, JOURNAL, NUM_EPOCHS, NUM_TRIALS, SEED, Trial, run_side, train_epoch
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.search.basic_variant import BasicVariantGenerator

__all__: list[str] = []

_STORAGE = Path("ray").resolve()
_EXPERIMENT_PATH = str(_STORAGE / EXPERIMENT)


def _train(config: dict[str, Any]) -> None:
    checkpoint, first = tune.get_checkpoint(), 1
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            first = int(Path(folder, "epoch.txt").read_text()) + 1
    for epoch in range(first, NUM_EPOCHS + 1):
        loss = train_epoch(config["x"], epoch)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "epoch.txt").write_text(str(epoch))
            tune.report({"val_loss": loss}, checkpoint=tune.Checkpoint.from_directory(folder))


def _new_tuner() -> tune.Tuner:
    logger = MLflowLoggerCallback(tracking_uri=os.environ["MLFLOW_TRACKING_URI"], experiment_name=EXPERIMENT)
    return tune.Tuner(
        _train,
        param_space={"x": tune.uniform(0.0, 1.0)},
        tune_config=tune.TuneConfig(
            metric="val_loss",
            mode="min",
            num_samples=NUM_TRIALS,
            search_alg=BasicVariantGenerator(max_concurrent=1, random_state=SEED),
        ),
        run_config=tune.RunConfig(name=EXPERIMENT, storage_path=str(_STORAGE), callbacks=[logger], verbose=0),
    )


def _search() -> None:
    environment = {"PYTHONPATH": os.environ["PYTHONPATH"], JOURNAL: os.environ[JOURNAL]}
    ray.init("local", num_cpus=1, include_dashboard=False, runtime_env={"env_vars": environment})
    if tune.Tuner.can_restore(_EXPERIMENT_PATH):
        tuner = tune.Tuner.restore(_EXPERIMENT_PATH, trainable=_train, resume_errored=True)
    else:
        tuner = _new_tuner()
    if tuner.fit().num_errors:
        sys.exit(1)


def _trials() -> list[Trial]:
    trials = tune.ExperimentAnalysis(_EXPERIMENT_PATH).trials or []
    return [
        Trial(trial.config.get("x"), trial.last_result["val_loss"] if trial.status == "TERMINATED" else None)
        for trial in trials
    ]


if __name__ == "__main__":
    run_side(_search, _trials)
