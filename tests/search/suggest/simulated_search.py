"""A search without training: its trials end at once, with scores made from their values."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import keras_tuner

from fakeface_lab.config import Value
from fakeface_lab.detector.space import OracleSpec
from fakeface_lab.search.suggest.suggestion import Exhausted, Suggestion, TrialRecord, Wait, failed_parent, suggest
from fakeface_lab.settings import Algorithm

Table = list[TrialRecord]
Score = Callable[[TrialRecord], float | None]
Pick = Callable[[Table], TrialRecord]
ALGORITHMS: tuple[Algorithm, ...] = ("random", "grid", "bayesian", "hyperband")


def small_space() -> keras_tuner.HyperParameters:
    """12 configurations; no default is the first in its list."""
    space = keras_tuner.HyperParameters()
    space.Int("units", 32, 128, step=32, default=64)
    space.Choice("rate", [0.01, 0.001, 0.0001], default=0.001)
    return space


def wide_space() -> keras_tuner.HyperParameters:
    space = small_space()
    space.Float("dropout", 0.0, 0.5, default=0.25)
    space.Boolean("flip", default=True)
    space.Fixed("image_size", 300)
    return space


def plane() -> keras_tuner.HyperParameters:
    """Only two dimensions: the Gaussian process takes most of the time in these tests."""
    space = keras_tuner.HyperParameters()
    space.Float("dropout", 0.0, 0.5, default=0.25)
    space.Int("units", 32, 128, step=32, default=64)
    return space


def spec_of(algorithm: Algorithm, **changes: Any) -> OracleSpec:
    fields: dict[str, Any] = {"seed": 3}
    match algorithm:
        case "random":
            fields |= {"space": wide_space(), "max_trials": 9}
        case "grid":
            fields |= {"space": small_space()}
        case "bayesian":
            fields |= {"space": plane(), "max_trials": 6, "num_initial_points": 3}
        case "hyperband":
            fields |= {"space": wide_space(), "max_epochs": 4, "factor": 2}
    return OracleSpec(algorithm=algorithm, **(fields | changes))


def fraction(*parts: object) -> float:
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=dict).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def score(trial: TrialRecord) -> float:
    """A value in [0, 1) that depends only on the configuration and its epochs."""
    return fraction(trial.values, trial.bracket_values.get("tuner/epochs", 0))


def score_or_fail(trial: TrialRecord) -> float | None:
    value = score(trial)
    return None if value < 0.3 else value


def oldest(running: Table) -> TrialRecord:
    return running[0]


def newest(running: Table) -> TrialRecord:
    return running[-1]


def shuffled(running: Table) -> TrialRecord:
    """End trials in another order than that of their creation, the same in every simulation."""
    return min(running, key=lambda trial: fraction("order", trial.sequence))


def num_events(table: Table) -> int:
    return len(table) + sum(trial.ended_order is not None for trial in table)


def cut(table: Table, num_kept: int) -> Table:
    """Return the ledger after its first events."""
    kept = [trial for trial in table if trial.created_order < num_kept]
    return [
        trial
        if trial.ended_order is not None and trial.ended_order < num_kept
        else replace(trial, ended_order=None, status="running", score=None)
        for trial in kept
    ]


def ended(trial: TrialRecord, order: int, value: float | None) -> TrialRecord:
    status: Literal["finished", "failed"] = "failed" if value is None else "finished"
    return replace(trial, ended_order=order, status=status, score=value)


def search(
    template: keras_tuner.Oracle,
    score_of: Score = score,
    begun: Sequence[TrialRecord] = (),
    num_workers: int = 1,
    pick: Pick = oldest,
) -> Table:
    """Run a search to its end, from the beginning or from a truncated ledger."""
    table = list(begun)
    while True:
        answer: Suggestion | Wait | Exhausted | None = None
        while sum(trial.status == "running" for trial in table) < num_workers:
            answer = suggest(template, table)
            if not isinstance(answer, Suggestion):
                break
            table.append(
                TrialRecord(len(table), answer.values, answer.bracket_values, num_events(table), None, "running", None)
            )
        running = [trial for trial in table if trial.status == "running"]
        if not running:
            assert isinstance(answer, Exhausted)
            return table
        trial = pick(running)
        is_doomed = failed_parent(trial.bracket_values, table) is not None
        table[trial.sequence] = ended(trial, num_events(table), None if is_doomed else score_of(trial))


def kerastuner_alone(oracle: keras_tuner.Oracle, folder: Path, num_trials: int | None = None) -> list[dict[str, Any]]:
    """Run one long-lived oracle as KerasTuner does, and return the values of its trials."""
    oracle._set_project_dir(str(folder), "alone")
    oracle.verbose = 0
    table: list[dict[str, Any]] = []
    while num_trials is None or len(table) < num_trials:
        trial = oracle.create_trial("tuner0")
        if trial.status == "STOPPED":
            break
        values = dict(trial.hyperparameters.values)
        own = {name: values.pop(name) for name in list(values) if name.startswith("tuner/")}
        record = TrialRecord(len(table), values, own, 0, None, "running", None)
        oracle.update_trial(trial.trial_id, {oracle.objective.name: score(record)})
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
        table.append(values | own)
    return table


def configurations(table: Table) -> list[tuple[tuple[str, Value], ...]]:
    return [tuple(sorted(trial.values.items())) for trial in table]


def first_rung(table: Table) -> Table:
    bracket = table[1].bracket_values["tuner/bracket"]
    return [t for t in table if (t.bracket_values["tuner/bracket"], t.bracket_values["tuner/round"]) == (bracket, 0)]
