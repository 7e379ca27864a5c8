"""One search of the same model, space and images by this project, KerasTuner, Optuna or Ray Tune; see its caller.

    python benchmarks/search_sides.py TASK.json

Runs in the current folder; `search_side_by_side.py` writes TASK. Every training notes its start, epochs and end in a
journal. All sides write parameters, metrics by epoch and the model to an MLflow store in the folder, the others by what
they offer for it; for KerasTuner, which offers nothing, `run_trial` is overridden. Each is a script as a user would
write it: libraries are imported and images read as in `documented_recipe.py`.
"""

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import keras_tuner
from documented_recipe import load, split

# After Keras: this project loads it in less time than a script of another tool does.
from fakeface_lab.detector.model import build_model

__all__: list[str] = []

STORE = f"sqlite:///{Path('mlflow.db').resolve()}"
EXPERIMENT = "search"


@dataclass(frozen=True)
class Task:
    """What to search: by `side`, over images `data` of `size_px`, `num_trials` of `num_epochs`, from `seed`."""

    side: str
    algorithm: str
    data: str
    size_px: int
    num_trials: int
    num_epochs: int
    seed: int
    journal: str


TASK = Task(**json.loads(Path(sys.argv[-1]).read_text())) if __name__ == "__main__" else None


class Journal(keras.callbacks.Callback):
    """Notes a training in the journal."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def _note(self, event: str, **more: float) -> None:
        with Path(self.path).open("a") as file:
            file.write(json.dumps({"event": event, "at": time.time(), **more}) + "\n")

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Note the start."""
        self._note("begin")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Note the validation loss."""
        self._note("epoch", val_loss=float((logs or {})["val_loss"]))

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Note the end."""
        self._note("end")


def build(hp: keras_tuner.HyperParameters, size_px: int) -> keras.Model:
    """Declare the space, and build the project's network with its values."""
    hp.Choice("filters_1", [16, 24, 32])
    hp.Choice("dense_units", [32, 64, 128])
    hp.Choice("conv_dropout", [0.0, 0.1, 0.25, 0.4])
    hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")
    hp.Fixed("image_size", size_px)
    return build_model(hp)


def build_with(values: dict[str, Any], size_px: int) -> keras.Model:
    """Build the network with values that another tool suggests."""
    hp = keras_tuner.HyperParameters()
    for name, value in {**values, "image_size": size_px}.items():
        hp.Fixed(name, value)
    return build_model(hp)


def arguments(task: Task) -> dict[str, Any]:
    """Return the arguments of `fit`: float32 images in memory, the documented 80 % to train on."""
    (x, y), validation = (load(part, task.size_px) for part in split(Path(task.data), task.seed))
    return {
        "x": x, "y": y, "validation_data": validation, "batch_size": 32, "epochs": task.num_epochs, "verbose": 0,
    }  # fmt: skip


def search_documented(task: Task) -> None:
    """Train the documented configuration once: its validation loss is what the searches have to beat."""
    build_with({}, task.size_px).fit(**arguments(task), callbacks=[Journal(task.journal)])


def search_here(task: Task) -> None:
    """Search with the one changed line, in a worker process; its tracking is built in."""
    from fakeface_lab import keras_tuner as tuners

    size_px = task.size_px
    kind = tuners.RandomSearch if task.algorithm == "random" else tuners.BayesianOptimization
    tuner = kind(
        lambda hp: build(hp, size_px), "val_loss", max_trials=task.num_trials, seed=task.seed, project_name=EXPERIMENT,
        tracking_uri=STORE, defaults_first=False,
    )  # fmt: skip
    tuner.search(**arguments(task), callbacks=[Journal(task.journal)])


def search_keras_tuner(task: Task) -> None:
    """Search with plain KerasTuner, tracked by hand."""
    import mlflow

    kind: Any = keras_tuner.RandomSearch if task.algorithm == "random" else keras_tuner.BayesianOptimization

    class Tracked(kind):
        def run_trial(self, trial: Any, *args: Any, callbacks: Any = (), **kwargs: Any) -> Any:
            with mlflow.start_run(run_name=trial.trial_id):
                mlflow.log_params(trial.hyperparameters.values)
                metrics = mlflow.keras.MlflowCallback()
                done = super().run_trial(trial, *args, callbacks=[*callbacks, metrics], **kwargs)
                # KerasTuner keeps the best epoch's weights in this file; the model is built again around it.
                mlflow.log_artifact(self._get_checkpoint_fname(trial.trial_id))
            return done

    mlflow.set_tracking_uri(STORE)
    mlflow.set_experiment(EXPERIMENT)
    tuner = Tracked(
        lambda hp: build(hp, task.size_px), "val_loss", max_trials=task.num_trials, seed=task.seed, directory="tuner"
    )
    tuner.search(**arguments(task), callbacks=[Journal(task.journal)])


def search_optuna(task: Task) -> None:
    """Search with Optuna and the callback of its integration with MLflow."""
    import mlflow
    import optuna
    from optuna_integration import MLflowCallback

    data = arguments(task)
    tracking = MLflowCallback(tracking_uri=STORE, metric_name="val_loss_at_end")

    @tracking.track_in_mlflow()  # type: ignore[untyped-decorator]
    def objective(trial: optuna.Trial) -> float:
        values = {
            "filters_1": trial.suggest_categorical("filters_1", [16, 24, 32]),
            "dense_units": trial.suggest_categorical("dense_units", [32, 64, 128]),
            "conv_dropout": trial.suggest_categorical("conv_dropout", [0.0, 0.1, 0.25, 0.4]),
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        }
        keras.backend.clear_session()
        model = build_with(values, task.size_px)
        history = model.fit(**data, callbacks=[Journal(task.journal), mlflow.keras.MlflowCallback()])
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder) / "model.keras")
            mlflow.log_artifact(str(Path(folder) / "model.keras"))
        return float(min(history.history["val_loss"]))

    samplers = optuna.samplers
    sampler = samplers.RandomSampler(task.seed) if task.algorithm == "random" else samplers.TPESampler(seed=task.seed)
    study = optuna.create_study(study_name=EXPERIMENT, sampler=sampler, storage="sqlite:///optuna.db")
    study.optimize(objective, n_trials=task.num_trials, callbacks=[tracking])


def search_ray(task: Task) -> None:
    """Search with Ray Tune on this machine and its MLflow logger; each trial reserves all cores."""
    # Read on import: Ray listens on loopback only, and tells nobody that it is used.
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.basic_variant import BasicVariantGenerator
    from ray.tune.search.optuna import OptunaSearch

    def train(values: dict[str, Any], data: Any) -> None:
        model = build_with(values, task.size_px)

        class Report(keras.callbacks.Callback):
            def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
                if epoch + 1 < task.num_epochs:
                    tune.report(dict(logs or {}))
                    return
                with tempfile.TemporaryDirectory() as folder:
                    model.save(Path(folder) / "model.keras")
                    tune.report(dict(logs or {}), checkpoint=tune.Checkpoint.from_directory(folder))

        model.fit(**data, callbacks=[Journal(task.journal), Report()])

    cores = os.cpu_count() or 1
    environment = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
    ray.init("local", num_cpus=cores, include_dashboard=False, runtime_env=environment)
    random = BasicVariantGenerator(max_concurrent=1, random_state=task.seed)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(train, data=arguments(task)), {"cpu": cores}),
        param_space={
            "filters_1": tune.choice([16, 24, 32]),
            "dense_units": tune.choice([32, 64, 128]),
            "conv_dropout": tune.choice([0.0, 0.1, 0.25, 0.4]),
            "learning_rate": tune.loguniform(1e-4, 1e-2),
        },
        tune_config=tune.TuneConfig(
            metric="val_loss", mode="min", num_samples=task.num_trials,
            search_alg=random if task.algorithm == "random" else OptunaSearch(seed=task.seed),
            max_concurrent_trials=None if task.algorithm == "random" else 1,
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT, storage_path=str(Path("ray").resolve()), verbose=0,
            callbacks=[MLflowLoggerCallback(tracking_uri=STORE, experiment_name=EXPERIMENT, save_artifact=True)],
        ),
    )  # fmt: skip
    if tuner.fit().num_errors:
        sys.exit("a trial failed")


SEARCHES = {
    "documented": search_documented,
    "one changed line": search_here,
    "KerasTuner": search_keras_tuner,
    "Optuna": search_optuna,
    "Ray Tune": search_ray,
}

if TASK is not None:
    keras.utils.set_random_seed(TASK.seed)
    SEARCHES[TASK.side](TASK)
