"""A search without training whose trials find hyperparameters, here and by KerasTuner's own tuner."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import keras_tuner
from keras_tuner import oracles as kt_oracles
from keras_tuner.engine import hyperparameters as kt_hyperparameters

from fakeface_lab.config import Value
from fakeface_lab.search.suggest.suggestion import Exhausted, Suggestion, TrialRecord, Wait, failed_parent, suggest
from fakeface_lab.search.suggest.template import new_in, set_growth
from tests.search.suggest.simulated_search import Pick, Table, ended, fraction, num_events, oldest

# What a trial does: it asks for hyperparameters and returns a score; None if it fails after it has asked.
Work = Callable[[keras_tuner.HyperParameters], float | None]
Algorithm = Literal["random", "grid", "bayesian", "hyperband"]


def asked(hp: keras_tuner.HyperParameters, **values: Any) -> float:
    """Return a score in [0, 1) that depends on what a trial has asked for, and on its epochs."""
    return fraction(values, hp.values.get("tuner/epochs", 0))


def all_at_once(hp: keras_tuner.HyperParameters) -> float | None:
    """Finds everything in trial 0 if the space is empty."""
    units, rate = hp.Int("units", 8, 32, step=8), hp.Choice("rate", [0.1, 0.01, 0.001], default=0.01)
    return asked(hp, units=units, rate=rate, flip=hp.Boolean("flip"))


def in_scopes(hp: keras_tuner.HyperParameters) -> float | None:
    """Finds a hyperparameter of `b` and one of `c` in the first trial that has each."""
    kind, rate = hp.Choice("kind", ["a", "b", "c"]), hp.Choice("rate", [0.1, 0.01])
    depth = flip = None
    if kind == "b":
        with hp.conditional_scope("kind", ["b"]):
            depth = hp.Int("depth", 1, 3)
    if kind == "c":
        with hp.conditional_scope("kind", ["c"]):
            flip = hp.Boolean("flip")
    return asked(hp, kind=kind, rate=rate, depth=depth, flip=flip)


def in_branches(hp: keras_tuner.HyperParameters) -> float | None:
    """As `in_scopes`, but KerasTuner is not told that they belong to `b` and `c`."""
    kind, rate = hp.Choice("kind", ["a", "b", "c"]), hp.Choice("rate", [0.1, 0.01])
    depth = hp.Int("depth", 1, 3) if kind == "b" else None
    flip = hp.Boolean("flip") if kind == "c" else None
    return asked(hp, kind=kind, rate=rate, depth=depth, flip=flip)


def failing(work: Work) -> Work:
    """Return the work with about half of its trials failed."""

    def fail_or_score(hp: keras_tuner.HyperParameters) -> float | None:
        score = work(hp)
        return None if score is None or score < 0.5 else score

    return fail_or_score


def begin(*names: Literal["kind", "rate"]) -> keras_tuner.HyperParameters:
    """Return a space with some of what `in_scopes` and `in_branches` ask every trial for."""
    space = keras_tuner.HyperParameters()
    for name in names:
        space.Choice(name, ["a", "b", "c"]) if name == "kind" else space.Choice(name, [0.1, 0.01])
    return space


def oracle_of(
    algorithm: Algorithm,
    space: keras_tuner.HyperParameters | None = None,
    *,
    defaults_first: bool = True,
    seed: int = 3,
    max_trials: int | None = 12,
) -> keras_tuner.Oracle:
    """Return a template whose space is the given one or empty."""
    given: dict[str, Any] = {"objective": keras_tuner.Objective("score", "min"), "seed": seed}
    given |= {"hyperparameters": space, "max_consecutive_failed_trials": 99}
    match algorithm:
        case "random":
            oracle = kt_oracles.RandomSearchOracle(max_trials=max_trials, **given)
        case "grid":
            oracle = kt_oracles.GridSearchOracle(max_trials=max_trials, **given)
        case "bayesian":
            # The Gaussian process takes most of the time in these tests.
            oracle = kt_oracles.BayesianOptimizationOracle(max_trials=max_trials, num_initial_points=6, **given)
        case "hyperband":
            oracle = kt_oracles.HyperbandOracle(max_epochs=4, factor=2, **given)
    if not defaults_first:
        oracle.defaults_first = False
    return oracle


@dataclass
class Ledger:
    """A table of trials, the values that each was created with, and what was found by the number of the event."""

    table: Table = field(default_factory=list)
    created: list[Mapping[str, Value]] = field(default_factory=list)
    growth: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    def cut(self, num_kept: int) -> "Ledger":
        """Return the ledger after its first events."""
        kept = [trial for trial in self.table if trial.created_order < num_kept]
        table = [
            trial
            if trial.ended_order is not None and trial.ended_order < num_kept
            else replace(trial, ended_order=None, status="running", score=None, values=self.created[trial.sequence])
            for trial in kept
        ]
        growth = {order: found for order, found in self.growth.items() if order < num_kept}
        return Ledger(table, self.created[: len(table)], growth)


def grow(
    template: keras_tuner.Oracle, work: Work, begun: Ledger | None = None, num_workers: int = 1, pick: Pick = oldest
) -> Ledger:
    """Run a search to its end, from the beginning or from a truncated ledger."""
    ledger = begun or Ledger()
    table = ledger.table
    set_growth(template, ledger.growth)
    while True:
        answer: Suggestion | Wait | Exhausted | None = None
        while sum(trial.status == "running" for trial in table) < num_workers:
            answer = suggest(template, table)
            if not isinstance(answer, Suggestion):
                break
            ledger.created.append(answer.values)
            table.append(
                TrialRecord(len(table), answer.values, answer.bracket_values, num_events(table), None, "running", None)
            )
        running = [trial for trial in table if trial.status == "running"]
        if not running:
            assert isinstance(answer, Exhausted)
            return ledger
        _end(template, work, ledger, pick(running))


def _end(template: keras_tuner.Oracle, work: Work, ledger: Ledger, trial: TrialRecord) -> None:
    """End a trial as a worker would, which knows the space that the search began with."""
    order, score = num_events(ledger.table), None
    values = trial.values
    if failed_parent(trial.bracket_values, ledger.table) is None:
        hp = template.get_space()
        hp.values = {**trial.values, **trial.bracket_values}
        score = work(hp)
        found = [hp for hp in hp.space if not template.hyperparameters._exists(hp.name, hp.conditions)]
        values = {**values, **{new.name: hp.values[new.name] for new in found if hp.is_active(new)}}
        new = new_in(template, [kt_hyperparameters.serialize(hp) for hp in found])
        if new:
            ledger.growth[order] = new
            set_growth(template, ledger.growth)
    ledger.table[trial.sequence] = replace(ended(trial, order, score), values=values)


def kerastuners_own(oracle: keras_tuner.Oracle, work: Work, folder: Path) -> list[dict[str, Any]]:
    """Run KerasTuner's own tuner and return the values of its trials, Hyperband's parents as numbers."""

    class Own(keras_tuner.Tuner):
        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            score = work(trial.hyperparameters)
            if score is None:
                raise keras_tuner.errors.FailedTrialError("failed")
            return {"score": score}

    tuner = Own(oracle, directory=str(folder), project_name="own")
    tuner.search(verbose=0)
    table = [dict(oracle.trials[trial_id].hyperparameters.values) for trial_id in oracle.start_order]
    return [
        values | ({"tuner/trial_id": int(values["tuner/trial_id"])} if "tuner/trial_id" in values else {})
        for values in table
    ]


def configurations(ledger: Ledger) -> list[dict[str, Any]]:
    """Return the values of all trials in the order of their creation."""
    return [{**trial.values, **trial.bracket_values} for trial in ledger.table]
