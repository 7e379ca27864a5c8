"""Accuracy per group and the worst group, on a hand-made set."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from fakeface_lab.errors import ConfigError, DataError
from fakeface_lab.evaluation.intervals import slice_accuracies, wilson

INDEX = np.arange(100)
# Wrong about the first 10 images.
IS_CORRECT = INDEX >= 10


def test_each_group_has_its_rate_and_the_worst_is_found() -> None:
    found = slice_accuracies(
        IS_CORRECT,
        {"Gray images": INDEX < 25, "colour": INDEX >= 25, "tiny": INDEX < 3, "none": INDEX < 0},
    )
    assert found.accuracies == {
        "Gray images": wilson(15, 25),
        "colour": wilson(75, 75),
        "tiny": wilson(0, 3),
        "none": None,
    }
    assert found.worst == "Gray images"
    assert found.worst_accuracy == wilson(15, 25, 1 - 0.05 / 2)  # two groups could have been the worst
    assert found.too_small == ("tiny", "none")
    assert str(found).splitlines() == [
        f"Gray images: {wilson(15, 25)}",
        f"colour: {wilson(75, 75)}",
        f"tiny: {wilson(0, 3)}",
        "none: no images",
        f"worst of 2 groups: Gray images, {wilson(15, 25, 0.975)}",
        "fewer than 20 images, too small to judge: tiny, none",
    ]


def test_metrics_have_plain_names() -> None:
    found = slice_accuracies(IS_CORRECT, {"Gray images": INDEX < 25, "none": INDEX < 0}).metrics()
    assert found["accuracy_gray_images"] == found["worst_group_accuracy"] == 0.6
    assert found["accuracy_gray_images_num_total"] == 25.0
    assert found["worst_group_accuracy_low"] == wilson(15, 25).low  # a single group, no selection
    assert not any("none" in name for name in found)


def test_groups_below_the_minimum_cannot_be_the_worst() -> None:
    groups = {"tiny": INDEX < 3, "all": INDEX >= 0}
    assert slice_accuracies(IS_CORRECT, groups).worst == "all"
    assert slice_accuracies(IS_CORRECT, groups, min_images=3).worst == "tiny"
    assert slice_accuracies(IS_CORRECT, groups, min_images=4).worst == "all"


def test_of_equally_bad_groups_the_larger_one_is_named() -> None:
    groups = {"small": (INDEX >= 5) & (INDEX < 15), "large": INDEX < 20}
    assert slice_accuracies(IS_CORRECT, groups, min_images=10).worst == "large"


@pytest.mark.parametrize("groups", [{}, {"tiny": INDEX < 3}])
def test_no_worst_group_if_all_are_too_small(groups: dict[str, Any]) -> None:
    found = slice_accuracies(IS_CORRECT, groups)
    assert found.worst is None
    assert found.worst_accuracy is None
    assert "worst_group_accuracy" not in found.metrics()


def test_wrong_masks_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="group 'gray' has 3 images, the others have 100"):
        slice_accuracies(IS_CORRECT, {"gray": np.ones(3, bool)})
    with pytest.raises(DataError, match="group 'gray' has dtype int64, expected bool"):
        slice_accuracies(IS_CORRECT, {"gray": INDEX})
    with pytest.raises(ConfigError, match="have the same metric name"):
        slice_accuracies(IS_CORRECT, {"Gray": INDEX < 5, "gray": INDEX < 6})
    with pytest.raises(ConfigError, match="min_images is 0, expected 1 or more"):
        slice_accuracies(IS_CORRECT, {}, min_images=0)


def test_interval_of_the_worst_group_covers_despite_its_selection() -> None:
    """Twelve groups with the same true accuracy: the worst is below it by selection alone."""
    rng, true, num_groups, num_images = np.random.default_rng(0), 0.9, 12, 60
    group = np.repeat(np.arange(num_groups), num_images)
    covered = {"simultaneous": 0, "each on its own": 0}
    for _ in range(300):
        found = slice_accuracies(
            rng.random(group.size) < true, {str(name): group == name for name in range(num_groups)}
        )
        worst, own = found.worst_accuracy, found.accuracies[found.worst or ""]
        assert worst is not None
        assert own is not None
        covered["simultaneous"] += worst.low <= true <= worst.high
        covered["each on its own"] += own.low <= true <= own.high
    assert covered["simultaneous"] >= binom.ppf(0.001, 300, 0.95)
    assert covered["each on its own"] < binom.ppf(0.001, 300, 0.95)
