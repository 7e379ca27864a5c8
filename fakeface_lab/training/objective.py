"""What a training or a search optimizes: a metric and the direction in which it is better. Loads no TensorFlow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

__all__ = ["SPREAD", "VAL_LOSS", "Direction", "Objective", "best_first"]

Direction = Literal["min", "max"]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Objective:
    """A metric and its direction, with the part of `keras_tuner.Objective`'s interface that judges an epoch.

    Attributes:
        name: of the metric.
        direction: `min` if a smaller value is better, `max` if a larger one is.
    """

    name: str
    direction: Direction = "min"

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> "Objective":
        """Return the objective recorded on the parent run of a search."""
        return cls(tags.get("objective", "score"), "max" if tags.get("direction") == "max" else "min")

    def tags(self) -> dict[str, str]:
        """Return the objective as tags of the parent run."""
        return {"objective": self.name, "direction": self.direction}

    def has_value(self, metrics: Mapping[str, float]) -> bool:
        """Return whether an epoch has measured the metric."""
        return self.name in metrics

    def get_value(self, metrics: Mapping[str, float]) -> float:
        """Return the value of the metric in an epoch."""
        return metrics[self.name]

    def better_than(self, value: float, other: float) -> bool:
        """Return whether `value` beats `other`."""
        return value > other if self.direction == "max" else value < other


VAL_LOSS = Objective("val_loss")

# Metric of a trial with several executions: the standard deviation of their scores.
SPREAD = "score_std"


def best_first(scores: Mapping[Key, float], direction: Direction) -> list[Key]:
    """Return the keys ordered by score, the best first; equal scores keep their order."""
    return sorted(scores, key=lambda key: scores[key] if direction == "min" else -scores[key])
