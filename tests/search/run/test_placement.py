"""Which engine a setting asks for, what it refuses, and how GPUs are shared out."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakeface_lab.backend import gpu_of_each, hide_gpus, tf
from fakeface_lab.errors import ConfigError
from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from fakeface_lab.search.run.engine import Assignment, InlineEngine
from fakeface_lab.search.run.local_engine import LocalEngine
from fakeface_lab.search.run.placement import EngineSettings, connect, open_engine
from fakeface_lab.tracking.store import Store
from fakeface_lab.training.epochs import Listener
from fakeface_lab.training.outcome import Outcome
from tests.search.curve_work import CurveWork, open_ledger
from tests.search.run.desk import Desk


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("local", {"ray_address": "auto"}, "ray_address = auto: only for engine ray, not local; leave it out"),
        ("inline", {"cpus_per_trial": 2.0}, "cpus_per_trial = 2.0: only for engine ray, not inline; leave it out"),
        ("inline", {"memory_per_trial": 9.0}, "memory_per_trial: not with engine inline; use local or ray"),
        ("inline", {"checkpoint_storage": "x"}, "checkpoint_storage: not with engine inline; use local or ray"),
    ],
)
def test_what_an_engine_would_ignore_is_refused(kind: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineSettings(kind, 1, 1, 60, **given)
    assert str(caught.value) == message


def gpus(monkeypatch: pytest.MonkeyPatch, num_gpus: int, **given: Any) -> list[str]:
    devices = [SimpleNamespace(name=f"/physical_device:GPU:{index}") for index in range(num_gpus)]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: devices)
    return gpu_of_each(given["workers"], given.get("gpus_per_trial"))


def test_each_worker_has_a_gpu_of_its_own_or_an_explicit_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus(monkeypatch, 0, workers=3) == []
    assert gpus(monkeypatch, 2, workers=2) == ["0", "1"]
    assert gpus(monkeypatch, 2, workers=1) == ["0"]
    assert gpus(monkeypatch, 2, workers=4, gpus_per_trial=0.5) == ["0", "0", "1", "1"]
    assert gpus(monkeypatch, 2, workers=3, gpus_per_trial=0.0) == ["", "", ""]
    with pytest.raises(
        ConfigError,
        match=r"^workers = 3: 2 GPUs have room for 2 trials; give fewer workers, or let trials share one with "
        r"gpus_per_trial = 0\.5$",
    ):
        gpus(monkeypatch, 2, workers=3)
    with pytest.raises(ConfigError, match=r"^gpus_per_trial = 0\.5: TensorFlow sees no GPU; leave it out$"):
        gpus(monkeypatch, 0, workers=1, gpus_per_trial=0.5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert gpus(monkeypatch, 2, workers=2) == ["3", "5"]


def test_a_process_that_trains_nothing_takes_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda devices, kind: chosen.append((devices, kind)))
    hide_gpus()
    assert chosen == [([], "GPU")]


class Seeing(CurveWork):
    """Prints which GPUs it may use."""

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        import os

        print(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return super().__call__(assignment, folder, listener)


@pytest.mark.slow
def test_a_worker_sees_its_gpu_only(tmp_path: Path, desks: list[Desk]) -> None:
    desks.append(desk := Desk(tmp_path, {}, kind=Seeing, gpus=["7"]))
    assert desk.run("seeing").kind == "done"
    assert [event.line for event in desk.events if event.kind == "print"] == ["7"]


def test_the_kind_decides_on_the_engine(local_store: Store) -> None:
    store = local_store
    ledger = open_ledger(store)
    work = CurveWork(store.project / "trained.txt", {})
    with open_engine(EngineSettings("inline", 1, 1, 60), work, ledger) as engine:
        assert isinstance(engine, InlineEngine)
    with open_engine(EngineSettings("local", 2, 1, 60), work, ledger) as engine:
        assert isinstance(engine, LocalEngine)
        assert engine.num_free() == 2


def test_a_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        CheckpointStorage.open(str(tmp_path / "file" / "storage"), "search")
    assert str(caught.value).startswith(f"checkpoint_storage = {tmp_path}/file/storage: cannot be written (")
    assert str(caught.value).endswith(
        "); give a path or URL that all nodes can write, and its credentials in the environment"
    )
    with pytest.raises(ConfigError, match=r"cannot be written \(Protocol not known: nonsense"):
        CheckpointStorage.open("nonsense://bucket", "search")


def test_a_cluster_that_cannot_be_joined_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^ray_address = ray://head:10001: Ray's client cannot stream; give HOST"):
        connect("ray://head:10001")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"^engine ray: Ray is not installed; pip install 'fakeface-lab\[ray\]'$"):
        connect(None)
