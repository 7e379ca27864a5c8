"""Trainings with callbacks: killed after any epoch, they end bit-equal to undisturbed ones, and so do their files."""

import copy
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras_tuner
import numpy as np
import pytest
from keras_tuner.src.engine.hypermodel import get_hypermodel

from fakeface_lab.backend import keras, tf
from fakeface_lab.training.callback_state import (
    CallbackStates,
    copy_callbacks,
    have_known_state,
    hparams_callbacks,
)
from fakeface_lab.training.checkpoint import CHECKPOINT, inherit_checkpoint
from fakeface_lab.training.epochs import EpochRecord
from fakeface_lab.training.fit_arguments import bind_fit_arguments
from fakeface_lab.training.hypermodel import ModelRecipe, train_hypermodel
from fakeface_lab.training.outcome import Outcome
from tests.training.callback_files import event_points, file_contents

EPOCHS = 6
RNG = np.random.default_rng(3)
X = RNG.normal(size=(40, 4)).astype(np.float32)
Y = (X[:, :2].sum(axis=1) > 0).astype(np.float32)

RUN, WRITTEN = Path("run"), Path("written")  # of the training, and of its callbacks


def build(hp: keras_tuner.HyperParameters) -> keras.Model:
    layers = [keras.layers.Dense(3), keras.layers.Dropout(0.3), keras.layers.Dense(1, activation="sigmoid")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    # Tracing a graph would take longer.
    model.compile(keras.optimizers.Adam(0.05), "binary_crossentropy", metrics=["accuracy"], run_eagerly=True)
    return model


class Heard:
    """Keeps the reported epochs, and a copy of the current folder as a kill after each of them would leave it."""

    def __init__(self, copies: Path | None = None) -> None:
        self.epochs: list[int] = []
        self._copies = copies

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        return

    def epoch_ended(self, record: EpochRecord) -> None:
        self.epochs.append(record.epoch)
        if self._copies is not None:
            shutil.copytree(Path.cwd(), self._copies / str(record.epoch))


def train(callbacks: list[Any], heard: Heard, name: str = "7", epochs: int = EPOCHS, **kwargs: Any) -> Outcome:
    fit = bind_fit_arguments(
        get_hypermodel(build), (X, Y), {"validation_split": 0.2, "batch_size": 8, "callbacks": callbacks, **kwargs}
    )
    recipe = ModelRecipe(get_hypermodel(build), keras_tuner.HyperParameters(), {}, "float32")
    RUN.mkdir(exist_ok=True)
    return train_hypermodel(
        recipe, fit, keras_tuner.Objective("val_loss", "min"), {}, name=name, seed=7, epochs=epochs,
        passes_epochs=True, data_digest="", folder=RUN, listener=heard,
    )  # fmt: skip


def measured() -> Any:
    """All that a training has measured, apart from times; the state of its callbacks; its arrays; and their files."""
    with zipfile.ZipFile(RUN / CHECKPOINT) as archive:
        arrays = {name: archive.read(name) for name in archive.namelist() if name.endswith(".npy")}
        state = json.loads(archive.read("state.json"))
    for record in state["records"]:
        del record["ended_at_ms"], record["metrics"]["epoch_secs"]
    apart = RUN / f"kept-{state['kept_epoch']}.weights"  # unless they are those of the last epoch
    assert apart.exists() == (state["kept_epoch"] < len(state["records"]))
    kept = []
    if apart.exists():
        with zipfile.ZipFile(apart) as archive:
            kept = [archive.read(name) for name in archive.namelist() if name.endswith(".npy")]
    return state, arrays, kept, file_contents(WRITTEN), event_points(WRITTEN)


def early_stopping(**kwargs: Any) -> Any:
    # The loss falls, so that the best epoch is the first that counts.
    return keras.callbacks.EarlyStopping("loss", mode="max", restore_best_weights=True, **kwargs)


def combination() -> list[Any]:
    return [
        early_stopping(patience=3, start_from_epoch=1),
        keras.callbacks.ReduceLROnPlateau("loss", mode="max", factor=0.5, patience=1, cooldown=2),
        keras.callbacks.ModelCheckpoint("written/best.keras", "loss", mode="max", save_best_only=True),
        # After ReduceLROnPlateau, which adds the learning rate to what it logs.
        keras.callbacks.CSVLogger("written/log.csv"),
    ]


CASES: dict[str, tuple[Callable[[], list[Any]], int]] = {
    "combination": (combination, 5),
    "EarlyStopping, patience": (lambda: [early_stopping(patience=4)], 5),
    "EarlyStopping, baseline": (lambda: [early_stopping(patience=3, baseline=9.0)], 3),
    "ReduceLROnPlateau": (lambda: [keras.callbacks.ReduceLROnPlateau("loss", mode="max", patience=2, cooldown=3)], 6),
    "LearningRateScheduler": (lambda: [keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9)], 6),
    "ModelCheckpoint, each epoch": (
        lambda: [keras.callbacks.ModelCheckpoint("written/{epoch}-{loss:.4f}.weights.h5", save_weights_only=True)],
        6,
    ),
    "ModelCheckpoint, batches": (lambda: [keras.callbacks.ModelCheckpoint("written/{batch}.keras", save_freq=3)], 6),
    "ModelCheckpoint, threshold": (
        lambda: [
            keras.callbacks.ModelCheckpoint(
                "written/best.keras", "loss", save_best_only=True, initial_value_threshold=np.float64(0.65)
            )
        ],
        6,
    ),
    "CSVLogger": (lambda: [keras.callbacks.CSVLogger("written/log.csv", separator=";", append=True)], 6),
    "TensorBoard": (lambda: [keras.callbacks.TensorBoard("written/logs", histogram_freq=2, update_freq=3)], 6),
    "stateless": (
        lambda: [keras.callbacks.TerminateOnNaN(), keras.callbacks.ProgbarLogger(), keras.callbacks.History()],
        6,
    ),
}


@pytest.mark.parametrize(
    "case", [name if name == "combination" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_killed_after_any_epoch_a_training_ends_bit_equal(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, num_epochs = CASES[case]
    site, copies = tmp_path / "site", tmp_path / "copies"
    site.mkdir()
    monkeypatch.chdir(site)
    # With it, the columns of the table and the epochs that EarlyStopping counts depend on the first epoch.
    train(make(), Heard(copies), validation_freq=2)
    undisturbed = measured()
    assert len(undisturbed[0]["records"]) == num_epochs
    for epoch in range(1, num_epochs + 1):
        # The checkpoint of an epoch, and what callbacks wrote until shortly before that of the next.
        empty(site)
        shutil.copytree(copies / str(epoch) / RUN, site / RUN)
        if (copies / str(min(epoch + 1, num_epochs)) / WRITTEN).exists():
            shutil.copytree(copies / str(min(epoch + 1, num_epochs)) / WRITTEN, site / WRITTEN)
        for table in WRITTEN.rglob("*.csv"):
            table.write_bytes(table.read_bytes() + b"9;0.1")
        heard = Heard()
        train(make(), heard, validation_freq=2)
        assert heard.epochs == list(range(epoch + 1, num_epochs + 1))
        assert measured() == undisturbed, epoch


def test_tensorboard_is_told_the_hyperparameters_as_by_kerastuner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.plugins.hparams import plugin_data_pb2

    monkeypatch.chdir(tmp_path)
    hp = keras_tuner.HyperParameters()
    kind = hp.Choice("kind", ["a", "b"])
    for one in ("a", "b"):
        with hp.conditional_scope("kind", [one]):  # one name under two conditions
            hp.Int("units", 4, 8)
    assert kind == "a"
    board = keras.callbacks.TensorBoard("logs")
    (told,) = hparams_callbacks([keras.callbacks.History(), board], hp, "07")
    told.on_train_begin()
    told.on_train_end()
    (path,) = Path("logs").iterdir()
    data = [
        plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for record in tf.data.TFRecordDataset(str(path))
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value
    ]
    started = next(one.session_start_info for one in data if one.HasField("session_start_info"))
    assert started.group_name == "07"
    assert {name: value.string_value or value.number_value for name, value in started.hparams.items()} == {
        "kind": "a",
        "units": 4.0,
    }
    assert any(one.HasField("session_end_info") for one in data)
    assert hparams_callbacks([keras.callbacks.History()], hp, "07") == []


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path)


def test_what_the_combination_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    callbacks = combination()
    untouched = [copy.copy(vars(callback)) for callback in callbacks]
    outcome = train(callbacks, Heard())
    rates = [record.metrics["learning_rate"] for record in outcome.records]
    assert rates == pytest.approx([0.05, 0.025, 0.025, 0.0125, 0.0125])
    _, arrays, _, files, _ = measured()
    assert len([name for name in arrays if name.startswith("further")]) == 5, "the best weights and the table"
    assert list(files) == ["7/execution0/best.keras", "7/execution0/log.csv"]
    assert files["7/execution0/log.csv"].count(b"\n") == 6
    assert [vars(callback) for callback in callbacks] == untouched, "the user's own callbacks are only copied"


def changed(callbacks: list[Any]) -> list[Any]:
    callbacks[0].patience = 9
    return callbacks


def unknown(callbacks: list[Any]) -> list[Any]:
    callbacks[0].new_in_another_version = None
    return callbacks


@pytest.mark.parametrize("change", [changed, unknown])
def test_a_state_is_never_put_into_a_callback_that_it_does_not_fit(
    change: Callable[[list[Any]], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train([early_stopping(patience=1)], Heard(), epochs=1)
    (RUN / "outcome.json").unlink()
    outcome = train(change([early_stopping(patience=1)]), heard := Heard(), epochs=3)
    assert heard.epochs == [record.epoch for record in outcome.records] == ([1, 2, 3] if change is changed else [1, 2])


def test_a_checkpoint_of_a_training_without_callbacks_needs_no_state_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train([], Heard(), epochs=1)
    (RUN / "outcome.json").unlink()
    with zipfile.ZipFile(RUN / CHECKPOINT) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    state = json.loads(members["state.json"])
    del state["callbacks"], state["has_stopped"]
    with zipfile.ZipFile(RUN / CHECKPOINT, "w") as archive:
        for name, member in (members | {"state.json": json.dumps(state).encode()}).items():
            archive.writestr(name, member)
    train([], heard := Heard(), epochs=2)
    assert heard.epochs == [2]


@pytest.mark.slow
def test_a_promoted_trial_goes_on_but_needs_the_files_of_its_first_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table, saved = (
        keras.callbacks.CSVLogger("written/log.csv"),
        keras.callbacks.ModelCheckpoint("written/{epoch}.keras"),
    )
    for callbacks, epochs in (([table], [3]), ([table, saved], [1, 2, 3])):
        empty(tmp_path)
        train(callbacks, Heard(), name="1", epochs=2)
        RUN.rename("parent")
        RUN.mkdir()
        inherit_checkpoint(Path("parent"), RUN)
        train(callbacks, heard := Heard(), name="2", epochs=3)
        assert heard.epochs == epochs
        rows = Path("written/2/execution0/log.csv").read_text().splitlines()
        assert [row.partition(",")[0] for row in rows] == ["epoch", "0", "1", "2"]
    assert {path.name for path in Path("written/2/execution0").iterdir()} == {
        "log.csv",
        "1.keras",
        "2.keras",
        "3.keras",
    }


def test_a_training_that_restarts_does_not_go_on_from_its_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, copies = tmp_path / "site", tmp_path / "copies"
    site.mkdir()
    monkeypatch.chdir(site)

    def callbacks() -> list[Any]:
        return [
            keras.callbacks.BackupAndRestore("written/backup"),
            keras.callbacks.CSVLogger("written/log.csv", append=True),
        ]

    undisturbed = train(callbacks(), Heard(copies), epochs=3)
    written = Path("written/7/execution0/log.csv").read_bytes()
    empty(site)
    shutil.copytree(copies / "2", site, dirs_exist_ok=True)
    assert Path("written/backup/7/execution0/latest.weights.h5").exists()
    resumed = train(callbacks(), Heard(), epochs=3)
    assert [record.metrics["loss"] for record in resumed.records] == [
        record.metrics["loss"] for record in undisturbed.records
    ]
    assert Path("written/7/execution0/log.csv").read_bytes() == written


@pytest.mark.parametrize("name", ["EarlyStopping", "ReduceLROnPlateau", "TerminateOnNaN", "ProgbarLogger", "History"])
def test_keras_has_the_attributes_that_are_listed(name: str) -> None:
    of_keras = getattr(keras.callbacks, name)
    assert have_known_state([of_keras()])
    assert not have_known_state([type(name, (of_keras,), {})()]), "a subclass may remember more"
    more, less = of_keras(), of_keras()
    more.verbosity = 1
    del vars(less)[
        next(attribute for attribute in vars(less) if not attribute.startswith("_") and attribute != "params")
    ]
    assert not have_known_state([more])
    assert not have_known_state([of_keras(), less])


class Falling:
    """A schedule that remembers how often it was called."""

    calls = 0

    def __call__(self, epoch: int, rate: float) -> float:
        self.calls += 1
        return rate / self.calls


def test_the_state_of_a_users_own_object_is_unknown() -> None:
    assert have_known_state([keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate)])
    assert not have_known_state([keras.callbacks.LearningRateScheduler(Falling())])
    assert not have_known_state([keras.callbacks.LambdaCallback()])


def test_numbers_keep_their_type() -> None:
    saved = keras.callbacks.ModelCheckpoint("best.keras", initial_value_threshold=np.float64(0.1))
    states, arrays = CallbackStates([saved]).capture()
    fresh: Any = keras.callbacks.ModelCheckpoint("best.keras")
    restored = CallbackStates([fresh])
    assert restored.fits(json.loads(json.dumps(states)))
    restored.load(json.loads(json.dumps(states)), arrays)
    assert vars(fresh)["best"] is None, "`on_train_begin` of the others would reset it"
    restored.on_train_begin()
    assert type(fresh.best) is np.float64
    assert fresh.best == saved.best


def test_each_training_has_paths_of_its_own(tmp_path: Path) -> None:
    given = [
        keras.callbacks.TensorBoard(tmp_path / "logs"),
        keras.callbacks.ModelCheckpoint(tmp_path / "models" / "{epoch}.keras"),
        keras.callbacks.CSVLogger(tmp_path / "a" / "log.csv"),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        keras.callbacks.ModelCheckpoint("gs://bucket/best.keras"),
        keras.callbacks.ModelCheckpoint("best.keras"),
    ]
    before: list[Mapping[str, Any]] = [copy.copy(vars(callback)) for callback in given]
    board, saved, table, backup, remote, here = copy_callbacks(given, "12", 1)
    assert board.log_dir == f"{tmp_path}/logs/12/execution1"
    assert saved.filepath == f"{tmp_path}/models/12/execution1/{{epoch}}.keras"
    assert table.filename == f"{tmp_path}/a/12/execution1/log.csv"
    assert Path(table.filename).parent.is_dir()
    assert backup.backup_dir == f"{tmp_path}/backup/12/execution1"
    assert backup._weights_path == f"{backup.backup_dir}/latest.weights.h5"
    assert backup._prev_training_metadata_path == f"{backup.backup_dir}/training_metadata.json.bkp"
    assert remote.filepath == "gs://bucket/12/execution1/best.keras"
    assert here.filepath == "12/execution1/best.keras"
    assert [vars(callback) for callback in given] == before
    twice = copy_callbacks([given[5], given[5]], "12", 1)
    assert twice[0] is twice[1]
    assert twice[0].filepath == "12/execution1/best.keras"
