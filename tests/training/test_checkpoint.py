"""Epoch checkpoints: exact, whole or not at all, and only for the model they were made of."""

import io
import itertools
import multiprocessing
import os
import signal
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakeface_lab.backend import keras
from fakeface_lab.errors import ModelError
from fakeface_lab.training import checkpoint
from fakeface_lab.training.checkpoint import (
    BackgroundWriter,
    Snapshot,
    load_checkpoint,
    load_weights,
    read_state,
    save_checkpoint,
    save_weights,
)

STATE = {"records": [{"epoch": 1, "metrics": {"loss": 0.1 + 0.2}}], "kept_epoch": 1}


def small_model(units: int = 3, num_hidden: int = 1) -> keras.Model:
    keras.utils.set_random_seed(0)
    hidden = [layer for _ in range(num_hidden) for layer in (keras.layers.Dense(units), keras.layers.Dropout(0.5))]
    model = keras.Sequential([keras.Input((4,)), *hidden, keras.layers.Dense(2)])
    model.compile("adam", "mse")
    return model


def trained_model() -> keras.Model:
    model = small_model()
    rng = np.random.default_rng(0)
    model.fit(rng.random((12, 4)), rng.random((12, 2)), batch_size=4, epochs=2, verbose=0)
    return model


def arrays(model: keras.Model) -> list[np.ndarray]:
    return [np.asarray(variable) for variable in [*model.variables, *model.optimizer.variables]]


def assert_bit_equal(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return trained_model()


@pytest.fixture(scope="module")
def scratch() -> keras.Model:
    """A model to load into."""
    return small_model()


@pytest.fixture(scope="module")
def whole(model: keras.Model, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good checkpoint."""
    path = tmp_path_factory.mktemp("checkpoint") / "epoch.ckpt"
    save_checkpoint(path, Snapshot().take(model), STATE)
    return path.read_bytes()


def test_everything_is_restored_bit_by_bit(model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "epoch.ckpt"
    save_checkpoint(path, Snapshot().take(model), STATE)
    fresh = small_model()
    assert read_state(path) == STATE
    load_checkpoint(path, fresh)
    assert_bit_equal(arrays(fresh), arrays(model))
    assert int(np.asarray(fresh.optimizer.iterations)) == 6
    assert any("seed_generator" in variable.path for variable in fresh.variables), "dropout's state is among them"
    assert list(tmp_path.iterdir()) == [path]


def test_further_arrays_are_returned(model: keras.Model, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "epoch.ckpt"
    further = [np.arange(6, dtype=np.int16).reshape(2, 3), np.array(0.1), np.zeros(0, np.uint8)]
    save_checkpoint(path, Snapshot().take(model), STATE, further)
    fresh = small_model()
    assert read_state(path) == STATE
    loaded = load_checkpoint(path, fresh)
    assert_bit_equal(loaded, further)
    assert [array.shape for array in loaded] == [(2, 3), (), (0,)]
    assert_bit_equal(arrays(fresh), arrays(model))
    with pytest.raises(ModelError, match=r"holds another model \(15 arrays, not 22\)"):
        load_checkpoint(path, small_model(num_hidden=2))
    path.write_bytes(whole)
    assert load_checkpoint(path, fresh) == []


def test_weights_are_restored_without_the_optimizer(model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "kept-1.weights"
    save_weights(path, Snapshot().take(model))
    fresh = small_model()
    assert read_state(path) == {}
    load_weights(path, fresh)
    assert_bit_equal([np.asarray(v) for v in fresh.variables], [np.asarray(v) for v in model.variables])
    assert int(np.asarray(fresh.optimizer.iterations)) == 0


def test_a_snapshot_does_not_change_while_training_continues(tmp_path: Path) -> None:
    model, snapshot = trained_model(), Snapshot()
    snapshot.take(model)
    before = arrays(model)
    model.fit(np.ones((4, 4)), np.ones((4, 2)), epochs=3, verbose=0)
    assert_bit_equal([*snapshot.weights, *snapshot.slots], before)
    buffers = list(snapshot.weights)
    snapshot.take(model)
    assert_bit_equal([*snapshot.weights, *snapshot.slots], arrays(model))
    assert all(np.shares_memory(one, other) for one, other in zip(snapshot.weights, buffers, strict=True))
    assert_bit_equal(snapshot.take(small_model(units=5)).weights, [np.asarray(v) for v in small_model(5).variables])


@pytest.mark.parametrize("is_worker", [True, False])
def test_a_worker_process_keeps_the_memory_for_the_next_training(
    is_worker: bool, model: keras.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_kept_memory", None)
    if is_worker:
        checkpoint.keep_memory()
    first = Snapshot().take(model)
    memory = first.weights[0]
    first.release()
    assert first.weights == first.slots == []
    Snapshot().release()  # of a training that had ended before a restart
    second, beside = Snapshot().take(model), Snapshot().take(model)
    assert np.shares_memory(second.weights[0], memory) == is_worker
    assert not np.shares_memory(beside.weights[0], second.weights[0])
    second.release()
    larger = small_model(units=50)
    assert_bit_equal(Snapshot().take(larger).weights, [np.asarray(v) for v in larger.variables])


def test_restoring_weights_writes_what_has_changed(model: keras.Model) -> None:
    snapshot, before = Snapshot().take(model), [np.array(variable) for variable in model.variables]
    changed = model.variables[1]
    changed.assign(np.full(changed.shape, np.nan))
    snapshot.restore_weights(model)
    assert_bit_equal([np.asarray(variable) for variable in model.variables], before)


def test_a_background_write_is_reported_once_after_it_has_completed() -> None:
    writer, may_end, heard = BackgroundWriter(), threading.Event(), list[str]()
    writer.flush()
    writer.submit(lambda: heard.append("written") if may_end.wait(30) else None, lambda: heard.append("reported"))
    writer.poll()
    assert heard == []
    may_end.set()
    writer.flush()
    writer.flush()
    assert heard == ["written", "reported"]


def test_a_background_write_that_fails_raises_and_is_not_reported(tmp_path: Path, model: keras.Model) -> None:
    writer, heard = BackgroundWriter(), list[str]()
    missing, snapshot = tmp_path / "gone" / "epoch.ckpt", Snapshot().take(model)
    writer.submit(lambda: save_checkpoint(missing, snapshot, STATE), lambda: heard.append("reported"))
    with pytest.raises(FileNotFoundError, match="gone"):
        writer.flush()
    writer.flush()
    assert heard == []


def test_a_missing_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    assert read_state(tmp_path / "epoch.ckpt") is None


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_flipped_bits_are_noticed_or_have_no_effect(
    whole: bytes, model: keras.Model, scratch: keras.Model, tmp_path: Path, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[position] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "epoch.ckpt"
    path.write_bytes(damaged)
    state = read_state(path)
    if state is not None:  # a time stamp, or another byte that carries nothing
        load_checkpoint(path, scratch)
        assert state == STATE
        assert_bit_equal(arrays(scratch), arrays(model))


def test_a_flipped_bit_of_each_array_is_noticed(whole: bytes, model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "epoch.ckpt"
    for array in arrays(model):
        found = whole.find(array.tobytes())
        assert found > 0
        damaged = bytearray(whole)
        damaged[found] ^= 1
        path.write_bytes(damaged)
        assert read_state(path) is None


@pytest.mark.slow
def test_every_flipped_bit_behind_the_arrays_is_noticed_or_has_no_effect(
    whole: bytes, model: keras.Model, scratch: keras.Model, tmp_path: Path
) -> None:
    path = tmp_path / "epoch.ckpt"
    for position in range(whole.rindex(b"state.json", 0, whole.index(b"PK\x01\x02")), len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        if read_state(path) is not None:
            load_checkpoint(path, scratch)
            assert_bit_equal(arrays(scratch), arrays(model))


def test_every_truncation_is_noticed(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "epoch.ckpt"
    for num_bytes in range(0, len(whole), 7):
        path.write_bytes(whole[:num_bytes])
        assert read_state(path) is None, num_bytes


def test_a_killed_write_leaves_the_old_checkpoint(model: keras.Model, whole: bytes, tmp_path: Path) -> None:
    path, snapshot = tmp_path / "epoch.ckpt", Snapshot().take(model)
    # Forks of a process that has loaded the module and never started TensorFlow.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    for num_written in itertools.count():
        path.write_bytes(whole)
        process = server.Process(target=_save_until_killed, args=(path, snapshot, num_written))
        process.start()
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert path.read_bytes() == whole
        # The half-written file is in nobody's way.
        save_checkpoint(path, snapshot, STATE)
        assert read_state(path) == STATE
    assert num_written > 2 * len(arrays(model)), "a header and the data of each array"
    assert read_state(path) == STATE | {"kept_epoch": 2}


def _save_until_killed(path: Path, snapshot: Snapshot, num_written: int) -> None:
    """Save, and die by SIGKILL when that many pieces are in the file."""
    pieces = itertools.count()

    class Deadly(io.FileIO):
        def write(self, piece: Any) -> int:
            if next(pieces) == num_written:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().write(piece)

    def open_deadly(name: Path, mode: str) -> io.FileIO:
        return Deadly(name, mode.replace("b", ""))

    zipfile.io.open = open_deadly  # type: ignore[attr-defined]
    save_checkpoint(path, snapshot, STATE | {"kept_epoch": 2})


def test_a_checkpoint_of_another_shape_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "epoch.ckpt"
    path.write_bytes(whole)
    with pytest.raises(
        ModelError, match=r"epoch\.ckpt: holds another model \(array 0 is \(4, 3\), not \(4, 5\)\)"
    ) as err:
        load_checkpoint(path, small_model(units=5))
    assert "\n" not in str(err.value)


def test_a_checkpoint_of_another_depth_is_refused(whole: bytes, model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "epoch.ckpt"
    path.write_bytes(whole)
    with pytest.raises(ModelError, match=r"holds another model \(15 arrays, not 22\)"):
        load_checkpoint(path, small_model(num_hidden=2))
    with pytest.raises(ModelError, match="holds another model"):
        load_weights(path, model)
