"""Verdicts from recorded scores: how `tune`, `compare` and the model registry compare configurations.

Both sides are always compared with equally many seeds, because averaging over more seeds alone improves a result.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fakeface_lab.config import Value
from fakeface_lab.detector.ranking import ScoredConfiguration, evaluation_set_of, require_same_images
from fakeface_lab.errors import SearchError
from fakeface_lab.evaluation.comparison import Comparison, Judgement, adjusted, compare, log_losses
from fakeface_lab.evaluation.intervals import THRESHOLD
from fakeface_lab.evaluation.selection import (
    SearchRange,
    SelectedScore,
    edge_values,
    expected_best,
    selection_corrected,
)
from fakeface_lab.evaluation.stress.comparison import compare_under_stress
from fakeface_lab.evaluation.stress.objective import OBJECTIVES as STRESS_OBJECTIVES
from fakeface_lab.evaluation.stress.objective import stress_selection_corrected
from fakeface_lab.settings import Hyperparameters, Range
from fakeface_lab.tracking.lookup import Run, get_run
from fakeface_lab.tracking.scores import read_epoch_scores, read_scores, read_stress_scores
from fakeface_lab.tracking.store import Store

__all__ = ["Judged", "ScoredTrial", "SelectionReport", "judge", "judge_finals", "judge_runs", "selection_report"]


@dataclass(frozen=True)
class Judged:
    """Two configurations compared.

    Attributes:
        candidate: name of the candidate, with the compared seeds unless all of its seeds were.
        reference: name of the reference, likewise.
        comparison: of the two.
    """

    candidate: str
    reference: str
    comparison: Comparison

    @property
    def sentence(self) -> str:
        """The verdict in plain words, in one line."""
        return self.comparison.sentence(self.candidate, self.reference)


def judge(configurations: Sequence[ScoredConfiguration]) -> list[Judged]:
    """Compare the first with each of the others by the verdict rule, with Holm-adjusted p-values.

    Raises:
        SearchError: they were scored on different images.
    """
    require_same_images(configurations)
    candidate, *references = configurations
    judged = [_judge_two(candidate, reference) for reference in references]
    comparisons = adjusted([one.comparison for one in judged])
    return [replace(one, comparison=comparison) for one, comparison in zip(judged, comparisons, strict=True)]


def _judge_two(candidate: ScoredConfiguration, reference: ScoredConfiguration) -> Judged:
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
    """Compare the finals of a search on the opened test split, by the objective of the search; see `judge_runs`.

    Args:
        store: where the runs are.
        best: final runs of the best trial's configuration, one per seed.
        documented: those of trial 0's.

    Raises:
        NotFoundError: a run has no scores.
        SearchError: two runs were scored on different images.
    """
    search = get_run(store, best[0].data.tags["mlflow.parentRunId"])
    return judge_runs(store, best, documented, search.data.tags.get("objective", ""))


def judge_runs(store: Store, candidate: Sequence[Run], reference: Sequence[Run], objective: str) -> Judgement:
    """Compare two configurations on the images that both were scored on.

    Compares their decisions on the unchanged images (`compare`), or, for a stress objective, that objective on the
    changed images (`compare_under_stress`).

    Args:
        store: where the runs are.
        candidate: runs of one configuration, one per seed.
        reference: those of the other.
        objective: the metric that the search optimized.

    Raises:
        NotFoundError: a run has no scores.
        SearchError: two runs were scored on different images.
    """
    one, other = evaluation_set_of(candidate[0]), evaluation_set_of(reference[0])
    if one != other:
        raise SearchError(f"one was scored on {one}, the other on {other}")
    of_candidate, of_reference = _equal_seeds(candidate, reference)
    runs = [candidate[row] for row in of_candidate] + [reference[row] for row in of_reference]
    number = len(of_candidate)
    if objective in STRESS_OBJECTIVES:
        stressed = read_stress_scores(store, runs)
        return compare_under_stress(
            stressed.is_positive, stressed.conditions, stressed.scores[:number], stressed.scores[number:], objective
        )
    scored = read_scores(store, runs)
    return compare(scored.is_positive, scored.scores[:number], scored.scores[number:], THRESHOLD)


def _equal_seeds(a: Sequence[Run], b: Sequence[Run]) -> tuple[list[int], list[int]]:
    """Return the rows of the runs to compare: equally many per side, with the same seeds as far as both have them."""
    # With three seeds against one, two equal configurations were called different in 15 % of cases.
    number = min(len(a), len(b))
    shared = {_seed_of(run) for run in a} & {_seed_of(run) for run in b}

    def chosen(runs: Sequence[Run]) -> list[int]:
        order = sorted(range(len(runs)), key=lambda row: (_seed_of(runs[row]) not in shared, row))
        return sorted(order[:number])

    return chosen(a), chosen(b)


def _seed_of(run: Run) -> str:
    return str(run.data.params.get("seed", "unknown"))


def _named(configuration: ScoredConfiguration, rows: Sequence[int]) -> str:
    if len(rows) == len(configuration.runs):
        return configuration.name
    seeds = ", ".join(_seed_of(configuration.runs[row]) for row in rows)
    return f"{configuration.name} (seed {seeds} of its {len(configuration.runs)})"


@dataclass(frozen=True)
class ScoredTrial:
    """A finished trial, as `selection_report` needs it.

    Attributes:
        run: its run, with a scores.csv and, in a search for robustness, a stress_scores.csv.
        values: its hyperparameters by name.
        score: value of the objective.
    """

    run: Run
    values: Mapping[str, Value]
    score: float


@dataclass(frozen=True)
class SelectionReport:
    """What the best score is worth, given that it was selected among many.

    Attributes:
        metrics: `selection_naive`, `selection_corrected`, `selection_corrected_low`, `_high`, in the unit of the
            objective, and `num_edge_values`; a single trial has only the last.
        sentences: the same for the user.
    """

    metrics: dict[str, float]
    sentences: tuple[str, ...]


def selection_report(
    store: Store,
    trials: Sequence[ScoredTrial],
    *,
    space: Mapping[str, Range],
    algorithm: str,
    objective: str,
    maximize: bool,
    part: str = "validation",
) -> SelectionReport:
    """Return what the best score of a search is worth, from its finished trials.

    Args:
        store: where their runs are.
        trials: in the order of their creation, trial 0 (set by hand, not drawn) first; at least one.
        space: what was searched.
        algorithm: the one that suggested the trials.
        objective: the metric that is the score: an accuracy, a loss, or one of the stress objectives.
        maximize: whether higher is better.
        part: the split that the trials were judged on; "test" in a search on the documented split.

    Raises:
        NotFoundError: a trial has no scores.
        SearchError: no trials, or two were scored on different images.
    """
    if not trials:
        raise SearchError("no trial has a score, so there is nothing to correct for selection; run some trials")
    metrics: dict[str, float] = {}
    sentences = []
    # A single trial was not selected.
    if len(trials) > 1:
        corrected = _corrected(store, tuple(trial.run for trial in trials), part, objective, maximize)
        metrics |= {
            "selection_naive": corrected.naive,
            "selection_corrected": corrected.corrected,
            "selection_corrected_low": corrected.low,
            "selection_corrected_high": corrected.high,
        }
        sentences.append(f"{objective}, {corrected}.")
    expected = _expected(trials, algorithm, maximize)
    if expected is not None and len(expected) > 1:
        half = max(1, len(expected) // 2)
        sentences.append(
            f"Half as many random trials ({half}) would be expected to reach {objective} {expected[half - 1]:.4f}, all "
            f"{len(expected)} reach {expected[-1]:.4f}: {_worth(expected, half)}."
        )
    best = (max if maximize else min)(trials, key=lambda trial: trial.score)
    edges = [
        edge
        for edge in edge_values(_numbers(best.values), _ranges(space, trials[0].values))
        if not _is_limit(edge.name, edge.value)
    ]
    sentences += [f"{edge}." for edge in edges]
    return SelectionReport(metrics | {"num_edge_values": float(len(edges))}, tuple(sentences))


def _corrected(store: Store, runs: Sequence[Run], part: str, objective: str, maximize: bool) -> SelectedScore:
    if objective in STRESS_OBJECTIVES:
        stressed = read_stress_scores(store, runs, part)
        return stress_selection_corrected(stressed.is_positive, stressed.scores, objective)
    kept = read_scores(store, runs, part)
    by_epoch = [read_epoch_scores(store, run) for run in runs]
    recorded = [scores for scores in by_epoch if scores is not None]
    if len(recorded) < len(runs):  # recorded by an earlier version of this package
        return selection_corrected(_per_image(kept.scores, kept.is_positive, objective), maximize)
    # Every epoch and not only the kept one of each trial: for 14 equal trials of 10 epochs this gives the true 0.9700,
    # correcting for the trial alone 0.9794 (docs/truth.md).
    scores = np.concatenate(recorded)
    return selection_corrected(_per_image(scores, kept.is_positive, objective), maximize, num_trials=len(runs))


def _per_image(
    scores: npt.NDArray[np.float64], is_positive: npt.NDArray[np.bool_], objective: str
) -> npt.NDArray[np.float64]:
    """Return each image's share of the objective, (num_images, num_models), from scores (num_models, num_images)."""
    if objective.endswith("accuracy"):
        return np.asarray(((scores > THRESHOLD) == is_positive).T, dtype=np.float64)
    return log_losses(is_positive, scores).T


def _expected(trials: Sequence[ScoredTrial], algorithm: str, maximize: bool) -> npt.NDArray[np.float64] | None:
    # The formula is for independent draws; the trials of an oracle that learns depend on earlier ones.
    drawn = [trial.score for trial in trials[1:]]
    if algorithm != "random" or not drawn:
        return None
    return expected_best(drawn, algorithm, maximize)


def _worth(expected: npt.NDArray[np.float64], half: int) -> str:
    gained, first = abs(expected[-1] - expected[half - 1]), abs(expected[half - 1] - expected[0])
    return "more trials still pay" if gained > 0.5 * first else "more trials bring little"


def _numbers(values: Mapping[str, Value]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if not isinstance(value, str)}


def _is_limit(name: str, value: float) -> bool:
    """Return whether a value is at the limit of its hyperparameter: there is no dropout below 0."""
    field = Hyperparameters.model_fields.get(name)
    return field is not None and any(value in (getattr(m, "ge", None), getattr(m, "le", None)) for m in field.metadata)


def _ranges(space: Mapping[str, Range], documented: Mapping[str, Value]) -> dict[str, SearchRange]:
    """Return the searched range of every number, extended to the documented value as the search does."""
    ranges = {}
    for name, given in space.items():
        ends = [*(given.values or ()), given.min, given.max, documented.get(name)]
        numbers = [float(end) for end in ends if isinstance(end, (int, float))]
        # A choice of words or of two values has no edge to extend.
        is_choice = any(isinstance(end, str) for end in ends) or (given.values is not None and len(set(numbers)) < 3)
        if is_choice or not all(map(math.isfinite, numbers)):
            continue
        ranges[name] = SearchRange(min(numbers), max(numbers), given.sampling == "log")
    return ranges
