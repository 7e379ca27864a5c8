"""The space of a search holds the documented values, counts parameters as the model does, and refuses what is wrong."""

from pathlib import Path
from typing import Any

import pytest

from fakeface_lab.data.images import load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import make_split
from fakeface_lab.detector.model import build_model, fixed_hyperparameters
from fakeface_lab.detector.space import build_space, num_parameters, to_hyperparameters
from fakeface_lab.detector.work import DetectorWork
from fakeface_lab.errors import ConfigError, ModelError
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.settings import DEFAULT_SPACE, Hyperparameters, Range
from fakeface_lab.training.checkpoint import inherit_checkpoint
from fakeface_lab.training.objective import VAL_LOSS
from fakeface_lab.training.outcome import Outcome

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


class Silent:
    def step_ended(self, epoch: int, step: int, num_steps: int) -> None: ...

    def epoch_ended(self, record: Any) -> None: ...


@pytest.fixture
def work(make_images: Any, project: Path) -> DetectorWork:
    images = load_images(find_source(str(make_images()), None, project, 24), 24)
    return DetectorWork(images, make_split(images, "sealed", 0), VAL_LOSS, (), 1, {})


def test_a_model_larger_than_the_memory_is_refused_before_it_is_built(work: DetectorWork, tmp_path: Path) -> None:
    values = {**DOCUMENTED, "filters_2": 1024, "dense_units": 8192}
    huge = DetectorWork(**{**vars(work), "images": _SizedLike(work.images, 2048)})
    with pytest.raises(ModelError, match=r"model too large: 2,199,\d+,\d+,?\d* parameters need .* GB to train"):
        huge(Assignment("trial-1", values, 1, 0), tmp_path, Silent())


class _SizedLike:
    """The images, as if they were larger."""

    def __init__(self, images: Any, size_px: int) -> None:
        self._images, self.size_px = images, size_px

    def __getattr__(self, name: str) -> Any:
        return getattr(self._images, name)


def test_a_promoted_training_is_bit_equal_to_one_from_scratch(work: DetectorWork, tmp_path: Path) -> None:
    values = {**DOCUMENTED, "filters_1": 4, "filters_2": 4, "dense_units": 8, "batch_size": 8, "learning_rate": 0.003}
    folders = {name: tmp_path / name for name in ("parent", "promoted", "scratch")}
    for folder in folders.values():
        folder.mkdir()
    work(Assignment("trial-1", values, 2, 0), folders["parent"], Silent())
    inherit_checkpoint(folders["parent"], folders["promoted"])
    outcomes: list[Outcome] = [
        work(Assignment("trial-2", values, 5, 0), folders[name], Silent()) for name in ("promoted", "scratch")
    ]
    measured = {"epoch_secs", "train_secs", "peak_rss_bytes"}
    for first, second in zip(outcomes[0].records, outcomes[1].records, strict=True):
        assert {key: first.metrics[key] for key in set(first.metrics) - measured} == {
            key: second.metrics[key] for key in set(second.metrics) - measured
        }
    assert outcomes[0].kept_epoch == outcomes[1].kept_epoch
    scores = [(folders[name] / "artifacts" / "scores.csv").read_bytes() for name in ("promoted", "scratch")]
    assert scores[0] == scores[1]
