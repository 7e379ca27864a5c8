"""From recorded scores to verdicts: the one way in which `tune`, `compare` and the registry judge.

Both sides always count with the same number of seeds: an average over more seeds is better for that alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fakeface_lab.detector.standings import THRESHOLD, Standing, ground_of, require_one_ground
from fakeface_lab.errors import SearchError
from fakeface_lab.evaluation.comparison import Comparison, Judgement, adjusted, compare
from fakeface_lab.evaluation.stress_comparison import compare_under_stress
from fakeface_lab.evaluation.stress_objective import OBJECTIVES as STRESS_OBJECTIVES
from fakeface_lab.tracking.finding import Run
from fakeface_lab.tracking.scores import part_scores, stress_scores
from fakeface_lab.tracking.store import Store

__all__ = ["Judged", "judge", "judge_finals", "judge_runs"]


@dataclass(frozen=True)
class Judged:
    """Two standings compared.

    Attributes:
        candidate: name of the one, with the seeds that were compared where it has more.
        reference: name of the other, likewise.
        comparison: of the two.
    """

    candidate: str
    reference: str
    comparison: Comparison

    @property
    def sentence(self) -> str:
        """The verdict in plain words, in one line."""
        return self.comparison.sentence(self.candidate, self.reference)


def judge(standings: Sequence[Standing]) -> list[Judged]:
    """Compare the first with each of the others by the verdict rule, their p-values adjusted by Holm.

    Raises:
        SearchError: they are about different images.
    """
    require_one_ground(standings)
    candidate, *references = standings
    judged = [_judge_two(candidate, reference) for reference in references]
    comparisons = adjusted([one.comparison for one in judged])
    return [replace(one, comparison=comparison) for one, comparison in zip(judged, comparisons, strict=True)]


def _judge_two(candidate: Standing, reference: Standing) -> Judged:
    if reference.scored.files != candidate.scored.files:
        raise SearchError(f"{candidate.name} and {reference.name}: their scores are of different images")
    of_candidate, of_reference = _equal_seeds(candidate.runs, reference.runs)
    comparison = compare(
        candidate.scored.is_positive,
        candidate.scored.scores[of_candidate],
        reference.scored.scores[of_reference],
        THRESHOLD,
    )
    return Judged(_named(candidate, of_candidate), _named(reference, of_reference), comparison)


def judge_finals(store: Store, best: Sequence[Run], documented: Sequence[Run]) -> Judgement:
    """Compare the finals of a search on the opened test split, by what the search has optimised; see `judge_runs`.

    Args:
        store: where the runs are.
        best: final runs of the best trial's configuration, one per seed.
        documented: those of trial 0's.

    Raises:
        SearchError: a run has no scores, or two were scored on different images.
    """
    search = store.client.get_run(best[0].data.tags["mlflow.parentRunId"])
    return judge_runs(store, best, documented, search.data.tags.get("objective", ""))


def judge_runs(store: Store, candidate: Sequence[Run], reference: Sequence[Run], objective: str) -> Judgement:
    """Compare two configurations on the images that both were scored on.

    By their decisions on the images as they are (`compare`); for an objective under stress by that objective under the
    changed images (`compare_under_stress`).

    Args:
        store: where the runs are.
        candidate: runs of one configuration, one per seed.
        reference: those of the other.
        objective: by what to compare.

    Raises:
        SearchError: a run has no scores, or two were scored on different images.
    """
    one, other = ground_of(candidate[0]), ground_of(reference[0])
    if one != other:
        raise SearchError(f"one was scored on {one}, the other on {other}")
    of_candidate, of_reference = _equal_seeds(candidate, reference)
    runs = [candidate[row] for row in of_candidate] + [reference[row] for row in of_reference]
    number = len(of_candidate)
    if objective in STRESS_OBJECTIVES:
        stressed = stress_scores(store, runs)
        return compare_under_stress(
            stressed.is_positive, stressed.conditions, stressed.scores[:number], stressed.scores[number:], objective
        )
    scored = part_scores(store, runs)
    return compare(scored.is_positive, scored.scores[:number], scored.scores[number:], THRESHOLD)


def _equal_seeds(a: Sequence[Run], b: Sequence[Run]) -> tuple[list[int], list[int]]:
    """Return which runs of each side are compared: as many of each, of the same seeds where both have them."""
    number = min(len(a), len(b))
    shared = {_seed_of(run) for run in a} & {_seed_of(run) for run in b}

    def chosen(runs: Sequence[Run]) -> list[int]:
        order = sorted(range(len(runs)), key=lambda row: (_seed_of(runs[row]) not in shared, row))
        return sorted(order[:number])

    return chosen(a), chosen(b)


def _seed_of(run: Run) -> str:
    return str(run.data.params.get("seed", "unknown"))


def _named(standing: Standing, rows: Sequence[int]) -> str:
    if len(rows) == len(standing.runs):
        return standing.name
    seeds = ", ".join(_seed_of(standing.runs[row]) for row in rows)
    return f"{standing.name} (seed {seeds} of its {len(standing.runs)})"
