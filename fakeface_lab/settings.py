"""The settings of the programs: each with its unit, range and default, as printed by `--help`."""

import math
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg, PydanticBaseSettingsSource

from fakeface_lab.config import Settings, Value

__all__ = [
    "DEFAULT_SPACE",
    "Algorithm",
    "AuditProgramSettings",
    "BaselineSettings",
    "CompareSettings",
    "DataSettings",
    "DoctorSettings",
    "EvaluateSettings",
    "Hyperparameters",
    "PredictSettings",
    "Range",
    "RunSettings",
    "TrainingSettings",
    "TuneSettings",
]

Algorithm = Literal["random", "grid", "bayesian", "hyperband"]
ObjectiveName = Literal["val_loss", "val_accuracy", "worst_stress", "mean_stress"]


class Hyperparameters(BaseModel):
    """The hyperparameters that a search may vary. Every default is the documented value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    filters_1: int = Field(32, ge=1, le=1024, description="filters of the first convolution")
    filters_2: int = Field(64, ge=1, le=1024, description="filters of the second convolution")
    dense_units: int = Field(128, ge=1, le=8192, description="units of the hidden dense layer")
    conv_dropout: float = Field(0.25, ge=0, lt=1, description="dropout rate after each pooling layer")
    dense_dropout: float = Field(0.5, ge=0, lt=1, description="dropout rate before the last layer")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="Adam's learning rate")
    batch_size: int = Field(32, ge=1, le=4096, description="images per training step")
    # Off, as documented. In a search for robustness the best trial had none, and at 0.75 and more the accuracy on
    # unchanged images was 0.86 to 0.93 instead of 0.97 to 1.00 (docs/truth.md).
    augmentation: float = Field(
        0.0, ge=0, le=2, description="strength of the declared augmentation: 0 is off (documented), 1 is as declared"
    )
    # bfloat16 halves the time of a step, but on synthetic data it ended at a loss of ln 2 where float32 did not.
    precision: Literal["float32", "mixed_bfloat16"] = Field("float32", description="dtype policy of the layers")


class RunSettings(Settings):
    """Settings of every program that reads images and writes a run."""

    data: str = Field(
        "auto",
        description="auto, hardfakevsrealfaces, demo, or a folder with two class folders",
    )
    positive: str | None = Field(
        None,
        description="class folder to detect (documented: fake); required for unknown folder names",
    )
    image_size: int = Field(300, ge=16, le=2048, description="edge length of the square model input, px")
    split: Literal["documented", "sealed"] = Field(
        "documented", description="documented: 80/20, validated on the test images; sealed: 64/16/20"
    )
    # NumPy's and scikit-learn's generators take 32 bits, and a search adds the number of a final to its seed.
    seed: int = Field(0, ge=0, lt=2**31, description="seed of split, initial weights, data order and dropout")
    name: str | None = Field(None, min_length=1, max_length=200, description="name of the run or search")


class DataSettings(RunSettings):
    """Load images, print what they are and fill the cache of decoded pixels (`python -m fakeface_lab.data`)."""

    clear_cache: bool = Field(False, description="delete all cached pixels and print how many bytes that freed")


Step = Literal["plain", "fast"]


class TrainingSettings(RunSettings):
    """Settings of every program that trains."""

    epochs: int = Field(10, ge=1, le=10_000, description="epochs to train")
    threads: int = Field(
        0, ge=0, le=1024, description="threads per training; equal results need equal numbers of threads; 0: all cores"
    )
    step: Step = Field(
        "plain",
        description="plain: Keras's training step; fast: the same mathematics in less time, equal to about 1e-5",
    )


class BaselineSettings(TrainingSettings):
    """Train and track the documented CNN (`python -m fakeface_lab.baseline`)."""

    hyperparameters: Hyperparameters = Field(default=Hyperparameters(), description="documented values unless changed")
    resume: bool = Field(False, description="resume the interrupted run with the same settings, if there is one")


class Range(BaseModel):
    """The values of one hyperparameter: `{ values = [...] }`, or `{ min = , max = , step = , sampling = }`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: tuple[Value, ...] | None = Field(None, min_length=2, description="the values to choose from")
    min: float | None = Field(None, description="smallest value")
    max: float | None = Field(None, description="largest value, included")
    step: float | None = Field(None, gt=0, description="distance between values; none: any value in between")
    sampling: Literal["linear", "log"] = Field("linear", description="log: every power of ten is equally likely")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.values is None) == (self.min is None and self.max is None):
            raise ValueError("give either values, or min and max")
        if self.values is not None and len(set(self.values)) < len(self.values):
            raise ValueError("lists a value twice")
        if self.values is None:
            if self.min is None or self.max is None or self.min >= self.max:
                raise ValueError("min and max are both required, and min must be smaller")
            if self.sampling == "log" and self.min <= 0:
                raise ValueError("log sampling needs a min above 0")
            # KerasTuner would multiply by the step, not add it.
            if self.sampling == "log" and self.step is not None:
                raise ValueError("log sampling takes no step; list the values instead")
        return self

    def grid(self) -> tuple[Value, ...] | None:
        """Return all values, or None for a continuous range."""
        if self.values is not None:
            return self.values
        if self.step is None or self.min is None or self.max is None:
            return None
        # 0.3 / 0.1 is 2.9999999999999996: without the margin a range of 0 to 0.3 would lose its maximum.
        count = math.floor((self.max - self.min) / self.step + 1e-9) + 1
        # Rounded so that 0.1 + 2 * 0.1 gives 0.3.
        return tuple(round(self.min + index * self.step, 10) for index in range(count))


# At most about twice the compute per step of the documented network.
DEFAULT_SPACE = {
    "filters_1": Range(values=(16, 24, 32, 48)),
    "filters_2": Range(values=(32, 48, 64, 96)),
    "dense_units": Range(values=(64, 128, 192, 256)),
    "conv_dropout": Range(values=(0.0, 0.1, 0.25, 0.4)),
    "dense_dropout": Range(values=(0.0, 0.25, 0.5, 0.7)),
    "learning_rate": Range(min=3e-5, max=1e-3, sampling="log"),
}


class TuneSettings(TrainingSettings):
    """Search the hyperparameters of the documented CNN (`python -m fakeface_lab.tune`)."""

    split: Literal["documented", "sealed"] = Field(
        "sealed", description="sealed: 64/16/20, the test images are unused until the end; documented: 80/20"
    )
    epochs: int = Field(5, ge=1, le=10_000, description="epochs per trial")
    # 0.7 of the time (docs/performance.md). Trials are compared with each other, never with the documented digits.
    step: Step = Field("fast", description="plain: Keras's training step; fast: the same mathematics in less time")
    algorithm: Algorithm = Field("bayesian", description="KerasTuner oracle that suggests trials")
    trials: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="number of trials, including the documented one (default 12; Hyperband sets its own)",
    )
    hours: float | None = Field(None, gt=0, description="stop after this many hours, over all restarts")
    objective: ObjectiveName = Field(
        "val_loss",
        description="metric to optimize; worst_stress and mean_stress: balanced accuracy on changed images",
    )
    # On two cores, two workers of one thread each train 4 to 6 % more steps than one of two threads, but need twice the
    # memory.
    workers: int = Field(1, ge=1, le=256, description="trials to run in parallel")
    engine: Literal["inline", "local", "ray"] = Field(
        "local",
        description="local: worker processes, so a crash costs one attempt; ray: nodes of a cluster; inline: this "
        "process",
    )
    ray_address: str | None = Field(
        None,
        description="ray: cluster to join, HOST:PORT or auto (default: RAY_ADDRESS, else one of this machine alone)",
    )
    cpus_per_trial: float | None = Field(
        None, gt=0, le=1024, description="ray: cores to reserve for a trial (default: its threads)"
    )
    gpus_per_trial: float | None = Field(
        None, ge=0, le=1, description="share of a GPU for a trial (default: one, if there are any)"
    )
    memory_per_trial: float | None = Field(
        None, gt=0, description="end a trial that uses more memory than this, GB; ray also reserves it"
    )
    checkpoint_storage: str | None = Field(
        None,
        description="path or URL that all nodes can write, for the checkpoints of unfinished trials; without it a "
        "trial whose node is lost starts again",
    )
    # With three seeds per side the verdict on two equal configurations is wrong in 0.6 % of cases, with two in 4.3 %
    # (docs/truth.md).
    final_seeds: int = Field(
        3,
        ge=0,
        le=100,
        description="number of seeds to retrain the best and the documented configuration with; 0: no final trainings",
    )
    # All 14 models of a search on the documented images took 2.7 GB (docs/search.md).
    keep_models: str = Field(
        "all", pattern="^(all|best|top-[1-9][0-9]*)$", description="trials whose models to keep: all, best or top-K"
    )
    # KerasTuner's 3 per hyperparameter are at least 18 for the six of the default space: a search of 12 stays random.
    initial_points: int | None = Field(
        None,
        ge=1,
        description="Bayesian: random trials before the surrogate model is used (KerasTuner: 3 per hyperparameter)",
    )
    hang_secs: float = Field(1800, gt=0, description="kill a worker after this long without a training step, s")
    restart: bool = Field(False, description="start the search over under the same name; deletes nothing")
    dry_run: bool = Field(False, description="print space, trials, time and disk space; train nothing")
    hyperparameters: Hyperparameters = Field(
        default=Hyperparameters(), description="trial 0 and whatever is not searched; default: documented values"
    )
    space: dict[str, Range] = Field(default=DEFAULT_SPACE, description="search space (config file only)")


class AuditProgramSettings(RunSettings):
    """Audit a data set for shortcuts (`python -m fakeface_lab.audit`); thresholds as in `evaluation.audit.audit`."""

    warn_auc: float = Field(0.70, ge=0.5, le=1, description="AUC at which a probe counts as separating the classes")
    fail_auc: float = Field(0.90, ge=0.5, le=1, description="AUC at which a shortcut probe makes results void")
    significance: float = Field(0.0001, gt=0, lt=1, description="largest p-value of a finding, Holm-corrected")
    min_slice_fraction: float = Field(0.01, ge=0, le=1, description="smallest share of all images in a slice")
    min_slice_purity: float = Field(0.95, ge=0, le=1, description="smallest lower bound of the purity of a pure slice")
    min_end_purity: float = Field(
        0.9, ge=0, le=1, description="the same for the images with the most extreme probe scores"
    )
    fail_slice_fraction: float = Field(
        0.5, ge=0, le=1, description="share of images in pure slices that makes results void"
    )
    max_bits: int = Field(10, ge=0, le=64, description="largest pHash distance of near duplicates, bits of 64")
    min_correlation: float = Field(
        0.9, ge=0, le=1, description="smallest correlation of the details of near duplicates"
    )


class EvaluateSettings(Settings):
    """Evaluate a tracked model (`python -m fakeface_lab.evaluate`)."""

    model: CliPositionalArg[str] = Field(description="run id, run name, models:/..., NAME@ALIAS or alias")
    data: str | None = Field(
        None, description="hardfakevsrealfaces, demo, or a folder; default: the model's own test split"
    )
    positive: str | None = Field(None, description="class folder to detect; required for unknown folder names")
    stress: bool = Field(False, description="also score the images under JPEG, blur, crop, padding and other changes")
    name: str | None = Field(None, min_length=1, max_length=200, description="name of the run")
    threads: int = Field(0, ge=0, le=1024, description="threads of the model; 0: all cores")


class PredictSettings(Settings):
    """Apply a tracked model to image files (`python -m fakeface_lab.predict`)."""

    model: CliPositionalArg[str] = Field(description="run id, run name, models:/..., NAME@ALIAS or alias")
    files: CliPositionalArg[list[str]] = Field(min_length=1, description="image files")
    # Not named `json`, which would hide a method of pydantic's.
    as_json: bool = Field(False, alias="json", description="print JSON instead of a table")
    threads: int = Field(0, ge=0, le=1024, description="threads of the model; 0: all cores")


class CompareSettings(Settings):
    """Compare tracked runs and searches (`python -m fakeface_lab.compare`)."""

    runs: CliPositionalArg[list[str]] = Field([], description="names or ids of searches and runs; none: the latest")
    require: Literal["better"] | None = Field(
        None,
        description="better: exit code 3 unless the first run (or a search's best) is better than all others",
    )


class DoctorSettings(Settings):
    """Check store, machine and cluster before a search (`python -m fakeface_lab.doctor`)."""

    config: Path | None = Field(
        None, description="TOML file of the search to come: is there room for it, and does its store answer"
    )
    ray_address: str | None = Field(
        None, description="Ray cluster to check, HOST:PORT or ray://HOST:PORT; default: RAY_ADDRESS"
    )
    as_json: bool = Field(False, alias="json", description="print JSON instead of lines")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the config file out: it holds the settings of a search."""
        return init_settings, env_settings
