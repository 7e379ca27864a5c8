"""Ranks the configurations of searches and runs by their recorded scores, each set of images separately.

Reads per-image scores from the store; trains nothing and loads no TensorFlow.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich.table import Table

from fakeface_lab.errors import NotFoundError, SearchError
from fakeface_lab.evaluation.intervals import THRESHOLD, Rate, wilson
from fakeface_lab.search.report.leaderboard import plain_table, read_leaderboard
from fakeface_lab.tracking.datasets import seal_key
from fakeface_lab.tracking.lookup import Run, children_of, find_run, get_run, latest_runs
from fakeface_lab.tracking.scores import PartScores, read_scores
from fakeface_lab.tracking.store import Store

__all__ = [
    "EvaluationSet",
    "ScoredConfiguration",
    "by_evaluation_set",
    "evaluation_set_of",
    "finals_of",
    "is_of_detector",
    "latest_configurations",
    "named_configurations",
    "ranking_table",
    "require_same_images",
]


@dataclass(frozen=True, order=True)
class EvaluationSet:
    """The images that a score is about; scores on different sets are never ranked together.

    Attributes:
        data: name of the data set.
        digest: of its manifest, 32 digits.
        split: `documented` or `sealed`.
        split_seed: seed of the split.
        part: the part of the split, `test` or `validation`.
    """

    data: str
    digest: str
    split: str
    split_seed: str
    part: str

    def __str__(self) -> str:
        return f"{self.data} {self.digest[:8]}, split {self.split} seed {self.split_seed}, {self.part} images"

    @property
    def test_set(self) -> str | None:
        """Key under which openings of these test images are counted (`seal_key`); None for validation images."""
        return seal_key(self.digest, self.split, self.split_seed) if self.part == "test" else None

    @property
    def caution(self) -> str:
        """What these images were used for before; empty if they stayed closed until the end."""
        if self.split == "documented":
            return "these images also judged each epoch, as documented: figures are too good"
        return "" if self.part == "test" else "these images chose epochs and trials: figures are too good"


@dataclass(frozen=True)
class ScoredConfiguration:
    """A configuration with its scores: that of a single run, or the best one of a search.

    Attributes:
        name: of the run or search.
        role: its tag `role`.
        evaluated_on: the images that it was scored on.
        runs: one run per seed: the run itself, or the final runs of a search (without finals, its best trial).
        scored: their per-image scores.
    """

    name: str
    role: str
    evaluated_on: EvaluationSet
    runs: tuple[Run, ...]
    scored: PartScores

    @property
    def rate(self) -> Rate:
        """Accuracy of the probabilities averaged over the seeds, with its interval."""
        # Averaged before the decision, as in `compare`, so that rank and verdict rest on the same decisions.
        decisions = self.scored.scores.mean(axis=0) > THRESHOLD
        return wilson(int((decisions == self.scored.is_positive).sum()), len(decisions))


def named_configurations(store: Store, words: Sequence[str]) -> list[ScoredConfiguration]:
    """Return the configurations of searches and runs, given their names or ids (see `find_run`).

    Raises:
        NotFoundError: a name does not identify one run, or a run has no scores.
        SearchError: a search without a score, or one that cannot be compared.
    """
    return [_scored_configuration(store, find_run(store, word)) for word in words]


def latest_configurations(store: Store, limit: int = 20) -> tuple[list[ScoredConfiguration], list[str]]:
    """Return the configurations of the latest searches and baselines, and the reasons why others have none."""
    runs = latest_runs(store, "search", limit) + latest_runs(store, "baseline", limit)
    configurations, left_out = [], []
    for run in runs:
        try:
            configurations.append(_scored_configuration(store, run))
        except (NotFoundError, SearchError) as err:
            left_out.append(str(err))
    return configurations, left_out


def by_evaluation_set(configurations: Sequence[ScoredConfiguration]) -> dict[EvaluationSet, list[ScoredConfiguration]]:
    """Return the configurations per set of images, best first; ties stay in the given order."""
    members: dict[EvaluationSet, list[ScoredConfiguration]] = {}
    for configuration in sorted(configurations, key=lambda each: (each.evaluated_on, -each.rate.value)):
        members.setdefault(configuration.evaluated_on, []).append(configuration)
    return members


def require_same_images(configurations: Sequence[ScoredConfiguration]) -> None:
    """Refuse to rank scores on different images.

    Raises:
        SearchError: names the first two that differ, and in what.
    """
    first = configurations[0]
    for other in configurations[1:]:
        if other.evaluated_on != first.evaluated_on:
            raise SearchError(
                f"{first.name} and {other.name} cannot be ranked: one is about {first.evaluated_on}, the other about "
                f"{other.evaluated_on}; compare runs of the same images, split and part"
            )


def finals_of(
    store: Store, search: Run, table: pd.DataFrame
) -> tuple[ScoredConfiguration | None, ScoredConfiguration | None]:
    """Return the best and the documented configuration of a search on the opened test split, None for a missing one.

    The best one is that of the best trial in `table`, the search's leaderboard; both are the same runs if the
    documented configuration won.
    """
    best = _best_trial(store, table)
    runs: dict[str, list[Run]] = {}
    for run in children_of(store, search, "final"):
        trial = re.fullmatch(r"final-trial-(\d+)-seed-\d+", run.data.tags["final_key"])
        if trial is not None and run.info.status == "FINISHED":
            runs.setdefault(trial[1], []).append(run)
    name = search.info.run_name
    # More trials may have made another one the best, while the finals in the store are still those of the former.
    of_best = runs.get(best.data.tags["trial"]) if best is not None else None
    of_documented = runs.get("0")
    return (
        _of_runs(store, name, "search", of_best) if of_best else None,
        _of_runs(store, f"{name}: documented", "search", of_documented) if of_documented else None,
    )


def ranking_table(configurations: Sequence[ScoredConfiguration]) -> Table:
    """Return a table with one row per configuration, in the given order; all are about the same images."""
    table = plain_table("rank", "run", "role", "accuracy", "seeds", "epochs", "parameters", "run id")
    for rank, configuration in enumerate(configurations, start=1):
        first = configuration.runs[0]
        metrics = first.data.metrics
        table.add_row(
            str(rank),
            configuration.name,
            configuration.role,
            str(configuration.rate),
            str(len(configuration.runs)),
            f"{metrics['num_epochs']:.0f}",
            f"{metrics['num_params']:,.0f}",
            first.info.run_id,
        )
    return table


def is_of_detector(search: Run) -> bool:
    """Return whether a search is one of `tune`, whose trial 0 is the documented configuration."""
    return bool(search.data.tags.get("trial_0", "documented") == "documented")


def _scored_configuration(store: Store, run: Run) -> ScoredConfiguration:
    role = run.data.tags.get("role", "run")
    if role != "search":
        return _of_runs(store, run.info.run_name, role, [run])
    if not is_of_detector(run):
        raise SearchError(
            f"search {run.info.run_name}: it ran on a user's own data, so it cannot be compared with other runs; "
            f"give only this search to see its trials"
        )
    # Finals first: a trial's own scores are those that it was picked by.
    # Read once: that of 10,000 trials takes many seconds.
    table = read_leaderboard(store, run)
    finals, _ = finals_of(store, run, table)
    if finals is not None:
        return finals
    best = _best_trial(store, table)
    if best is None:
        raise SearchError(f"search {run.info.run_name}: no trial has a score yet")
    return _of_runs(store, f"{run.info.run_name}: best trial", role, [best])


def _best_trial(store: Store, table: pd.DataFrame) -> Run | None:
    if table.empty or table["score"].isna().all():
        return None
    return get_run(store, table["run_id"].iloc[0])


def _of_runs(store: Store, name: str, role: str, runs: list[Run]) -> ScoredConfiguration:
    images = evaluation_set_of(runs[0])
    return ScoredConfiguration(name, role, images, tuple(runs), read_scores(store, runs, images.part))


def evaluation_set_of(run: Run) -> EvaluationSet:
    """Return the images that a run was scored on.

    Raises:
        NotFoundError: it was not scored.
    """
    params, metrics = run.data.params, run.data.metrics
    part = next((part for part in ("test", "validation") if f"{part}_accuracy" in metrics), None)
    if part is None or not run.inputs.dataset_inputs:
        raise NotFoundError(
            f"run {run.info.run_name} ({run.info.run_id}): has no scores; was it stopped before its end?"
        )
    dataset = run.inputs.dataset_inputs[0].dataset
    return EvaluationSet(dataset.name, dataset.digest, params["split"], params["split_seed"], part)
