"""Who stands where: searches and runs side by side, from the store alone, and only on the same images.

Reads recorded per-image scores; trains nothing and loads no TensorFlow.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from fakeface_lab.errors import SearchError
from fakeface_lab.evaluation.intervals import Rate, wilson
from fakeface_lab.search.report.leaderboard import leaderboard, plain_table
from fakeface_lab.tracking.lookup import Run, children_of, find_named, latest_runs
from fakeface_lab.tracking.scores import PartScores, part_scores
from fakeface_lab.tracking.seal import seal_key
from fakeface_lab.tracking.store import Store
from fakeface_lab.training.objective import Objective

__all__ = [
    "THRESHOLD",
    "Ground",
    "Standing",
    "by_ground",
    "finals_of",
    "ground_of",
    "is_of_detector",
    "latest_standings",
    "named_standings",
    "require_one_ground",
    "standings_table",
]

THRESHOLD = 0.5


@dataclass(frozen=True, order=True)
class Ground:
    """The images that a figure is about; figures of different grounds are never ranked together.

    Attributes:
        data: name of the data set.
        digest: of its manifest, 32 digits.
        split: `documented` or `sealed`.
        split_seed: what it was drawn with.
        part: which part of it, `test` or `validation`.
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
        """The test images by which their openings are counted; None for validation images."""
        return seal_key(self.digest, self.split, self.split_seed) if self.part == "test" else None

    @property
    def caution(self) -> str:
        """What these images were used for before; empty where they stayed closed until the end."""
        if self.split == "documented":
            return "these images also judged each epoch, as documented: figures are too good"
        return "" if self.part == "test" else "these images chose epochs and trials: figures are too good"


@dataclass(frozen=True)
class Standing:
    """A run, or a search that stands by its winner, with what it scored.

    Attributes:
        name: of the run or search.
        role: its tag.
        ground: which images it was scored on.
        runs: one a seed: the run itself; of a search its best final runs, or without finals its best trial.
        scored: their per-image scores.
    """

    name: str
    role: str
    ground: Ground
    runs: tuple[Run, ...]
    scored: PartScores

    @property
    def rate(self) -> Rate:
        """Accuracy of the probabilities averaged over the seeds, with its interval."""
        decisions = self.scored.scores.mean(axis=0) > THRESHOLD
        return wilson(int((decisions == self.scored.is_positive).sum()), len(decisions))


def named_standings(store: Store, words: Sequence[str]) -> list[Standing]:
    """Return the standings of searches and runs by their names or ids.

    Raises:
        SearchError: a name that means nothing or several runs, or a run that was not scored to its end.
    """
    return [_standing(store, find_named(store, word)) for word in words]


def latest_standings(store: Store, limit: int = 20) -> tuple[list[Standing], list[str]]:
    """Return the latest searches and baselines of the store, and why others of them have no standing."""
    runs = latest_runs(store, "search", limit) + latest_runs(store, "baseline", limit)
    standings, left_out = [], []
    for run in runs:
        try:
            standings.append(_standing(store, run))
        except SearchError as err:
            left_out.append(str(err))
    return standings, left_out


def by_ground(standings: Sequence[Standing]) -> dict[Ground, list[Standing]]:
    """Return the standings by ground, best first in each; of equal ones the first given comes first."""
    grounds = sorted({standing.ground for standing in standings})
    return {
        ground: sorted(
            (standing for standing in standings if standing.ground == ground),
            key=lambda standing: -standing.rate.value,
        )
        for ground in grounds
    }


def require_one_ground(standings: Sequence[Standing]) -> None:
    """Refuse to rank figures of different images.

    Raises:
        SearchError: names the first two that differ, and in what.
    """
    first = standings[0]
    for other in standings[1:]:
        if other.ground != first.ground:
            raise SearchError(
                f"{first.name} and {other.name} cannot be ranked: one is about {first.ground}, the other about "
                f"{other.ground}; compare runs of the same images, split and part"
            )


def finals_of(store: Store, search: Run) -> tuple[Standing | None, Standing | None]:
    """Return the best and the documented configuration of a search on the opened test split, None where it has none.

    The best one is that of the best trial so far; both are the same runs where the documented configuration won.
    """
    best = _best_trial(store, search)
    runs: dict[str, list[Run]] = {}
    for run in children_of(store, search, "final"):
        trial = re.fullmatch(r"final-trial-(\d+)-seed-\d+", run.data.tags["final_key"])
        if trial is not None and run.info.status == "FINISHED":
            runs.setdefault(trial[1], []).append(run)
    name = search.info.run_name
    of_best = runs.get(best.data.tags["trial"]) if best is not None else None
    of_documented = runs.get("0")
    return (
        _of_runs(store, name, "search", of_best) if of_best else None,
        _of_runs(store, f"{name}: documented", "search", of_documented) if of_documented else None,
    )


def standings_table(standings: Sequence[Standing]) -> Table:
    """Return one row per standing, as ordered; all of them are about the same images."""
    table = plain_table("rank", "run", "role", "accuracy", "seeds", "epochs", "parameters", "run id")
    for rank, standing in enumerate(standings, start=1):
        first = standing.runs[0]
        metrics = first.data.metrics
        table.add_row(
            str(rank),
            standing.name,
            standing.role,
            str(standing.rate),
            str(len(standing.runs)),
            f"{metrics['num_epochs']:.0f}",
            f"{metrics['num_params']:,.0f}",
            first.info.run_id,
        )
    return table


def is_of_detector(search: Run) -> bool:
    """Return whether a search is one of `tune`, whose trial 0 is the documented configuration."""
    return bool(search.data.tags.get("trial_0", "documented") == "documented")


def _standing(store: Store, run: Run) -> Standing:
    role = run.data.tags.get("role", "run")
    if role != "search":
        return _of_runs(store, run.info.run_name, role, [run])
    if not is_of_detector(run):
        raise SearchError(
            f"search {run.info.run_name}: its images are its user's own, so it stands beside no other; name it alone "
            f"to see its trials"
        )
    finals, _ = finals_of(store, run)
    if finals is not None:
        return finals
    best = _best_trial(store, run)
    if best is None:
        raise SearchError(f"search {run.info.run_name}: no trial has a score yet")
    return _of_runs(store, f"{run.info.run_name}: best trial", role, [best])


def _best_trial(store: Store, search: Run) -> Run | None:
    trials = children_of(store, search, "trial")
    table = leaderboard(trials, Objective.from_tags(search.data.tags).direction)
    if table.empty or table["score"].isna().all():
        return None
    return next(run for run in trials if run.info.run_id == table["run_id"].iloc[0])


def _of_runs(store: Store, name: str, role: str, runs: list[Run]) -> Standing:
    ground = ground_of(runs[0])
    return Standing(name, role, ground, tuple(runs), part_scores(store, runs, ground.part))


def ground_of(run: Run) -> Ground:
    """Return the images that a run was scored on.

    Raises:
        SearchError: it was not scored.
    """
    params, metrics = run.data.params, run.data.metrics
    part = next((part for part in ("test", "validation") if f"{part}_accuracy" in metrics), None)
    if part is None or not run.inputs.dataset_inputs:
        raise SearchError(f"run {run.info.run_name} ({run.info.run_id}): has no scores; was it stopped before its end?")
    dataset = run.inputs.dataset_inputs[0].dataset
    return Ground(dataset.name, dataset.digest, params["split"], params["split_seed"], part)
