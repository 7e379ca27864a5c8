"""An array in a file is found again, whichever piece of the file it is; and a search's workers map it, too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakeface_lab.files import file_view, pickle_mapped, unpickle_mapped


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray[Any, Any]:
    np.save(tmp_path / "array.npy", np.arange(50 * 4000, dtype=np.int16).reshape(50, 4000))
    array: np.ndarray[Any, Any] = np.load(tmp_path / "array.npy", mmap_mode="r")
    return array


def test_every_contiguous_piece_is_found_again(mapped: np.ndarray[Any, Any]) -> None:
    for piece in (mapped, mapped[:30], mapped[5:20], mapped[5:20][3:]):
        view = file_view(piece)
        assert view is not None
        np.testing.assert_array_equal(view.open(), piece)


def test_what_is_no_plain_piece_of_a_file_has_no_view(mapped: np.ndarray[Any, Any]) -> None:
    assert file_view(mapped[::2]) is None
    assert file_view(mapped[:, 1:]) is None
    assert file_view(np.zeros(3)) is None


def test_workers_map_the_same_file_and_get_one_for_what_was_in_memory(
    mapped: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    in_memory = np.random.default_rng(0).normal(size=20_000)
    work: Any = {"piece": mapped[5:20], "in memory": in_memory, "again": in_memory}
    sent: Any = unpickle_mapped(pickle_mapped(work, tmp_path / "search", "work.pkl"))
    np.testing.assert_array_equal(sent["piece"], mapped[5:20])
    assert Path(sent["piece"].filename) == tmp_path / "array.npy", "mapped where it is, not copied"
    np.testing.assert_array_equal(sent["again"], in_memory)
    assert [path.name for path in (tmp_path / "search").glob("*.npy")] == ["array-0.npy"]
