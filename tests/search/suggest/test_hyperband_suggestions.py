"""What Hyperband promotes, waits for and ends with."""

from typing import Literal

import pytest

from fakeface_lab.detector.space import build_oracle
from fakeface_lab.search.suggest.oracles import num_hyperband_trials
from fakeface_lab.search.suggest.suggestion import Suggestion, TrialRecord, Wait, failed_parent, suggest
from fakeface_lab.training.objective import Objective
from tests.search.suggest.simulated_search import (
    Table,
    configurations,
    ended,
    first_rung,
    num_events,
    score,
    score_or_fail,
    search,
    shuffled,
    small_space,
    spec_of,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*")


@pytest.mark.parametrize("direction", ["min", "max"])
def test_three_failures_in_a_rung_of_nine_still_promote(direction: Literal["min", "max"]) -> None:
    spec = spec_of("hyperband", max_epochs=9, factor=3, objective=Objective("val_loss", direction))

    def three_fail(trial: TrialRecord) -> float | None:
        return None if trial.sequence in (2, 5, 8) else score(trial)

    table = search(build_oracle(spec), three_fail)
    rung = first_rung(table)
    assert len(rung) == 9
    assert sum(trial.status == "failed" for trial in rung) == 3
    ranked = sorted(
        (trial for trial in rung if trial.score is not None),
        key=lambda trial: trial.score or 0.0,
        reverse=direction == "max",
    )
    promoted = [t.bracket_values["tuner/trial_id"] for t in table[10:] if t.bracket_values["tuner/round"] == 1]
    assert promoted[:3] == [trial.sequence for trial in ranked[:3]]
    assert all(failed_parent(trial.bracket_values, table) is None for trial in table)


def test_hyperband_with_failures_only_ends_and_dooms_each_promotion() -> None:
    template = build_oracle(spec_of("hyperband"))
    table = search(template, lambda trial: None)
    assert len(table) == num_hyperband_trials(template)
    promoted = [trial for trial in table if trial.bracket_values["tuner/round"] != 0]
    assert promoted
    for trial in promoted:
        before = table[: trial.sequence]
        answer = suggest(template, before)
        assert isinstance(answer, Suggestion)
        assert failed_parent(answer.bracket_values, before) == trial.bracket_values["tuner/trial_id"]


def test_a_promotion_has_the_values_of_its_parent_and_goes_on_where_it_ended() -> None:
    table = search(build_oracle(spec_of("hyperband")), num_workers=3, pick=shuffled)
    promoted = [trial for trial in table if "tuner/trial_id" in trial.bracket_values]
    assert promoted
    for trial in promoted:
        parent = table[int(trial.bracket_values["tuner/trial_id"])]
        assert trial.values == parent.values
        assert trial.bracket_values["tuner/initial_epoch"] == parent.bracket_values["tuner/epochs"]


def test_hyperband_waits_for_the_round_before() -> None:
    template = build_oracle(spec_of("hyperband", max_epochs=2))
    table: Table = []
    while isinstance(answer := suggest(template, table), Suggestion):
        table.append(TrialRecord(len(table), answer.values, answer.bracket_values, len(table), None, "running", None))
    assert answer == Wait()
    for trial in list(table):
        table[trial.sequence] = ended(trial, num_events(table), score(trial))
    assert isinstance(suggest(template, table), Suggestion)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_hyperband_ends_when_a_small_space_has_no_more_for_its_rounds(num_workers: int) -> None:
    spec = spec_of("hyperband", space=small_space(), max_epochs=9, factor=3)
    table = search(build_oracle(spec), score_or_fail, num_workers=num_workers)
    begun = [trial for trial in table if trial.bracket_values["tuner/round"] == 0]
    assert len(begun) == len(set(configurations(begun))) == 12
