"""A model that cannot fit is refused before it is built; a promoted training is bit-equal to one from scratch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fakeface_lab.data.images import load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import make_split
from fakeface_lab.detector.work import DetectorWork
from fakeface_lab.errors import ModelError
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.settings import Hyperparameters
from fakeface_lab.training.checkpoint import inherit_checkpoint
from fakeface_lab.training.objective import VAL_LOSS
from fakeface_lab.training.outcome import Outcome

DOCUMENTED = Hyperparameters().model_dump()


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


@pytest.mark.slow
def test_a_promoted_training_is_bit_equal_to_one_from_scratch(work: DetectorWork, tmp_path: Path) -> None:
    work = replace(work, promotes=True)
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
