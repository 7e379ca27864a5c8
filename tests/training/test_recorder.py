"""An interrupted training ends bit-equal to an uninterrupted one, with the weights to keep; divergence ends it."""

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from fakeface_lab.backend import keras, tf
from fakeface_lab.detector.fit import Training, predict, train
from fakeface_lab.errors import ModelError, TrainingDivergedError
from fakeface_lab.training.checkpoint import read_state
from fakeface_lab.training.objective import Objective
from fakeface_lab.training.recorder import TrainingRecorder
from tests.detector.small_training import (
    LABELS,
    PIXELS,
    RESUMABLE,
    SIZE_PX,
    SMALL,
    TRAIN_ROWS,
    VALIDATION_ROWS,
    Heard,
    Interrupted,
    digest_of,
    measured,
    run,
    state_bytes,
)

pytestmark = pytest.mark.usefixtures("deterministic")

Uninterrupted = Callable[[str], tuple[keras.Model, TrainingRecorder]]

# A learning rate that overshoots, so that the best epoch is not the last one.
OVERSHOOTING = Training(SMALL.model_copy(update={"learning_rate": 0.05}), SIZE_PX, 3, 4, keep="best")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """Return a function that trains each kind once."""
    return functools.cache(lambda kind: run(RESUMABLE[kind], tmp_path_factory.mktemp("whole")))


@pytest.mark.usefixtures("eagerly")
def test_the_listener_hears_every_step_and_epoch_counted_from_one(tmp_path: Path) -> None:
    heard = Heard()
    _, recorder = run(Training(SMALL, SIZE_PX, seed=0, epochs=2), tmp_path, heard)
    assert heard.steps == [(epoch, step, 3) for epoch in (1, 2) for step in (1, 2, 3)]
    assert heard.records == recorder.records
    assert [record.epoch for record in heard.records] == [1, 2]
    assert heard.records[0].ended_at_ms < heard.records[1].ended_at_ms


@pytest.mark.parametrize(
    "kind", [kind if kind == "fast" else pytest.param(kind, marks=pytest.mark.slow) for kind in RESUMABLE]
)
def test_interrupted_training_ends_bit_equal(kind: str, uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    whole, expected = uninterrupted(kind)
    for listener in (Heard(stop_in_step=(2, 2)), Heard(stop_after_epoch=2)):
        with pytest.raises(Interrupted):
            run(RESUMABLE[kind], tmp_path, listener)
        keras.backend.clear_session()
    heard = Heard()
    resumed, recorder = run(RESUMABLE[kind], tmp_path, heard)
    assert [record.epoch for record in heard.records] == [3], "only the last epoch was left to do"
    assert measured(recorder.records) == measured(expected.records)
    assert recorder.kept_epoch == expected.kept_epoch
    assert state_bytes(resumed) == state_bytes(whole)


def test_equal_trainings_are_equal_whatever_ran_between(uninterrupted: Uninterrupted, tmp_path: Path) -> None:
    again, _ = run(RESUMABLE["best"], tmp_path)
    assert state_bytes(again) == state_bytes(uninterrupted("best")[0])


CONTINUE_IN_A_PROCESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fakeface_lab.backend import set_up_process
from tests.detector import small_training as t
set_up_process(int(sys.argv[3]))
print(t.digest_of(t.run(t.RESUMABLE["best"], Path(sys.argv[2]))[0]))
"""


@pytest.fixture(scope="module")
def after_two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of the best weights, killed after its second epoch."""
    folder = tmp_path_factory.mktemp("cut")
    with pytest.raises(Interrupted):
        run(RESUMABLE["best"], folder, Heard(stop_after_epoch=2))
    return folder


@pytest.mark.slow
def test_continued_in_another_process_it_ends_bit_equal(
    uninterrupted: Uninterrupted, after_two_epochs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(after_two_epochs, tmp_path / "cut")
    # Equal results need equal threads, and other tests may have set this process's.
    num_threads = str(tf.config.threading.get_intra_op_parallelism_threads())
    words = [sys.executable, "-c", CONTINUE_IN_A_PROCESS, str(Path(__file__).parents[2]), str(folder), num_threads]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest_of(uninterrupted("best")[0])


def test_scores_after_each_epoch_are_those_of_its_weights(
    uninterrupted: Uninterrupted, after_two_epochs: Path, tmp_path: Path
) -> None:
    recorder = uninterrupted("best")[1]
    flat = recorder.epoch_scores
    assert flat is not None
    assert flat.dtype == np.float32
    scores = flat.reshape(3, len(VALIDATION_ROWS), 2)
    for record, own in zip(recorder.records, scores[:, :, 0], strict=True):
        of_truth = np.where(LABELS[VALIDATION_ROWS] == 0, own, 1 - own.astype(np.float64))
        assert -np.log(of_truth).mean() == pytest.approx(record.metrics["val_loss"], abs=1e-5)
        accuracy = ((own > 0.5) == (LABELS[VALIDATION_ROWS] == 0)).mean()
        assert accuracy == pytest.approx(record.metrics["val_accuracy"])
    np.testing.assert_array_equal(
        scores[recorder.kept_epoch - 1], predict(uninterrupted("best")[0], PIXELS, VALIDATION_ROWS)
    )
    _, resumed = run(RESUMABLE["best"], shutil.copytree(after_two_epochs, tmp_path / "cut"))
    assert resumed.epoch_scores is not None
    assert resumed.epoch_scores.tobytes() == scores.tobytes(), "killed and continued, they are bit-equal"
    assert uninterrupted("augmented")[1].epoch_scores is None, "where no epoch is picked nothing is scored"


def test_a_checkpoint_of_an_earlier_version_has_no_scores(after_two_epochs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(after_two_epochs, tmp_path / "cut")
    model = RESUMABLE["best"].build()
    recorder = TrainingRecorder(folder, Heard(), Objective("val_loss"), keep="best")
    assert recorder.restore(model) == 2
    recorder._progress.scores.clear()
    recorder.set_model(model)
    recorder._write(recorder.kept_epoch)
    _, resumed = run(RESUMABLE["best"], folder)
    assert (len(resumed.records), resumed.epoch_scores) == (3, None)


@pytest.fixture(scope="module")
def after_the_best_epoch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training whose best epoch is before its third one, after which it was killed."""
    folder = tmp_path_factory.mktemp("best")
    with pytest.raises(Interrupted):
        run(OVERSHOOTING, folder, Heard(stop_after_epoch=3))
    return folder


@pytest.mark.parametrize("torn", ["epoch.ckpt", "kept-*.weights"])
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_torn_file_starts_the_training_over(torn: str, how: str, after_the_best_epoch: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(after_the_best_epoch, tmp_path / "cut")
    (path,) = folder.glob(torn)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content if how == "flipped" else content[: len(content) // 2])
    model = OVERSHOOTING.build()
    untrained = state_bytes(model)
    recorder = TrainingRecorder(folder, Heard(), Objective("val_loss"), keep="best")
    assert recorder.restore(model) == 0
    assert recorder.records == []
    assert state_bytes(model)[: len(untrained)] == untrained, "the model is as it was built"


def test_the_best_epoch_before_a_kill_is_kept(after_the_best_epoch: Path, tmp_path: Path) -> None:
    resumed, recorder = run(OVERSHOOTING, shutil.copytree(after_the_best_epoch, tmp_path / "cut"))
    whole, expected = run(OVERSHOOTING, tmp_path / "whole")
    assert recorder.kept_epoch == expected.kept_epoch < 3
    assert measured(recorder.records) == measured(expected.records)
    assert [np.asarray(variable).tobytes() for variable in resumed.variables] == [
        np.asarray(variable).tobytes() for variable in whole.variables
    ]


def test_started_over_after_a_torn_checkpoint_it_ends_the_same(
    uninterrupted: Uninterrupted, after_two_epochs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(after_two_epochs, tmp_path / "cut")
    checkpoint = folder / "epoch.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    heard = Heard()
    again, _ = run(RESUMABLE["best"], folder, heard)
    assert [record.epoch for record in heard.records] == [1, 2, 3]
    assert state_bytes(again) == state_bytes(uninterrupted("best")[0])


@pytest.mark.parametrize("kind", ["best", "fast"])
def test_killed_before_its_outcome_is_written_a_training_repeats_its_last_epoch(
    kind: str, uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    run(RESUMABLE[kind], tmp_path)
    heard = Heard()
    resumed, recorder = run(RESUMABLE[kind], tmp_path, heard)
    assert [record.epoch for record in heard.records] == [3]
    assert measured(recorder.records) == measured(uninterrupted(kind)[1].records)
    assert state_bytes(resumed) == state_bytes(uninterrupted(kind)[0])


def test_the_last_epoch_is_reported_when_its_outcome_is_written(tmp_path: Path) -> None:
    training, heard = Training(SMALL, SIZE_PX, seed=0, epochs=2), Heard()
    model = training.build()
    recorder = train(model, training, PIXELS, LABELS, TRAIN_ROWS, VALIDATION_ROWS, tmp_path, heard)
    assert [record.epoch for record in heard.records] == [1]
    recorder.report_last()
    assert heard.records == recorder.records


def test_after_the_last_epoch_a_training_that_may_continue_has_its_optimizer_too(
    uninterrupted: Uninterrupted, tmp_path: Path
) -> None:
    training = replace(RESUMABLE["best"], may_continue=True)
    with pytest.raises(Interrupted):
        run(training, tmp_path, Heard(stop_after_epoch=3))
    heard = Heard()
    resumed, _ = run(training, tmp_path, heard)
    assert heard.steps == []
    assert state_bytes(resumed) == state_bytes(uninterrupted("best")[0])


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize(
    ("objective", "direction", "pick"), [("val_loss", "min", min), ("loss", "max", max)], ids=["min", "max"]
)
def test_kept_weights_are_those_of_the_kept_epoch(
    objective: str, direction: Literal["min", "max"], pick: Callable[[list[float]], float], tmp_path: Path
) -> None:
    training = replace(OVERSHOOTING, objective=Objective(objective, direction))
    model, recorder = run(training, tmp_path)
    figures = [record.metrics[objective] for record in recorder.records]
    assert recorder.kept_epoch == 1 + figures.index(pick(figures)) < 4
    images, one_hot = (PIXELS / 255).astype(np.float32), keras.utils.to_categorical(LABELS, 2)
    loss, _ = model.evaluate(images[VALIDATION_ROWS], one_hot[VALIDATION_ROWS], verbose=0)
    assert loss == pytest.approx(recorder.records[recorder.kept_epoch - 1].metrics["val_loss"], abs=1e-6)
    kept_files = [path.name for path in tmp_path.glob("kept-*")]
    assert kept_files == [f"kept-{recorder.kept_epoch}.weights"], "weights of earlier best epochs are deleted"


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize(("may_continue", "num_written"), [(False, 1), (True, 2)])
def test_the_last_epoch_is_written_only_if_a_training_may_continue(
    may_continue: bool, num_written: int, tmp_path: Path
) -> None:
    run(Training(SMALL, SIZE_PX, seed=0, epochs=2, may_continue=may_continue), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch.ckpt"], "the last weights have no file of their own"
    state = read_state(tmp_path / "epoch.ckpt")
    assert state is not None
    assert len(state["records"]) == num_written


@pytest.mark.usefixtures("eagerly")
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(Training(SMALL, SIZE_PX, seed=0, epochs=1, may_continue=True), tmp_path)
    wider = Training(SMALL.model_copy(update={"dense_units": 9}), SIZE_PX, seed=0, epochs=2)
    with pytest.raises(
        ModelError, match=r"epoch\.ckpt: holds another model \(array \d+ is \(\d+, 8\), not \(\d+, 9\)\)"
    ):
        run(wider, tmp_path)


@pytest.mark.usefixtures("eagerly")
def test_divergence_ends_with_epoch_and_step(tmp_path: Path) -> None:
    training = Training(SMALL, SIZE_PX, seed=0, epochs=2)
    model = training.build()
    model.get_layer("dense_1").bias.assign([np.nan, 0])
    with pytest.raises(
        TrainingDivergedError,
        match=r"training diverged: loss became nan in epoch 1, step 1 of 3; lower the learning rate or change the seed",
    ):
        train(model, training, PIXELS, LABELS, TRAIN_ROWS, VALIDATION_ROWS, tmp_path, Heard())
    assert not (tmp_path / "epoch.ckpt").exists(), "nothing is kept of weights that are no numbers"


@pytest.mark.usefixtures("eagerly")
def test_divergence_in_a_later_step_is_noticed_there(tmp_path: Path) -> None:
    training = Training(SMALL, SIZE_PX, seed=0, epochs=2)
    model = training.build()

    class BreaksTheModel(Heard):
        def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
            if (epoch, step) == (2, 1):
                model.get_layer("dense_1").kernel.assign(np.full((8, 2), np.inf))

    listener = BreaksTheModel()
    with pytest.raises(TrainingDivergedError, match=r"loss became \w+ in epoch 2, step 2 of 3") as err:
        train(model, training, PIXELS, LABELS, TRAIN_ROWS, VALIDATION_ROWS, tmp_path, listener)
    assert "\n" not in str(err.value)
    assert [record.epoch for record in listener.records] == [1]


@pytest.mark.usefixtures("eagerly")
def test_validation_that_is_no_number_is_divergence(tmp_path: Path) -> None:
    training = Training(SMALL, SIZE_PX, seed=0, epochs=1)
    model = training.build()

    class BreaksTheModel(Heard):
        def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
            if step == num_steps:
                model.get_layer("dense_1").bias.assign([np.nan, 0])

    with pytest.raises(TrainingDivergedError, match=r"val_loss became nan in epoch 1, validation"):
        train(model, training, PIXELS, LABELS, TRAIN_ROWS, VALIDATION_ROWS, tmp_path, BreaksTheModel())


@pytest.mark.usefixtures("eagerly")
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_learning_rate_without_bounds_diverges_although_its_loss_stays_finite(precision: str, tmp_path: Path) -> None:
    values = SMALL.model_copy(update={"learning_rate": 1e30, "precision": precision})
    with pytest.raises(TrainingDivergedError, match=r"became .* in epoch 1"):
        run(Training(values, SIZE_PX, seed=0, epochs=2), tmp_path)
    assert not (tmp_path / "epoch.ckpt").exists()
