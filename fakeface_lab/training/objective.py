"""What a training or a search optimizes: a metric and the direction in which it is better. Loads no TensorFlow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

__all__ = ["VAL_LOSS", "Direction", "Objective", "best_first"]

Direction = Literal["min", "max"]
Key = TypeVar("Key")


@dataclass(frozen=True)
class Objective:
    """A metric of an epoch; the part of `keras_tuner.Objective` that judges one, without TensorFlow.

    Attributes:
        name: of the metric.
        direction: `min` if a smaller value is better, `max` if a larger one is.
    """

    name: str
    direction: Direction = "min"

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> "Objective":
        """Return what the parent run of a search says that it optimizes."""
        return cls(tags.get("objective", "score"), "max" if tags.get("direction") == "max" else "min")

    def tags(self) -> dict[str, str]:
        """Return it as tags of the parent run."""
        return {"objective": self.name, "direction": self.direction}

    def has_value(self, metrics: Mapping[str, float]) -> bool:
        """Return whether an epoch has measured it."""
        return self.name in metrics

    def get_value(self, metrics: Mapping[str, float]) -> float:
        """Return its value in an epoch."""
        return metrics[self.name]

    def better_than(self, value: float, other: float) -> bool:
        """Return whether `value` beats `other`."""
        return value > other if self.direction == "max" else value < other


VAL_LOSS = Objective("val_loss")


def best_first(scores: Mapping[Key, float], direction: Direction) -> list[Key]:
    """Return the keys by their scores, the best first; equal scores keep their order."""
    return sorted(scores, key=lambda key: scores[key] if direction == "min" else -scores[key])
