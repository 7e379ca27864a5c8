"""Where trials run, and what the terminal shows during a search."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras_tuner
import pytest
from keras_tuner import oracles

from fakeface_lab.backend import tf
from fakeface_lab.errors import ConfigError
from fakeface_lab.keras_tuner.tuner import Tuner
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.ledger.resume import open_search
from fakeface_lab.search.report.leaderboard import leaderboard, trials_table
from fakeface_lab.search.report.report import save_search_views
from fakeface_lab.search.run.progress import SearchProgress, print_search
from fakeface_lab.search.suggest.suggestion import Suggestion
from fakeface_lab.terminal import print_places, say, wide_console
from fakeface_lab.tracking.store import open_store
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.objective import VAL_LOSS
from tests.keras_tuner.tiny_tuner import X, Y, random_oracle, runs_of, small


def a_ledger(project: Path, trial_0: str) -> Iterator[Ledger]:
    tags = {**VAL_LOSS.tags(), "trial_0": trial_0}
    ledger = open_search(open_store(None, project, "faces"), PatientWriter(5), "by hand", {}, tags, restart=False)
    yield ledger
    ledger.parent.lock.release()


@pytest.fixture
def of_tuner(project: Path) -> Iterator[Ledger]:
    yield from a_ledger(project, "defaults")


@pytest.fixture
def of_tune(project: Path) -> Iterator[Ledger]:
    yield from a_ledger(project, "documented")


def printed_lines(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Let two trials end, the second of which was interrupted once, and return the printed lines."""
    with SearchProgress(ledger, lambda: None) as progress:
        for number, score in enumerate([0.5, 0.25]):
            trial = ledger.create(Suggestion(values={"units": number}, bracket_values={}), f"t00{number} units", {})
            progress.started(trial, 5)
            if number == 1:
                progress.started(ledger.count_epoch(trial, 3), 5)
            progress.ended(ledger.end(trial, "finished", score))
    return [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_trials_are_compared_with_the_defaults(of_tuner: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_lines(of_tuner, capsys) == [
        "trial 1 (t000 units): val_loss 0.5000  best 0.5000 (t000)",
        "trial 2 (t001 units): resuming after epoch 3",
        "trial 2 (t001 units): val_loss 0.2500  best 0.2500 (t001), better than defaults 0.5000 (t000)",
    ]


def test_trials_of_a_detector_are_compared_with_the_documented_one(
    of_tune: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed_lines(of_tune, capsys)[-1].endswith("best 0.2500 (t001), better than documented 0.5000 (t000)")


def test_foreign_text_is_printed_as_it_is(of_tune: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    reason = "InternalError: {{node [/x] y}} [/job:localhost/replica:0] no :key: in [bold]"
    with SearchProgress(of_tune, lambda: None) as progress:
        trial = of_tune.create(Suggestion(values={"units": 1}, bracket_values={}), "t000 [/red]", {})
        progress.started(of_tune.count_epoch(trial, 2), 5)
        progress.retrying(trial, reason)
        progress.ended(of_tune.end(trial, "failed", None, reason))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[1:] == [
        f"trial 1 (t000 [/red]): {reason}; trying again",
        f"trial 1 (t000 [/red]): failed: {reason}",
    ]


@pytest.mark.parametrize("name", ["[/x] y", "[red]", "a :smile:"])
def test_a_name_may_look_like_markup(project: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    store = open_store(None, project, name)
    ledger = open_search(store, PatientWriter(5), name, {}, {}, restart=False)
    ledger.parent.lock.release()
    print_places(store, name, ledger.parent.run_id)
    say("search", name)
    wide_console.print(trials_table(leaderboard([], "min"), name))
    assert capsys.readouterr().out.count(name) == 3


def test_the_saved_views_are_linked_to_once_they_are_there(
    of_tuner: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    print_search(of_tuner.parent)
    assert "leaderboard" not in capsys.readouterr().out
    space = keras_tuner.HyperParameters()
    space.Int("units", 1, 9)
    save_search_views(of_tuner, oracles.RandomSearchOracle("val_loss", hyperparameters=space))
    print_search(of_tuner.parent)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    links = {words[0]: words[1] for words in lines if words[0] in ("leaderboard", "charts")}
    table = f"{of_tuner.parent.store.runs_link()}&viewStateShareKey="
    assert links["leaderboard"].startswith(f"{table}leaderboard-")
    assert links["charts"].startswith(f"{table}charts-")
    assert links["charts"].endswith("&compareRunsMode=CHART")


@pytest.mark.slow
def test_trials_in_a_process_that_has_begun_to_work_take_its_threads() -> None:
    """As in a notebook, where TensorFlow can no longer change its number of threads."""
    program = textwrap.dedent("""
        import psutil, tensorflow as tf
        fixed = psutil.cpu_count() + 1  # not what the search would choose
        tf.config.threading.set_intra_op_parallelism_threads(fixed)
        tf.constant(1) + 1
        from fakeface_lab.errors import ConfigError
        from fakeface_lab.keras_tuner.tuner_search import choose_num_threads
        assert choose_num_threads("inline", 1, 0) == fixed
        assert choose_num_threads("inline", 1, fixed) == fixed
        try:
            choose_num_threads("inline", 1, 1)
        except ConfigError as err:
            print(err)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "threads = 1: TensorFlow already runs with" in done.stdout
    assert done.stdout.endswith("in this process; use that number, or restart Python (in a notebook, its kernel)\n")


def generated() -> Any:
    """A data set that cannot be sent to a worker process."""
    specs = (tf.TensorSpec((None, *X.shape[1:])), tf.TensorSpec((None, *Y.shape[1:])))
    return tf.data.Dataset.from_generator(lambda: iter([(X, Y)]), output_signature=specs)


def test_a_data_set_of_a_generator_is_trained_on_in_this_process_with_a_notice(
    project_with_tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuner = Tuner(random_oracle(2), small)
    tuner.search(generated(), validation_data=(X, Y), epochs=2)
    printed = " ".join(capsys.readouterr().out.split())
    assert "trials run in this process: what search() was given" in printed
    assert "an interrupted trial restarts at its first epoch: the data set contains" in printed
    assert [run.info.status for run in runs_of(tuner)] == ["FINISHED", "FINISHED"]


def test_local_engine_names_what_cannot_be_sent(project_with_tables: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine='local': what search\(\) was given .* cannot be sent"):
        Tuner(random_oracle(), small, engine="local").search(generated(), epochs=1)


@pytest.mark.slow
def test_a_data_set_whose_seeds_decide_its_order_is_sent_to_worker_processes(
    project_with_tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tf.data.Dataset.from_tensor_slices((X, Y))
    scores = []
    for engine in ("local", "inline"):
        batches = data.shuffle(50, seed=3).batch(16)
        tuner = Tuner(random_oracle(1), small, project_name=engine, engine=engine)
        tuner.search(batches, validation_data=data.batch(16), epochs=2)
        scores += [trial.score for trial in tuner.oracle.trials.values()]
    assert scores[0] == scores[1], "the same, wherever and after whatever it is trained"
    assert "restarts at its first epoch" not in capsys.readouterr().out
