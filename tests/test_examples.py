"""The scripts in `examples/` and the programs in the documents, run as they are."""

import re
import runpy
from pathlib import Path

import pytest

from fakeface_lab import Search

pytestmark = pytest.mark.usefixtures("project_with_tables")

PROJECT = Path(__file__).parents[1]
EXAMPLES = PROJECT / "examples"

# Example to the name of its search and the number of its trials.
SEARCHES = {
    "dense_digits": ("digits/dense network", 4),
    "hypermodel_fit": ("scaled digits", 5),
    "custom_training_loop": ("own loop", 3),
    "sklearn_models": ("iris", 6),
    "cross_validation": ("wine", 3),
}
_SLOW = ("dense_digits", "hypermodel_fit", "sklearn_models", "cross_validation")


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


@pytest.mark.parametrize(
    ("document", "search"),
    [("search-engine-parts.md", "digits"), pytest.param("search-engine.md", "sums", marks=pytest.mark.slow)],
)
def test_the_program_of_a_document_runs_as_it_is(document: str, search: str, project: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / document).read_text(encoding="utf-8"), re.DOTALL)
    program = project / "program.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    runpy.run_path(str(program), run_name="__main__")
    assert Search(search).status == "finished"
