"""A search of thousands of trials in a store that MLflow reads, without the training.

A search of three trials on drawn faces is run for real. Its trials' rows are then copied with SQL, table by table,
with new ids, numbers, scores and learning rates; everything else of a copy is as the real search wrote it, down to
models and points of curves. The files of the copies do not exist. Scores of copies are worse than the real best
trial's, so that this one keeps its final trainings.
"""

import random
import shutil
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from results import side_environment

__all__ = ["SEARCH", "make_search", "multiply"]

SEARCH = "many trials"

_CONFIG = f"""
name = "{SEARCH}"
data = "demo"
image_size = 32
epochs = 5
trials = 3
algorithm = "random"
engine = "inline"
final_seeds = 1
[space]
filters_1 = {{ values = [4, 8] }}
dense_units = {{ values = [16, 32] }}
learning_rate = {{ min = 1e-4, max = 1e-2, sampling = "log" }}
"""

# The columns of each table that hold the id of a trial's run, and those of its model.
_TABLES = {
    "runs": ("run_uuid", None),
    "tags": ("run_uuid", None),
    "params": ("run_uuid", None),
    "metrics": ("run_uuid", None),
    "latest_metrics": ("run_uuid", None),
    "logged_models": ("source_run_id", "model_id"),
    "logged_model_params": (None, "model_id"),
    "logged_model_tags": (None, "model_id"),
    "logged_model_metrics": ("run_id", "model_id"),
}
# What differs between trials: column of a table, and its new value by the key of the row.
_CHANGED = {
    "runs": ("name", "printf('t%03d copy', new.number)"),
    "tags": (
        "value",
        "CASE old.key WHEN 'trial' THEN CAST(new.number AS TEXT) "
        "WHEN 'created_order' THEN CAST(new.number * 2 + 1 AS TEXT) "
        "WHEN 'ended_order' THEN CAST(new.number * 2 + 2 AS TEXT) WHEN 'score' THEN CAST(new.score AS TEXT) "
        "WHEN 'mlflow.runName' THEN printf('t%03d copy', new.number) WHEN 'run_key' THEN new.run "
        "WHEN 'values' THEN json_set(old.value, '$.learning_rate', new.rate) ELSE old.value END",
    ),
    "params": ("value", "CASE old.key WHEN 'learning_rate' THEN CAST(new.rate AS TEXT) ELSE old.value END"),
    **dict.fromkeys(
        ("metrics", "latest_metrics"),
        (
            "value",
            "CASE old.key WHEN 'score' THEN new.score WHEN 'best_val_loss' THEN new.score "
            "WHEN 'hp.learning_rate' THEN new.rate WHEN 'val_loss' THEN old.value + new.score ELSE old.value END",
        ),
    ),
}


def make_search(project: Path) -> Path:
    """Run the small search in a new project folder and return its database: about half a minute."""
    (project / "experiments").mkdir(parents=True)
    (project / "search.toml").write_text(_CONFIG)
    words = [sys.executable, "-m", "fakeface_lab.tune", "--config", "search.toml"]
    environment = side_environment(FAKEFACE_CACHE=str(project / "cache"))
    done = subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the search ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return project / "mlflow.db"


def multiply(database: Path, copy: Path, num_trials: int) -> Path:
    """Write a store with a search of `num_trials` trials and return it."""
    shutil.copy(database, copy)
    with closing(sqlite3.connect(copy)) as store:
        store.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY; PRAGMA cache_size = -400000;")
        store.execute(
            "CREATE TEMP TABLE new "
            "(source TEXT, source_model TEXT, run TEXT, model TEXT, number INT, score REAL, rate REAL)"
        )
        store.executemany("INSERT INTO new VALUES (?, ?, ?, ?, ?, ?, ?)", _new_trials(store, num_trials))
        for name, (run, model) in _TABLES.items():
            store.execute(_copying(store, name, run, model))
        store.execute(
            "INSERT INTO inputs SELECT new.run || '-d', source_type, source_id, destination_type, new.run, step "
            "FROM inputs JOIN new ON destination_id = new.source"
        )
        store.execute(
            "INSERT INTO inputs SELECT new.run || '-m', source_type, new.run, destination_type, new.model, step "
            "FROM inputs JOIN new ON source_id = new.source"
        )
        store.commit()
        store.executescript("DROP TABLE new; PRAGMA journal_mode = DELETE; ANALYZE;")
    return copy


def _new_trials(store: sqlite3.Connection, num_trials: int) -> Iterator[tuple[object, ...]]:
    """Yield a row of the table `new` for each copy, in the order of their ids, in which tables grow fastest."""
    trials = store.execute(
        "SELECT run_uuid, model_id, CAST(score.value AS REAL) FROM tags JOIN logged_models ON source_run_id = run_uuid "
        "JOIN tags AS score USING (run_uuid) WHERE tags.key = 'role' AND tags.value = 'trial' AND score.key = 'score' "
        "AND logged_models.name = 'model'"
    ).fetchall()
    best = min(score for _, _, score in trials)
    draw = random.Random(0)
    ids = sorted(uuid.UUID(int=draw.getrandbits(128), version=4).hex for _ in range(num_trials - len(trials)))
    numbers = list(range(len(trials), num_trials))
    draw.shuffle(numbers)
    for run, number in zip(ids, numbers, strict=True):
        source, model, _ = trials[number % len(trials)]
        score = best * (1.01 + draw.expovariate(1))
        yield source, model, run, f"m-{run}", number, score, 10 ** draw.uniform(-4, -2)


def _copying(store: sqlite3.Connection, table: str, run: str | None, model: str | None) -> str:
    """Return the statement that copies a table's rows of the real trials for each new one."""
    columns = [row[1] for row in store.execute(f"PRAGMA table_info({table})")]
    changed, value = _CHANGED.get(table, (None, ""))
    of_trial = {run: "new.run", model: "new.model", changed: value}
    selected = ", ".join(of_trial.get(column, f"old.{column}") for column in columns)
    joined = f"old.{run} = new.source" if run is not None and model is None else f"old.{model} = new.source_model"
    # Sorted like the tables, whose primary keys begin with the key.
    order = "old.key, new.rowid" if "key" in columns else "new.rowid"
    return f"INSERT INTO {table} SELECT {selected} FROM {table} AS old JOIN new ON {joined} ORDER BY {order}"
