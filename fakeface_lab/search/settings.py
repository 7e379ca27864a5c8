"""Settings of `python -m fakeface_lab.tune`."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fakeface_lab.config import Hyperparameters, TrainingSettings

__all__ = ["DEFAULT_SPACE", "Algorithm", "Range", "TuneSettings", "Value"]

Algorithm = Literal["random", "grid", "bayesian", "hyperband"]
Objective = Literal["val_loss", "val_accuracy", "worst_stress", "mean_stress"]
Value = int | float | str


class Range(BaseModel):
    """What one hyperparameter may be: `{ values = [...] }`, or `{ min = , max = , step = , sampling = }`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: tuple[Value, ...] | None = Field(None, min_length=2, description="the values to choose from")
    min: float | None = Field(None, description="smallest value")
    max: float | None = Field(None, description="largest value, included")
    step: float | None = Field(None, gt=0, description="distance of two values; none: any value between")
    sampling: Literal["linear", "log"] = Field("linear", description="log: each power of ten is as likely")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.values is None) == (self.min is None and self.max is None):
            raise ValueError("give either values, or min and max")
        if self.values is not None and len(set(self.values)) < len(self.values):
            raise ValueError("lists a value twice")
        if self.values is None:
            if self.min is None or self.max is None or self.min >= self.max:
                raise ValueError("min and max are both needed, min the smaller one")
            if self.sampling == "log" and self.min <= 0:
                raise ValueError("log sampling needs a min above 0")
            if self.sampling == "log" and self.step is not None:
                raise ValueError("log sampling takes no step; list the values instead")
        return self

    def grid(self) -> tuple[Value, ...] | None:
        """Return all values, or None where there is a continuum."""
        if self.values is not None:
            return self.values
        if self.step is None or self.min is None or self.max is None:
            return None
        count = math.floor((self.max - self.min) / self.step + 1e-9) + 1
        # Rounded, so that 0.1 + 2 * 0.1 is the 0.3 that a reader sees.
        return tuple(round(self.min + index * self.step, 10) for index in range(count))


# At most about twice the documented network's work a step.
DEFAULT_SPACE = {
    "filters_1": Range(values=(16, 24, 32, 48)),
    "filters_2": Range(values=(32, 48, 64, 96)),
    "dense_units": Range(values=(64, 128, 192, 256)),
    "conv_dropout": Range(values=(0.0, 0.1, 0.25, 0.4)),
    "dense_dropout": Range(values=(0.0, 0.25, 0.5, 0.7)),
    "learning_rate": Range(min=3e-5, max=1e-3, sampling="log"),
}


class TuneSettings(TrainingSettings):
    """Settings of `python -m fakeface_lab.tune`."""

    split: Literal["documented", "sealed"] = Field(
        "sealed", description="sealed: 64/16/20, the test images stay closed until the end; documented: 80/20"
    )
    epochs: int = Field(5, ge=1, le=10_000, description="passes over the training images, a trial")
    algorithm: Algorithm = Field("bayesian", description="which KerasTuner oracle suggests")
    trials: int | None = Field(
        None, ge=1, le=10_000, description="number of trials, the documented one included (12; Hyperband has its own)"
    )
    hours: float | None = Field(None, gt=0, description="stop after so many hours, over all restarts")
    objective: Objective = Field(
        "val_loss",
        description="what makes a trial better; worst_stress and mean_stress: balanced accuracy on changed images",
    )
    workers: int = Field(1, ge=1, le=256, description="trials at the same time, one GPU each where there are any")
    engine: Literal["inline", "local"] = Field(
        "local", description="local: worker processes, a crash costs one attempt; inline: this process"
    )
    final_seeds: int = Field(
        3, ge=0, le=100, description="seeds to retrain the best and the documented configuration with; 0: no final"
    )
    keep_models: str = Field("all", pattern="^(all|best|top-[1-9][0-9]*)$", description="all, best, or top-K trials")
    initial_points: int | None = Field(
        None, ge=1, description="Bayesian: random trials before the model guides (KerasTuner: 3 a hyperparameter)"
    )
    hang_secs: float = Field(1800, gt=0, description="a worker without a training step for so long is killed")
    restart: bool = Field(False, description="start the search over under the same name; nothing is deleted")
    dry_run: bool = Field(False, description="show space, trials, time and disk; train nothing")
    hyperparameters: Hyperparameters = Field(
        default=Hyperparameters(), description="trial 0, and what is not searched: the documented values"
    )
    space: dict[str, Range] = Field(default=DEFAULT_SPACE, description="what is searched (config file)")
