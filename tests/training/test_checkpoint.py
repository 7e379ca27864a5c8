"""Epoch checkpoints: exact, whole or not at all, and only for the model they were made of."""

import io
import itertools
import multiprocessing
import os
import signal
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakeface_lab.backend import keras
from fakeface_lab.errors import ModelError
from fakeface_lab.training.checkpoint import (
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
    save_checkpoint(path, model, STATE)
    return path.read_bytes()


def test_everything_is_restored_bit_by_bit(model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "epoch.ckpt"
    save_checkpoint(path, model, STATE)
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
    save_checkpoint(path, model, STATE, further)
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
    save_weights(path, model)
    fresh = small_model()
    assert read_state(path) == {}
    load_weights(path, fresh)
    assert_bit_equal([np.asarray(v) for v in fresh.variables], [np.asarray(v) for v in model.variables])
    assert int(np.asarray(fresh.optimizer.iterations)) == 0


def test_a_write_that_fails_raises(tmp_path: Path, model: keras.Model) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        save_checkpoint(tmp_path / "gone" / "epoch.ckpt", model, STATE)


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
    path = tmp_path / "epoch.ckpt"
    # Forks of a process that has loaded the module and never started TensorFlow.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    for num_written in itertools.count():
        path.write_bytes(whole)
        process = server.Process(target=_save_until_killed, args=(path, arrays(model), num_written))
        process.start()
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        assert path.read_bytes() == whole
        # The half-written file is in nobody's way.
        save_checkpoint(path, model, STATE)
        assert read_state(path) == STATE
    assert num_written > 2 * len(arrays(model)), "a header and the data of each array"
    assert read_state(path) == STATE | {"kept_epoch": 2}


def _save_until_killed(path: Path, values: list[np.ndarray], num_written: int) -> None:
    """Save a model with these values, without TensorFlow; die by SIGKILL when that many pieces are in the file."""
    pieces = itertools.count()
    variables = [SimpleNamespace(value=SimpleNamespace(read_value=lambda value=value: value)) for value in values]

    class Deadly(io.FileIO):
        def write(self, piece: Any) -> int:
            if next(pieces) == num_written:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().write(piece)

    def open_deadly(name: Path, mode: str) -> io.FileIO:
        return Deadly(name, mode.replace("b", ""))

    zipfile.io.open = open_deadly  # type: ignore[attr-defined]
    save_checkpoint(path, SimpleNamespace(variables=variables), STATE | {"kept_epoch": 2})


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
    with pytest.raises(ModelError, match=r"holds another model \(15 arrays, not 26\)"):
        load_weights(path, small_model(num_hidden=8))
