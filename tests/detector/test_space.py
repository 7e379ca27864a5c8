"""The space of a search holds the documented values, counts parameters as the model does, and refuses what is wrong."""

from typing import Any

import pytest

from fakeface_lab.detector.model import build_model, fixed_hyperparameters
from fakeface_lab.detector.space import OracleSpec, build_oracle, build_space, num_parameters, to_hyperparameters
from fakeface_lab.errors import ConfigError, SearchError
from fakeface_lab.settings import DEFAULT_SPACE, Hyperparameters, Range
from tests.search.suggest.simulated_search import small_space, spec_of

DOCUMENTED = Hyperparameters().model_dump()


def space(**ranges: Any) -> Any:
    return build_space({name: Range(**given) for name, given in ranges.items()}, DOCUMENTED)


def test_what_is_not_opened_is_documented_and_the_defaults_are_trial_0() -> None:
    hp = build_space(DEFAULT_SPACE, DOCUMENTED)
    assert to_hyperparameters(hp.values) == Hyperparameters()
    assert {entry.name for entry in hp.space if type(entry).__name__ != "Fixed"} == set(DEFAULT_SPACE)


def test_a_stepped_range_reaches_its_maximum_and_keeps_the_documented_value() -> None:
    hp = space(dense_dropout={"min": 0.0, "max": 0.6, "step": 0.2}, filters_1={"min": 16, "max": 48, "step": 16})
    values = {entry.name: entry.values for entry in hp.space if type(entry).__name__ == "Choice"}
    assert values == {"dense_dropout": [0.0, 0.2, 0.4, 0.5, 0.6], "filters_1": [16, 32, 48]}


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"filter": {"values": [1, 2]}}, "space.filter: unknown hyperparameter; choose from filters_1"),
        ({"filters_1": {"values": [16, 0]}}, "space.filters_1: 0 should be greater than or equal to 1"),
        ({"filters_1": {"min": 16, "max": 32, "step": 0.5}}, "space.filters_1: 16.5 should be a valid integer"),
        ({"conv_dropout": {"min": 0.0, "max": 1.5}}, "space.conv_dropout: 1.5 should be less than 1"),
        ({"precision": {"min": 0, "max": 1}}, "space.precision: 0.0 should be 'float32' or 'mixed_bfloat16'"),
    ],
)
def test_a_wrong_space_is_refused(ranges: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(**ranges)


@pytest.mark.parametrize("image_size", [24, 37])
def test_parameters_are_counted_as_the_model_has_them(image_size: int) -> None:
    values = Hyperparameters(filters_1=5, filters_2=7, dense_units=11)
    model = build_model(fixed_hyperparameters(values, image_size, 0))
    assert num_parameters(values, image_size) == model.count_params()
    assert num_parameters(Hyperparameters(), 300) == 46_099_778


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (spec_of("random", seed=-1), "search seed: -1 is negative; give 0 or a larger integer"),
        (
            spec_of("hyperband", max_epochs=None),
            "hyperband: max_epochs None, .*give max_epochs of at least 1",
        ),
        (spec_of("hyperband", factor=1), "a factor of at least 2"),
        (spec_of("hyperband", iterations=0), "at least 1 iteration"),
    ],
)
def test_wrong_settings_are_refused(spec: OracleSpec, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        build_oracle(spec)


def test_an_unknown_algorithm_is_refused() -> None:
    unknown: Any = "genetic"
    message = "algorithm: 'genetic' is unknown; choose one of random, grid, bayesian, hyperband"
    with pytest.raises(SearchError, match=message):
        build_oracle(OracleSpec(unknown, small_space()))
