from collections.abc import Callable
from pathlib import Path

import numpy as np

from fakeface_lab.evaluation.comparison import compare
from fakeface_lab.search.finale import Finals
from fakeface_lab.search.registry import register
from fakeface_lab.tracking.store import Store
from tests.search.curve_work import CurveWork
from tests.search.test_driver import run
from tests.search.test_finale import finals

TRUTH = np.array([True, False] * 10)
RIGHT = np.where(TRUTH, 0.9, 0.1)[None]


def aliases(store: Store, name: str) -> dict[str, int]:
    found = store.client.get_registered_model(name).aliases
    return {alias: int(version) for alias, version in found.items()}


def test_the_champion_is_the_documented_model_until_one_is_better(
    new_store: Callable[[str], Store], tmp_path: Path
) -> None:
    ledger = run(new_store("registry"))
    store, work = ledger.parent.store, CurveWork(tmp_path / "trained.txt")
    both = finals(ledger, 1, work)
    equal, better = compare(TRUTH, RIGHT, RIGHT), compare(TRUTH, RIGHT, 1 - RIGHT)
    assert (equal.verdict, better.verdict) == ("cannot be decided", "better")

    assert register(store, Finals(both.best, ()), "only-best", None) == {"candidate": 1}
    assert aliases(store, "only-best") == {"candidate": 1}

    assert register(store, both, "faces", equal) == {"champion": 1, "candidate": 2}
    assert register(store, both, "faces", equal) == {"candidate": 2}  # done before: nothing moves
    assert aliases(store, "faces") == {"champion": 1, "candidate": 2}
    champion = store.client.get_model_version_by_alias("faces", "champion")
    assert champion.run_id == both.documented[0].info.run_id

    other = finals(ledger, 2, work)
    assert register(store, other, "faces", better) == {"candidate": 3, "champion": 3}
    assert aliases(store, "faces") == {"champion": 3, "candidate": 3}
