"""The table of faults still fits the code; `make mutants` runs the tests that must notice them."""

from pathlib import Path

import pytest

from tests.mutants import MUTANTS, Mutant, mutated

PROJECT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_fault_has_its_place_and_its_tests(mutant: Mutant) -> None:
    text = (PROJECT / mutant.file).read_text()
    changed = mutated(mutant, text)
    assert changed != text
    compile(changed, mutant.file, "exec")
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert name.partition("[")[0] in (PROJECT / file).read_text()
    with pytest.raises(ValueError, match="has the text 0 times, not once"):
        mutated(mutant, "")
