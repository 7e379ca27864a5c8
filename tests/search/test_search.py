"""The read-only view of a search."""

import shutil
from pathlib import Path

import keras_tuner
import numpy as np
import pytest

import fakeface_lab
from fakeface_lab import Search, Tuner
from fakeface_lab.backend import keras
from fakeface_lab.errors import NotFoundError, SearchError, TrackingError
from fakeface_lab.search.ledger.resume import open_search
from fakeface_lab.tracking.store import open_store
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.objective import VAL_LOSS

X = np.random.default_rng(3).normal(size=(40, 3)).astype(np.float32)
Y = X.sum(axis=1, keepdims=True)


def build(hp: keras_tuner.HyperParameters) -> keras.Model:
    units = hp.Choice("units", [1, 4])
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units), keras.layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    return model


@pytest.mark.usefixtures("project_with_tables")
def test_a_finished_search_is_read_and_not_written(project: Path) -> None:
    oracle = keras_tuner.oracles.GridSearchOracle("val_loss")
    tuner = Tuner(oracle, build, project_name="read me", engine="inline")
    tuner.search(X, Y, epochs=1, validation_split=0.5, verbose=0)
    store = open_store(None, project, "read me")
    parent = store.client.search_runs([store.experiment_id], "tags.role = 'search'")[0]

    search = Search("read me")
    assert fakeface_lab.Search is Search
    assert (search.name, search.run_id, search.status) == ("read me", parent.info.run_id, "finished")
    assert search.objective == VAL_LOSS
    table = search.leaderboard()
    assert table["trial"].tolist()[0] == search._best().record.sequence
    assert len(search.trials) == len(table) == 2
    assert search.best_values() == tuner.get_best_hyperparameters()[0].values
    model = search.load_best_model()
    loss = float(np.mean((model.predict(X[20:], verbose=0) - Y[20:]) ** 2))
    assert loss == pytest.approx(table["score"].iloc[0], rel=1e-5)
    search.refresh()
    after = store.client.get_run(parent.info.run_id)
    assert after.data.tags == parent.data.tags
    assert after.info.status == "FINISHED"


@pytest.mark.usefixtures("project_with_tables")
def test_a_running_search_is_not_disturbed(project: Path) -> None:
    store = open_store(None, project, "running")
    ledger = open_search(store, PatientWriter(5), "running", {}, VAL_LOSS.tags(), restart=False)
    search = Search("running")
    assert (search.status, search.trials) == ("running", [])
    with pytest.raises(SearchError, match="search 'running': no trial has a score yet"):
        search.best_values()
    ledger.parent.end("KILLED")
    search.refresh()
    assert search.status == "stopped"


def test_a_run_that_is_not_a_search_is_refused(project: Path, empty_project: Path) -> None:
    with pytest.raises(TrackingError, match="nothing has been recorded there yet"):
        Search("missing")
    shutil.copy(empty_project / "mlflow.db", project)
    store = open_store(None, project, "faces")
    run = store.client.create_run(store.experiment_id, tags={"mlflow.runName": "alone"})
    with pytest.raises(NotFoundError, match="missing"):
        Search("missing")
    with pytest.raises(NotFoundError, match="alone: is a single run, not a search"):
        Search(run.info.run_name)
