import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakeface_lab.errors import SearchError
from fakeface_lab.search.ledger.resume import THREADS_TAG, choose_threads, find_search, open_search
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter
from tests.kill_search import PROJECT, read_search, write_project


def test_threads_are_those_that_the_search_was_begun_with(new_store: Callable[[str], Store]) -> None:
    store = new_store("threads")
    assert (choose_threads(None, 0), choose_threads(None, 4)) == (0, 4)
    open_search(store, PatientWriter(5), "s", {}, {THREADS_TAG: "3"}, restart=False).parent.lock.release()
    found = find_search(store, "s")
    assert (choose_threads(found, 0), choose_threads(found, 3)) == (3, 3)
    with pytest.raises(SearchError, match=r"threads = 2: search 's' began with 3 per trial, .* leave --threads"):
        choose_threads(found, 2)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2, reason="needs two cores")
def test_a_search_continues_on_a_machine_with_other_cores(tmp_path: Path) -> None:
    config = write_project(tmp_path, "random", workers=1, final_seeds=0, num_trials=2)
    config.write_text(config.read_text().replace("threads = 1\n", ""))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "FAKEFACE_"))}
    environment |= {"PYTHONPATH": str(PROJECT), "FAKEFACE_CACHE": str(tmp_path / "cache")}
    for cores, words in (({0}, ["--trials", "2"]), ({0, 1}, ["--trials", "3"])):
        program = (
            f"import os, sys; os.sched_setaffinity(0, {cores}); from fakeface_lab.tune import main; sys.exit(main())"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, "--config", str(config), *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    _, parent, trials, _ = read_search(tmp_path)
    assert [run.data.params["num_threads"] for run in trials] == ["1"] * 3
    assert parent.data.tags[THREADS_TAG] == "1"
