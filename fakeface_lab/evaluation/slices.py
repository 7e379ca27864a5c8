"""Accuracy of named groups of images, and of the worst of them.

Owns the arithmetic over groups. Which groups there are (gray images, one source, one size) is for the
caller to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from numpy.typing import ArrayLike

from fakeface_lab.errors import ConfigError
from fakeface_lab.evaluation.inputs import check_mask, metric_key
from fakeface_lab.evaluation.intervals import Rate, wilson

__all__ = ["SliceAccuracies", "slice_accuracies"]


@dataclass(frozen=True)
class SliceAccuracies:
    """Accuracy per group.

    Attributes:
        accuracies: by group name, in the order given; None for a group without images.
        too_small: groups with fewer images than the minimum: too few to be called the worst.
        worst: the group with the lowest accuracy among the others (of equals the larger one), or None if
            all are too small.
        min_images: the minimum.
    """

    accuracies: dict[str, Rate | None]
    too_small: tuple[str, ...]
    worst: str | None
    min_images: int

    @property
    def worst_accuracy(self) -> Rate | None:
        """Worst group accuracy (Sagawa et al. 2020), None if all groups are too small.

        Its interval is one of simultaneous intervals over the groups judged (Bonferroni: each at 1 - 0.05 / their
        number), because the group was picked for being the worst of them.
        """
        rate = None if self.worst is None else self.accuracies[self.worst]
        return rate and wilson(rate.num_correct, rate.num_total, 1 - 0.05 / self.num_judged)

    @property
    def num_judged(self) -> int:
        """Groups that could have been the worst."""
        return len(self.accuracies) - len(self.too_small)

    def metrics(self) -> dict[str, float]:
        """`accuracy_<group>` for each group with images, and `worst_group_accuracy`, as `Rate.metrics`."""
        flat: dict[str, float] = {}
        for name, rate in self.accuracies.items():
            if rate is not None:
                flat |= rate.metrics(f"accuracy_{metric_key(name)}")
        if self.worst_accuracy is not None:
            flat |= self.worst_accuracy.metrics("worst_group_accuracy")
        return flat

    def __str__(self) -> str:
        lines = [f"{name}: {rate or 'no images'}" for name, rate in self.accuracies.items()]
        if self.worst is not None:
            lines.append(f"worst of {self.num_judged} groups: {self.worst}, {self.worst_accuracy}")
        if self.too_small:
            lines.append(f"fewer than {self.min_images} images, too small to judge: {', '.join(self.too_small)}")
        return "\n".join(lines)


def slice_accuracies(is_correct: ArrayLike, slices: Mapping[str, ArrayLike], min_images: int = 20) -> SliceAccuracies:
    """Accuracy with its Wilson interval in each named group; groups may overlap and leave images out.

    Args:
        is_correct: bool (N,), whether the model is right about each image.
        slices: group name to bool (N,), which images belong to it.
        min_images: below this a group is named as too small; at 20 images an interval is about 0.4 wide at
            worst.

    Raises:
        DataError: an array that is not bool (N,).
        ConfigError: a minimum below 1, or two names that make the same metric.
    """
    if min_images < 1:
        raise ConfigError(f"min_images is {min_images}, allowed is 1 or more")
    if len({metric_key(name) for name in slices}) < len(slices):
        raise ConfigError(f"two of the groups {', '.join(slices)} make the same metric name; rename one")
    correct = check_mask(is_correct, "is_correct")
    accuracies: dict[str, Rate | None] = {}
    for name, members in slices.items():
        mask = check_mask(members, f"group {name!r}", correct.size)
        num_images = int(mask.sum())
        accuracies[name] = wilson(int(correct[mask].sum()), num_images) if num_images else None
    judged = {name: rate for name, rate in accuracies.items() if rate and rate.num_total >= min_images}
    worst = min(judged, key=lambda name: (judged[name].value, -judged[name].num_total), default=None)
    return SliceAccuracies(accuracies, tuple(name for name in slices if name not in judged), worst, min_images)
