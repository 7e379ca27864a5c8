"""What the Gaussian process makes of running trials, failures and scores."""

from dataclasses import replace
from typing import Literal

import keras_tuner
import pytest

from fakeface_lab.detector.space import build_oracle
from fakeface_lab.search.suggest.suggestion import Suggestion, suggest
from fakeface_lab.training.objective import Objective
from tests.search.suggest.simulated_search import search, spec_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras_tuner.*")


def test_bayesian_assumes_a_poor_score_for_a_running_trial() -> None:
    """Without a fit to the known scores its guess would be about 1, the best of all."""
    space = keras_tuner.HyperParameters()
    space.Float("x", 0.0, 1.0, default=0.5)
    template = build_oracle(spec_of("bayesian", space=space, max_trials=9, num_initial_points=4))
    table = search(template, lambda trial: 1000 + (float(trial.values["x"]) - 0.8) ** 2)[:8]
    running = replace(table[7], values={"x": 0.05}, status="running", ended_order=None, score=None)
    answer = suggest(template, [*table[:7], running])
    assert isinstance(answer, Suggestion)
    assert float(answer.values["x"]) > 0.4


def test_bayesian_avoids_failures() -> None:
    """The search leaves the failing half of a range; an unreported failure would attract it again."""
    space = keras_tuner.HyperParameters()
    space.Float("x", 0.0, 1.0, default=0.5)
    template = build_oracle(spec_of("bayesian", space=space, max_trials=14, num_initial_points=6))
    table = search(template, lambda trial: None if float(trial.values["x"]) > 0.6 else 1 - float(trial.values["x"]))
    assert sum(trial.status == "failed" for trial in table[6:]) <= 3


@pytest.mark.parametrize("direction", ["min", "max"])
def test_bayesian_moves_towards_the_better_scores(direction: Literal["min", "max"]) -> None:
    space = keras_tuner.HyperParameters()
    space.Float("x", 0.0, 1.0, default=0.5)
    spec = spec_of(
        "bayesian", space=space, max_trials=10, num_initial_points=4, objective=Objective("val_loss", direction)
    )
    sign = 1 if direction == "min" else -1
    table = search(build_oracle(spec), lambda trial: sign * (float(trial.values["x"]) - 0.83) ** 2)
    best = min(table[4:], key=lambda trial: abs(float(trial.values["x"]) - 0.83))
    assert abs(float(best.values["x"]) - 0.83) < 0.05
