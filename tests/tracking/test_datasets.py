"""Openings of a test set are counted in the store: over runs, experiments and restarts."""

from dataclasses import replace

import pytest

from fakeface_lab.tracking.datasets import describe_openings, num_openings, record_opening, seal_key
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter

KEY = seal_key("d" * 64, "sealed", 0)


@pytest.fixture
def store(local_store: Store) -> Store:
    return local_store


def opened(store: Store, key: str, *purposes: str) -> TrackedRun:
    run = TrackedRun.create(store, PatientWriter(5), "run", {})
    for purpose in purposes:
        record_opening(run, key, purpose)
    return run


def test_openings_are_counted_by_test_set(store: Store) -> None:
    assert num_openings(store, KEY) == 0
    first = opened(store, KEY, "trial 3", "trial 3")
    assert num_openings(store, KEY) == 1, "the same opening, shown again"
    record_opening(first, KEY, "trial 5")
    elsewhere = replace(store, experiment_id=store.client.create_experiment("other"))
    opened(elsewhere, KEY, "evaluation")
    opened(store, seal_key("d" * 64, "sealed", 1), "evaluation")
    opened(store, seal_key("d" * 64, "documented", 0), "evaluation")
    opened(store, seal_key("e" * 64, "sealed", 0), "evaluation")
    assert num_openings(store, KEY) == 3
    store.client.delete_run(first.run_id)
    store.client.delete_experiment(elsewhere.experiment_id)
    assert num_openings(store, KEY) == 3, "what is deleted was seen all the same"


def test_more_runs_than_a_page_are_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fakeface_lab.tracking.store._LOCAL_PAGE_SIZE", 2)
    for _ in range(5):
        opened(store, KEY, "evaluation")
    assert num_openings(store, KEY) == 5


def test_in_words(store: Store) -> None:
    opened(store, KEY, "evaluation")
    assert (
        describe_openings(store, KEY) == "The test images (sealed split, seed 0) have been opened once in this store."
    )
    opened(store, KEY, "evaluation")
    assert describe_openings(store, KEY) == (
        "The test images (sealed split, seed 0) have been opened 2 times in this store. Anything chosen by results on "
        "them looks better on them than it is."
    )
    assert describe_openings(store, seal_key("d" * 64, "documented", 0)).endswith(
        "They also judge each epoch, as documented, so figures on them are too good from the start."
    )
