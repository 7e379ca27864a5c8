"""What every training shares: the order of its data, the time of its end figures, its history."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakeface_lab.training.epochs import EpochRecord
from fakeface_lab.training.outcome import (
    MODEL,
    Outcome,
    epoch_order,
    history_of,
    read_outcome,
    read_whole_outcome,
    write_outcome,
)


@settings(max_examples=50, deadline=None)
@given(num_images=st.integers(1, 300), seed=st.integers(0, 2**31 - 1), epoch=st.integers(0, 10_000))
def test_order_is_a_permutation_that_follows_from_seed_and_epoch(num_images: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_images, seed, epoch)
    assert sorted(order.tolist()) == list(range(num_images))
    np.testing.assert_array_equal(order, epoch_order(num_images, seed, epoch))
    if num_images > 20:
        assert (order != epoch_order(num_images, seed, epoch + 1)).any()
        assert (order != epoch_order(num_images, seed + 1, epoch)).any()
        assert (epoch_order(num_images, seed + 1, epoch) != epoch_order(num_images, seed, epoch + 1)).any()


def test_end_figures_carry_the_time_of_the_kept_epoch() -> None:
    records = [EpochRecord(epoch, 1000 * epoch, {"loss": 1.0}) for epoch in (1, 2, 3)]
    # With the last epoch's time the run would get a second point for the kept epoch.
    assert Outcome(records, kept_epoch=2, metrics={}).ended_at_ms == 2000


def test_history_has_gaps_where_an_epoch_was_not_validated() -> None:
    records = [EpochRecord(1, 0, {"loss": 1.0}), EpochRecord(2, 0, {"loss": 0.5, "val_loss": 0.75})]
    history = history_of(records)
    assert history["loss"] == [1.0, 0.5]
    assert np.isnan(history["val_loss"][0])
    assert history["val_loss"][1] == 0.75


@pytest.mark.parametrize("left", ["", "{", "[]", '{"records": 3}'])
def test_a_damaged_outcome_is_none_and_the_training_goes_on(tmp_path: Path, left: str) -> None:
    write_outcome(Outcome([EpochRecord(1, 5, {"loss": 0.5})], 1, {}), tmp_path)
    (written,) = tmp_path.iterdir()
    whole = read_outcome(tmp_path)
    assert whole is not None
    assert whole.records == [EpochRecord(1, 5, {"loss": 0.5})]
    written.write_text(left)
    assert read_outcome(tmp_path) is None


@pytest.mark.slow
def test_an_outcome_whose_model_is_damaged_is_none_after_a_restart(tmp_path: Path) -> None:
    write_outcome(Outcome([EpochRecord(1, 5, {"loss": 0.5})], 1, {}), tmp_path)
    (tmp_path / MODEL).mkdir()
    (tmp_path / MODEL / "MLmodel").write_text("flavors: {keras: {}}")
    assert read_whole_outcome(tmp_path) is not None
    (tmp_path / MODEL / "MLmodel").write_text("")
    assert read_whole_outcome(tmp_path) is None
