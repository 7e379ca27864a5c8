"""Settings of every program: what it takes, with unit, range and default, which is what `--help` prints."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import CliPositionalArg

from fakeface_lab.config import Settings

__all__ = [
    "DEFAULT_SPACE",
    "AuditProgramSettings",
    "BaselineSettings",
    "CompareSettings",
    "DataSettings",
    "EvaluateSettings",
    "Hyperparameters",
    "Range",
    "RunSettings",
    "TrainingSettings",
    "TuneSettings",
    "Value",
]

Algorithm = Literal["random", "grid", "bayesian", "hyperband"]
Objective = Literal["val_loss", "val_accuracy", "worst_stress", "mean_stress"]
Value = int | float | str


class Hyperparameters(BaseModel):
    """What the search may vary. Every default is the documented value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    filters_1: int = Field(32, ge=1, le=1024, description="filters of the first convolution")
    filters_2: int = Field(64, ge=1, le=1024, description="filters of the second convolution")
    dense_units: int = Field(128, ge=1, le=8192, description="units of the hidden dense layer")
    conv_dropout: float = Field(0.25, ge=0, lt=1, description="dropped fraction after each pooling")
    dense_dropout: float = Field(0.5, ge=0, lt=1, description="dropped fraction before the last layer")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="Adam's learning rate")
    batch_size: int = Field(32, ge=1, le=4096, description="images a training step")
    augmentation: float = Field(
        0.0, ge=0, le=2, description="strength of the declared augmentation: 0 off (documented), 1 as declared"
    )
    precision: Literal["float32", "mixed_bfloat16"] = Field("float32", description="dtype policy of the layers")


class RunSettings(Settings):
    """What every program takes that reads images and writes a run."""

    data: str = Field(
        "auto",
        description="auto, hardfakevsrealfaces, demo, or a folder with two class folders",
    )
    positive: str | None = Field(
        None,
        description="class folder to detect (the documented one is fake); needed for unknown folder names",
    )
    image_size: int = Field(300, ge=16, le=2048, description="edge of the square pictures the model sees, px")
    split: Literal["documented", "sealed"] = Field(
        "documented", description="documented: 80/20, validated on the test images; sealed: 64/16/20"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of split, initial weights, data order and dropout")
    name: str | None = Field(None, min_length=1, max_length=200, description="name of the run or search")


class DataSettings(RunSettings):
    """Settings of `python -m fakeface_lab.data`."""

    clear_cache: bool = Field(False, description="delete all cached pixels and say how many bytes that freed")


class TrainingSettings(RunSettings):
    """What every program takes that trains."""

    epochs: int = Field(10, ge=1, le=10_000, description="passes over the training images")
    threads: int = Field(
        0, ge=0, le=1024, description="threads of one training, equal results need equal threads, 0: all cores"
    )


class BaselineSettings(TrainingSettings):
    """Settings of `python -m fakeface_lab.baseline`."""

    hyperparameters: Hyperparameters = Field(
        default=Hyperparameters(), description="the documented values, unless changed"
    )
    resume: bool = Field(False, description="continue the interrupted run with the same settings, if there is one")


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


class AuditProgramSettings(RunSettings):
    """Settings of `python -m fakeface_lab.audit`; the thresholds are those of `evaluation.audit.AuditSettings`."""

    warn_auc: float = Field(0.70, ge=0.5, le=1, description="AUC from which a probe separates the classes")
    fail_auc: float = Field(0.90, ge=0.5, le=1, description="AUC from which a shortcut probe makes results void")
    significance: float = Field(0.0001, gt=0, lt=1, description="largest p-value, Holm-corrected, of a finding")
    min_slice_fraction: float = Field(0.01, ge=0, le=1, description="share of all images that a slice must hold")
    min_slice_purity: float = Field(0.95, ge=0, le=1, description="lower end of the purity of a pure slice")
    min_end_purity: float = Field(0.9, ge=0, le=1, description="the same among the images a probe is surest of")
    fail_slice_fraction: float = Field(0.5, ge=0, le=1, description="share of images in pure slices that is void")
    max_bits: int = Field(10, ge=0, le=64, description="largest pHash distance of one picture twice, bits of 64")
    min_correlation: float = Field(0.9, ge=0, le=1, description="correlation of details of one picture twice")


class EvaluateSettings(Settings):
    """Settings of `python -m fakeface_lab.evaluate`."""

    model: CliPositionalArg[str] = Field(description="run id, run name, models:/..., NAME@ALIAS or alias")
    data: str | None = Field(None, description="hardfakevsrealfaces, demo, or a folder; default: the own test split")
    positive: str | None = Field(None, description="class folder to detect, for folder names that do not say it")
    stress: bool = Field(False, description="also score the images under JPEG, blur, crop, padding and the like")
    name: str | None = Field(None, min_length=1, max_length=200, description="name of the run")
    threads: int = Field(0, ge=0, le=1024, description="threads of the model; 0: all cores")


class CompareSettings(Settings):
    """Settings of `python -m fakeface_lab.compare`."""

    runs: CliPositionalArg[list[str]] = Field([], description="names or ids of searches and runs; none: the latest")
    require: Literal["better"] | None = Field(
        None, description="better: exit code 3 unless the first run is better than all others (or a search's winner)"
    )
