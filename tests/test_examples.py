"""The scripts in `examples/`, run as they are."""

import runpy
from pathlib import Path

import pytest

from fakeface_lab import Search

EXAMPLES = Path(__file__).parents[1] / "examples"

# Example to the name of its search and the number of its trials.
SEARCHES = {
    "dense_digits": ("digits/dense network", 4),
    "hypermodel_fit": ("scaled digits", 5),
    "custom_training_loop": ("own loop", 3),
    "sklearn_models": ("iris", 6),
    "cross_validation": ("wine", 3),
}
_SLOW = ("dense_digits", "hypermodel_fit", "cross_validation")


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SEARCHES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in _SLOW else name for name in SEARCHES]
)
def test_an_example_runs_as_it_is(name: str, project: Path) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    search, num_trials = SEARCHES[name]
    found = Search(search)
    assert found.status == "finished"
    assert [trial.record.status for trial in found.trials] == ["finished"] * num_trials
    assert {path.name for path in project.iterdir()} == {"experiments", "mlflow.db", "mlflow.db.lock", "mlruns"}
