"""`Tuner` with several worker processes, and with a tracking server instead of a file."""

from pathlib import Path

import keras_tuner
import numpy as np
import pytest
from keras_tuner import oracles
from mlflow.tracking import MlflowClient

from fakeface_lab.backend import keras
from fakeface_lab.keras_tuner.tuner import Tuner
from tests.mlflow_server import Server

X = np.random.default_rng(3).normal(size=(60, 4)).astype(np.float32)
Y = (X[:, :2].sum(axis=1) > 0).astype(np.float32)
FIT = {"epochs": 2, "batch_size": 16, "validation_split": 0.25, "verbose": 0}


def build(hp: keras_tuner.HyperParameters) -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(hp.Choice("units", [2, 4, 8, 16]))])
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    model.compile("adam", "binary_crossentropy", run_eagerly=True)
    return model


def scores(tuner: Tuner) -> dict[int, float]:
    tuner.reload()
    return {trial.hyperparameters.get("units"): trial.score for trial in tuner.oracle.trials.values()}


@pytest.mark.slow
def test_two_parallel_workers_reach_the_same_scores(project: Path) -> None:
    alone = Tuner(oracles.GridSearchOracle("val_loss", max_trials=2), build, project_name="alone", engine="inline")
    alone.search(X, Y, **FIT)
    # A worker finds this module only through the import path of this process: the current folder is another one.
    together = Tuner(oracles.GridSearchOracle("val_loss", max_trials=2), build, project_name="together", workers=2)
    together.search(X, Y, **FIT)
    assert scores(together) == pytest.approx(scores(alone), abs=1e-5)
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("together").experiment_id
    runs = client.search_runs([experiment], "tags.role = 'trial'")
    assert {run.info.status for run in runs} == {"FINISHED"}
    first, second = sorted(runs, key=lambda run: int(run.data.tags["trial"]))
    assert second.info.start_time < first.info.end_time
    assert list((project / "mlruns" / ".work").iterdir()) == []


def speaking(hp: keras_tuner.HyperParameters) -> keras.Model:
    units = hp.Choice("units", [2, 4, 8])
    print(f"{units} units", end="\n" if units == 2 else "")
    if units == 4:
        raise ValueError("no luck")
    return build(hp) if units == 2 else "no model"


def test_what_a_worker_prints_and_why_it_fails_reach_the_user(
    project_with_tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuner = Tuner(oracles.GridSearchOracle("val_loss"), speaking, project_name="spoken", engine="local")
    with pytest.raises(keras_tuner.errors.FatalTypeError, match=r"build\(hp\): returned str; return a keras.Model"):
        tuner.search(X, Y, **{**FIT, "verbose": 1})
    printed = capsys.readouterr().out
    for trial in ("trial 1/3 (t000 units 2): 2 units\n", "trial 2/3 (t001 units 4): 4 units\n"):
        assert trial in printed
    assert "trial 2/3 (t001 units 4): failed: ValueError: no luck" in printed
    assert "step" not in printed, "no progress bars"
    client = MlflowClient(f"sqlite:///{project_with_tables / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("spoken").experiment_id
    (failed,) = client.search_runs([experiment], "tags.role = 'trial' and attributes.status = 'FAILED'")
    path = client.download_artifacts(failed.info.run_id, "error.txt", str(project_with_tables))
    last = Path(path).read_text(encoding="utf-8").splitlines()[-2:]
    assert last == ['    raise ValueError("no luck")', "ValueError: no luck"]


@pytest.mark.slow
def test_a_tracking_server_holds_everything_of_a_search(
    server: Server, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "mlflow.db").unlink()
    oracle = oracles.GridSearchOracle("val_loss", max_trials=2)
    tuner = Tuner(oracle, build, tracking_uri=server.uri, project_name="remote", engine="inline")
    tuner.search(X, Y, **FIT)
    # Another machine has only the address.
    (tmp_path / "other" / "experiments").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    other = Tuner(oracles.GridSearchOracle("val_loss"), build, project_name="remote", engine="inline")
    other.search(X, Y, **FIT)
    both = scores(other)
    assert list(both) == [2, 4, 8, 16]
    assert scores(tuner) == both
    (model,) = other.get_best_models()
    model.compile(loss="binary_crossentropy")
    assert model.evaluate(X[45:], Y[45:], verbose=0) == pytest.approx(min(both.values()), abs=1e-6)
    client = MlflowClient(server.uri)
    (parent,) = client.search_runs([client.get_experiment_by_name("remote").experiment_id], "tags.role = 'search'")
    assert "leaderboard.csv" in {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert not (project / "mlflow.db").exists()
    assert not (tmp_path / "other" / "mlflow.db").exists()
