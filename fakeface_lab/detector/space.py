"""The search space of the detector, the oracle that samples it, and the settings that retrain the best trial."""

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlparse
from urllib.request import url2pathname

from keras_tuner import oracles as kt_oracles
from pydantic import ValidationError

from fakeface_lab.backend import keras_tuner
from fakeface_lab.config import Value
from fakeface_lab.data.sources import DOCUMENTED_NAME
from fakeface_lab.errors import ConfigError, SearchError
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.suggest.oracles import far_apart_seed, refuse_repeated_choices
from fakeface_lab.settings import Algorithm, Hyperparameters, Range
from fakeface_lab.tracking.lookup import Run, fetch_artifact
from fakeface_lab.tracking.store import join_text
from fakeface_lab.training.objective import VAL_LOSS, Objective

__all__ = [
    "OracleSpec",
    "build_oracle",
    "build_space",
    "num_parameters",
    "to_hyperparameters",
    "write_best_settings",
]


@dataclass(frozen=True)
class OracleSpec:
    """Settings of one of the four named algorithms; `build_oracle` makes the template from them.

    Attributes:
        algorithm: random, grid, bayesian or hyperband.
        space: hyperparameters with ranges and defaults; trial 0 is all defaults.
        objective: the metric that is the score.
        seed: 0 or larger; equal seeds suggest equally. The grid needs none.
        max_trials: most trials to start, trial 0 included; None for no limit.
        num_initial_points: Bayesian: ended trials before the Gaussian process; None for 3 per dimension.
        alpha: Bayesian: expected noise, added to the diagonal of the kernel matrix.
        beta: Bayesian: weight of exploration against exploitation.
        max_epochs: Hyperband: the full budget of one trial, in epochs.
        factor: Hyperband: how much fewer trials and more epochs each round has than the one before.
        iterations: Hyperband: how often all brackets are run.
    """

    algorithm: Algorithm
    space: keras_tuner.HyperParameters
    objective: Objective = VAL_LOSS
    seed: int = 0
    max_trials: int | None = None
    num_initial_points: int | None = None
    # KerasTuner's defaults, like `beta`, `factor` and `iterations`.
    alpha: float = 1e-4
    beta: float = 2.6
    max_epochs: int | None = None
    factor: int = 3
    iterations: int = 1


def build_oracle(spec: OracleSpec) -> keras_tuner.Oracle:
    """Return the template of a named algorithm.

    Raises:
        SearchError: the algorithm is unknown, the seed is negative, Hyperband's settings are missing or too
            small, or a choice in a grid lists a value twice (KerasTuner's grid would never end).
    """
    if spec.seed < 0:
        raise SearchError(f"search seed: {spec.seed} is negative; give 0 or a larger integer")
    shared = {
        "objective": keras_tuner.Objective(spec.objective.name, spec.objective.direction),
        "hyperparameters": spec.space,
        "seed": far_apart_seed(spec.seed),
        # A search over night should not end because three configurations in a row were too large.
        "max_consecutive_failed_trials": sys.maxsize,
    }
    match spec.algorithm:
        case "random":
            return kt_oracles.RandomSearchOracle(max_trials=spec.max_trials, **shared)
        case "grid":
            refuse_repeated_choices(spec.space)
            return kt_oracles.GridSearchOracle(max_trials=spec.max_trials, **shared)
        case "bayesian":
            return kt_oracles.BayesianOptimizationOracle(
                max_trials=spec.max_trials,
                num_initial_points=spec.num_initial_points,
                alpha=spec.alpha,
                beta=spec.beta,
                **shared,
            )
        case "hyperband":
            return _build_hyperband(spec, shared)
    raise SearchError(
        f"search algorithm: {spec.algorithm!r} is unknown; choose one of {', '.join(get_args(Algorithm))}"
    )


def _build_hyperband(spec: OracleSpec, shared: Mapping[str, Any]) -> keras_tuner.Oracle:
    if spec.max_epochs is None or spec.max_epochs < 1 or spec.iterations < 1 or spec.factor < 2:
        raise SearchError(
            f"hyperband: max_epochs {spec.max_epochs}, factor {spec.factor}, iterations {spec.iterations}; "
            "give max_epochs of at least 1, a factor of at least 2 and at least 1 iteration"
        )
    oracle = kt_oracles.HyperbandOracle(
        max_epochs=spec.max_epochs, factor=spec.factor, hyperband_iterations=spec.iterations, **shared
    )
    oracle.max_trials = spec.max_trials  # no argument of its constructor, yet obeyed by every oracle
    return oracle


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
            _declare_searched(hp, name, space[name], value)
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


def _declare_searched(hp: keras_tuner.HyperParameters, name: str, given: Range, default: Value) -> None:
    kind = type(default)
    grid = given.grid()
    if grid is not None:
        # KerasTuner takes values of one type only, and in TOML the 0 beside 0.25 is an integer.
        values: list[Value] = [kind(value) for value in grid]
        if default not in values:
            values = sorted([*values, default]) if not isinstance(default, str) else [*values, default]
        hp.Choice(name, values, default=default, ordered=not isinstance(default, str))
        return
    assert given.min is not None  # `Range` has checked both
    assert given.max is not None
    # KerasTuner accepts a default outside the range, but its Gaussian process then sees a coordinate outside of 0 to 1.
    low, high = min(given.min, float(default)), max(given.max, float(default))
    if kind is int:
        hp.Int(name, int(low), int(high), sampling=given.sampling, default=int(default))
    else:
        hp.Float(name, low, high, sampling=given.sampling, default=float(default))


def num_parameters(values: Hyperparameters, image_size_px: int) -> int:
    """Return the number of parameters of `build_model` without building it: a model may be too large to build."""
    # Each pooling rounds an odd size down. 27: 3 x 3 pixels in 3 channels; + 1: a bias per filter or unit.
    f1, f2, units, cells = values.filters_1, values.filters_2, values.dense_units, (image_size_px // 2 // 2) ** 2
    return (27 + 1) * f1 + (9 * f1 + 1) * f2 + (cells * f2 + 1) * units + 2 * (units + 1)


def write_best_settings(ledger: Ledger, best: Run, folder: Path) -> str:
    """Write `best.toml`, the baseline settings that reproduce the best trial, and return instructions for its use.

    A baseline keeps its last epoch, so its number of epochs is that of the trial's kept epoch: the weights are equal.
    """
    # From the tag, which keeps exact types; MLflow's parameters are text.
    values = json.loads(join_text(best.data.tags, "values"))
    params = best.data.params
    parent = ledger.parent
    with tempfile.TemporaryDirectory() as partial:
        copy = parent.writer.call(lambda: fetch_artifact(parent.store, best, "settings.json", partial))
        recorded = json.loads(copy.read_text(encoding="utf-8"))
    settings: dict[str, str | int | float | None] = {
        # The setting `name` takes at most 200 characters.
        "name": f"best of {parent.name}"[:200],
        "data": _data_setting(best),
        "positive": recorded["positive"],
        "split": params["split"],
        "image_size": int(params["image_size"]),
        "seed": int(params["seed"]),
        "epochs": int(best.data.tags["kept_epoch"]),
        # Another number of threads changes results from the seventh digit on.
        "threads": int(params["num_threads"]),
        # Trials of older searches have no such parameter.
        "step": params.get("step", "plain"),
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
    # The name of the data folder may contain bytes that are not UTF-8.
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
