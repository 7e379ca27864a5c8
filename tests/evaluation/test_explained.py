"""The explained share at its ends, between them, and where there is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakeface_lab.errors import DataError
from fakeface_lab.evaluation.explained import explained_share


@pytest.mark.parametrize(("probe", "share"), [(0.5, 0.0), (0.7, 0.5), (0.9, 1.0), (0.3, 0.0), (0.99, 1.0)])
def test_share_of_a_gain_from_half_to_nine_tenths(probe: float, share: float) -> None:
    assert explained_share(probe, accuracy=0.9, majority=0.5) == pytest.approx(share)


@pytest.mark.parametrize("accuracy", [0.543, 0.4])
def test_nothing_to_explain_at_or_below_the_majority(accuracy: float) -> None:
    assert explained_share(0.9, accuracy, majority=0.543) is None


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_share_is_a_share(probe: float, accuracy: float, majority: float) -> None:
    share = explained_share(probe, accuracy, majority)
    assert (share is None) == (accuracy <= majority)
    assert share is None or 0 <= share <= 1


@pytest.mark.parametrize("bad", [-0.1, 99.6, float("nan")])
def test_percentages_and_nan_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match=r"probe_accuracy is .* not a percentage"):
        explained_share(bad, 0.9, 0.5)
    with pytest.raises(DataError, match=r"^accuracy is"):
        explained_share(0.9, bad, 0.5)
    with pytest.raises(DataError, match="majority is"):
        explained_share(0.9, 0.9, bad)
