"""The search space: what the `[space]` table of a config file opens, and everything else fixed as documented."""

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
from fakeface_lab.data.sources import DOCUMENTED_NAME
from fakeface_lab.errors import ConfigError
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.suggest.oracles import Value, num_trials_at_most
from fakeface_lab.settings import Hyperparameters, Range, TuneSettings
from fakeface_lab.terminal import format_secs
from fakeface_lab.tracking.lookup import Run
from fakeface_lab.tracking.store import join_text

__all__ = ["Plan", "build_space", "num_parameters", "plan_search", "to_hyperparameters", "write_best_settings"]


def build_space(space: Mapping[str, Range], fixed: Mapping[str, Value]) -> keras_tuner.HyperParameters:
    """Return KerasTuner's container: opened hyperparameters with their ranges, all others fixed.

    Opened ones have the documented (or otherwise fixed) value as their default, whether or not their range holds
    it: trial 0 is always that configuration. A stepped range of fractions becomes a choice of literals, because
    KerasTuner's stepped Float never yields its maximum, and its Gaussian process misreads it.

    Args:
        space: name to range, as the config file has it.
        fixed: value of every hyperparameter that is not opened; also the defaults of the opened ones.

    Raises:
        ConfigError: an unknown name, or a value that the model does not take.
    """
    unknown = sorted(set(space) - set(Hyperparameters.model_fields))
    if unknown:
        raise ConfigError(
            f"space.{unknown[0]}: unknown hyperparameter; there are {', '.join(Hyperparameters.model_fields)}"
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
    """Return the typed hyperparameters among KerasTuner's values."""
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
_FLOP_A_SEC_AND_THREAD = 65e9
# Start of a process or a trial, scores, figures and the upload of a model.
_OVERHEAD_SECS = 5.0
_NUM_SAMPLES = 200
_WEIGHT_BYTES, _CHECKPOINT_BYTES = 4, 16  # float32; with Adam's two moments and the best epoch's weights


@dataclass(frozen=True)
class Plan:
    """What a search will cost.

    Attributes:
        num_trials: at most; the space may be exhausted before.
        num_epochs: of all trials.
        mean_parameters: of a model in the space.
        most_parameters: of the largest one among some hundred random ones.
        trial_secs: all trials together, on all workers.
        final_secs: the retraining at the end.
        model_bytes: models that stay in the store.
        checkpoint_bytes: epoch checkpoints on local disk at their most.
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
        """Return the plan in words."""
        return [
            f"trials    at most {self.num_trials}, the documented configuration first; {self.num_epochs} epochs in all",
            f"size      {self.mean_parameters:,.0f} parameters on average, {self.most_parameters:,} at most",
            f"time      about {format_secs(self.trial_secs)} for the trials and {format_secs(self.final_secs)} for the "
            f"final on a CPU, to a factor of two; a GPU is many times faster",
            f"disk      about {_gigabytes(self.model_bytes)} for models in the store, at most "
            f"{_gigabytes(self.checkpoint_bytes)} for checkpoints while it runs",
        ]


def plan_search(settings: TuneSettings, template: keras_tuner.Oracle, num_images: int, num_threads: int) -> Plan:
    """Return what the search will cost, from random members of its space.

    Args:
        settings: of the search.
        template: its oracle.
        num_images: of the data set.
        num_threads: of one training.
    """
    num_trials = num_trials_at_most(template)
    assert num_trials is not None  # each algorithm of `tune` has its limit
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
    """Return the parameters of `model.build_model` without building it: a model may be too large to build."""
    f1, f2, units, cells = values.filters_1, values.filters_2, values.dense_units, (image_size_px // 2 // 2) ** 2
    return (27 + 1) * f1 + (9 * f1 + 1) * f2 + (cells * f2 + 1) * units + 2 * (units + 1)


def _epoch_secs(values: Hyperparameters, image_size_px: int, num_train: float, num_threads: int) -> float:
    size, f1, f2 = image_size_px, values.filters_1, values.filters_2
    multiplications = 27 * f1 * size**2 + 9 * f1 * f2 * (size // 2) ** 2 + (size // 4) ** 2 * f2 * values.dense_units
    flop = 2 * 3 * multiplications * num_train  # forward, and twice as much backward
    return flop / (_FLOP_A_SEC_AND_THREAD * num_threads)


def _num_epochs(settings: TuneSettings, template: keras_tuner.Oracle, num_trials: int) -> int:
    if not isinstance(template, kt_oracles.HyperbandOracle):
        return num_trials * settings.epochs
    # A promoted trial goes on from its parent's epochs; trial 0 has the full budget.
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
    """Write `best.toml`, the settings that train the best trial again, and return what a reader is to do with it.

    The baseline keeps its last epoch, so the epochs are those up to the one that the trial kept: equal weights.
    """
    values = json.loads(join_text(best.data.tags, "values"))
    params = best.data.params
    parent = ledger.parent
    with tempfile.TemporaryDirectory() as partial:
        client = parent.store.client
        copy = parent.writer.call(lambda: client.download_artifacts(best.info.run_id, "settings.json", partial))
        recorded = json.loads(Path(copy).read_text(encoding="utf-8"))
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
        "# trains it again up to the epoch whose weights it kept; on the same machine to the same weights.",
        *(f"{key} = {_toml(value)}" for key, value in settings.items() if value is not None),
        "",
        "[hyperparameters]",
        *(f"{key} = {_toml(values[key])}" for key in Hyperparameters.model_fields),
    ]
    (folder / "best.toml").write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
    return "Train the winner again: download `best.toml`, then `python -m fakeface_lab.baseline --config best.toml`."


def _data_setting(run: Run) -> str:
    """Return what to say for `--data` to get the images of a run."""
    dataset = run.inputs.dataset_inputs[0].dataset
    address = json.loads(dataset.source)["uri"]
    if address.startswith("kaggle:"):
        return DOCUMENTED_NAME
    folder = Path(url2pathname(urlparse(address).path))
    # The demo faces are drawn into a cache folder, whose place is no setting.
    return "demo" if dataset.name == "demo" and folder.name.startswith("demo-") else str(folder)


def _toml(value: str | int | float) -> str:
    """Return a value as TOML; JSON's strings are TOML's, as long as no letter is split into two escapes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
