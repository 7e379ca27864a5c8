"""The search space of the documented CNN, the estimated cost of searching it, and the settings of its best trial."""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
from keras_tuner import oracles as kt_oracles
from pydantic import ValidationError

from fakeface_lab.backend import keras_tuner
from fakeface_lab.config import Value
from fakeface_lab.data.sources import DOCUMENTED_NAME
from fakeface_lab.errors import ConfigError
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.suggest.oracles import num_trials_at_most
from fakeface_lab.settings import Hyperparameters, Range, TuneSettings
from fakeface_lab.terminal import format_secs
from fakeface_lab.tracking.lookup import Run, fetch_artifact
from fakeface_lab.tracking.store import join_text

__all__ = ["Plan", "build_space", "num_parameters", "plan_search", "to_hyperparameters", "write_best_settings"]


def build_space(space: Mapping[str, Range], fixed: Mapping[str, Value]) -> keras_tuner.HyperParameters:
    """Return KerasTuner hyperparameters: those in `space` with their ranges, all others fixed.

    Searched ones default to the documented (or otherwise fixed) value, whether or not their range contains it: trial 0
    is always that configuration. A stepped range of fractions becomes a choice of literals, because KerasTuner's
    stepped Float never yields its maximum, and its Gaussian process misreads it.

    Args:
        space: name to range, as in the config file.
        fixed: value of every hyperparameter, which is the default of searched ones.

    Raises:
        ConfigError: an unknown name, or a value that the model does not accept.
    """
    unknown = sorted(set(space) - set(Hyperparameters.model_fields))
    if unknown:
        raise ConfigError(
            f"space.{unknown[0]}: unknown hyperparameter; choose from {', '.join(Hyperparameters.model_fields)}"
        )
    hp = keras_tuner.HyperParameters()
    for name, value in fixed.items():
        if name in space:
            _check(name, space[name])
            _open(hp, name, space[name], value)
        else:
            hp.Fixed(name, value)
    return hp


def to_hyperparameters(values: Mapping[str, Any]) -> Hyperparameters:
    """Return typed hyperparameters from KerasTuner's values; other entries are ignored."""
    return Hyperparameters(**{name: values[name] for name in Hyperparameters.model_fields if name in values})


def _check(name: str, given: Range) -> None:
    for value in given.grid() or (given.min, given.max):
        try:
            Hyperparameters(**{name: value})
        except ValidationError as err:
            allowed = err.errors()[0]["msg"].removeprefix("Input ")
            raise ConfigError(f"space.{name}: {value!r} {allowed}") from err


def _open(hp: keras_tuner.HyperParameters, name: str, given: Range, default: Value) -> None:
    kind = type(default)
    grid = given.grid()
    if grid is not None:
        values: list[Value] = [kind(value) for value in grid]
        if default not in values:
            values = sorted([*values, default]) if not isinstance(default, str) else [*values, default]
        hp.Choice(name, values, default=default, ordered=not isinstance(default, str))
        return
    assert given.min is not None  # `Range` has checked both
    assert given.max is not None
    low, high = min(given.min, float(default)), max(given.max, float(default))
    if kind is int:
        hp.Int(name, int(low), int(high), sampling=given.sampling, default=int(default))
    else:
        hp.Float(name, low, high, sampling=given.sampling, default=float(default))


# A step of the documented CNN, about 104 GFLOP, takes 0.72 to 0.93 s on two threads of a 2020s server CPU.
_FLOP_PER_SEC_AND_THREAD = 65e9
# Starting a process or trial, scoring, figures, and uploading a model.
_OVERHEAD_SECS = 5.0
_NUM_SAMPLES = 200
_WEIGHT_BYTES, _CHECKPOINT_BYTES = 4, 16  # float32; with Adam's two moments and the weights of the best epoch


@dataclass(frozen=True)
class Plan:
    """Estimated cost of a search.

    Attributes:
        num_trials: maximum; the space may be exhausted earlier.
        num_epochs: of all trials together.
        mean_parameters: mean number of parameters of a model in the space.
        most_parameters: largest number of parameters among some hundred random models.
        trial_secs: duration of all trials, with all workers.
        final_secs: duration of the retraining at the end.
        model_bytes: size of the models that stay in the store.
        checkpoint_bytes: largest total size of epoch checkpoints on local disk.
    """

    num_trials: int
    num_epochs: int
    mean_parameters: float
    most_parameters: int
    trial_secs: float
    final_secs: float
    model_bytes: float
    checkpoint_bytes: float

    def lines(self) -> list[str]:
        """Return the estimate as lines of a report."""
        return [
            f"trials    at most {self.num_trials}, the documented configuration first; {self.num_epochs} epochs in all",
            f"size      {self.mean_parameters:,.0f} parameters on average, {self.most_parameters:,} at most",
            f"time      about {format_secs(self.trial_secs)} for the trials and {format_secs(self.final_secs)} for the "
            f"final on a CPU, within a factor of two; a GPU is many times faster",
            f"disk      about {_gigabytes(self.model_bytes)} for models in the store, at most "
            f"{_gigabytes(self.checkpoint_bytes)} for checkpoints while it runs",
        ]


def plan_search(settings: TuneSettings, template: keras_tuner.Oracle, num_images: int, num_threads: int) -> Plan:
    """Return the estimated cost of a search, from random configurations of its space.

    Args:
        settings: of the search.
        template: its oracle.
        num_images: size of the data set.
        num_threads: threads per training.
    """
    num_trials = num_trials_at_most(template)
    assert num_trials is not None  # every algorithm of `tune` is limited
    num_train = num_images * (0.8 if settings.split == "documented" else 0.64)
    num_epochs = _num_epochs(settings, template, num_trials)
    members = _sample(template.hyperparameters)
    mean_parameters = float(np.mean([num_parameters(member, settings.image_size) for member in members]))
    mean_secs = float(np.mean([_epoch_secs(member, settings.image_size, num_train, num_threads) for member in members]))
    documented_secs = _epoch_secs(settings.hyperparameters, settings.image_size, num_train / 0.8, num_threads)
    kept = num_trials
    if settings.keep_models != "all":
        kept = 1 if settings.keep_models == "best" else min(kept, int(settings.keep_models.removeprefix("top-")))
    num_checkpoints = settings.workers
    if isinstance(template, kt_oracles.HyperbandOracle):
        num_checkpoints += max(template._get_size(bracket, 0) for bracket in range(template._get_num_brackets()))
    return Plan(
        num_trials,
        num_epochs,
        mean_parameters,
        max(num_parameters(member, settings.image_size) for member in members),
        (num_epochs * mean_secs + num_trials * _OVERHEAD_SECS) / settings.workers,
        settings.final_seeds * settings.epochs * (documented_secs + mean_secs / 0.8) / settings.workers,
        _WEIGHT_BYTES * (kept + 2 * settings.final_seeds) * mean_parameters,
        _CHECKPOINT_BYTES * num_checkpoints * mean_parameters,
    )


def num_parameters(values: Hyperparameters, image_size_px: int) -> int:
    """Return the number of parameters of `build_model` without building it: a model may be too large to build."""
    f1, f2, units, cells = values.filters_1, values.filters_2, values.dense_units, (image_size_px // 2 // 2) ** 2
    return (27 + 1) * f1 + (9 * f1 + 1) * f2 + (cells * f2 + 1) * units + 2 * (units + 1)


def _epoch_secs(values: Hyperparameters, image_size_px: int, num_train: float, num_threads: int) -> float:
    size, f1, f2 = image_size_px, values.filters_1, values.filters_2
    multiplications = 27 * f1 * size**2 + 9 * f1 * f2 * (size // 2) ** 2 + (size // 4) ** 2 * f2 * values.dense_units
    flop = 2 * 3 * multiplications * num_train  # forward, and twice as much backward
    return flop / (_FLOP_PER_SEC_AND_THREAD * num_threads)


def _num_epochs(settings: TuneSettings, template: keras_tuner.Oracle, num_trials: int) -> int:
    if not isinstance(template, kt_oracles.HyperbandOracle):
        return num_trials * settings.epochs
    # A promoted trial resumes from its parent's epochs; trial 0 has the full budget.
    trained = settings.epochs
    for bracket in range(template._get_num_brackets()):
        before = 0
        for round_num in range(template._get_num_rounds(bracket)):
            epochs = math.ceil(template._get_epochs(bracket, round_num))
            trained += template._get_size(bracket, round_num) * (epochs - before)
            before = epochs
    return int(trained)


def _sample(space: keras_tuner.HyperParameters) -> list[Hyperparameters]:
    rng = np.random.default_rng(0)
    return [
        to_hyperparameters({hp.name: hp.random_sample(int(rng.integers(1, 2**31))) for hp in space.space})
        for _ in range(_NUM_SAMPLES)
    ]


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def write_best_settings(ledger: Ledger, best: Run, folder: Path) -> str:
    """Write `best.toml`, the baseline settings that reproduce the best trial, and return instructions for its use.

    A baseline keeps its last epoch, so its number of epochs is that of the trial's kept epoch: the weights are equal.
    """
    values = json.loads(join_text(best.data.tags, "values"))
    params = best.data.params
    parent = ledger.parent
    with tempfile.TemporaryDirectory() as partial:
        copy = parent.writer.call(lambda: fetch_artifact(parent.store, best, "settings.json", partial))
        recorded = json.loads(copy.read_text(encoding="utf-8"))
    settings: dict[str, str | int | float | None] = {
        "name": f"best of {parent.name}"[:200],
        "data": _data_setting(best),
        "positive": recorded["positive"],
        "split": params["split"],
        "image_size": int(params["image_size"]),
        "seed": int(params["seed"]),
        "epochs": int(best.data.tags["kept_epoch"]),
        "threads": int(params["num_threads"]),
    }
    lines = [
        f"# Trial {best.data.tags['trial']} of the search {json.dumps(parent.name)}, score {best.data.tags['score']}:",
        "#     python -m fakeface_lab.baseline --config best.toml",
        "# trains it again up to its kept epoch; on the same machine the weights are the same.",
        *(f"{key} = {_toml(value)}" for key, value in settings.items() if value is not None),
        "",
        "[hyperparameters]",
        *(f"{key} = {_toml(values[key])}" for key in Hyperparameters.model_fields),
    ]
    (folder / "best.toml").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    return "To retrain the best trial: download `best.toml`, run `python -m fakeface_lab.baseline --config best.toml`."


def _data_setting(run: Run) -> str:
    """Return the `--data` setting that gives the images of a run."""
    dataset = run.inputs.dataset_inputs[0].dataset
    address = json.loads(dataset.source)["uri"]
    if address.startswith("kaggle:"):
        return DOCUMENTED_NAME
    folder = Path(url2pathname(urlparse(address).path))
    # The demo faces are drawn into a cache folder, which is not a setting.
    return "demo" if dataset.name == "demo" and folder.name.startswith("demo-") else str(folder)


def _toml(value: str | int | float) -> str:
    """Return a value as TOML; a JSON string is a TOML string unless it escapes a character as a surrogate pair."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
