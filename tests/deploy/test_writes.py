"""Writes to the deployed server through its faults: each arrives once, and none is lost."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from mlflow.entities import Dataset, DatasetInput, Metric

from fakeface_lab.tracking.store import open_store
from fakeface_lab.tracking.writer import PatientWriter
from tests.deploy.faults import FAULTS, befall
from tests.deploy.servers import TrackingServer

NUM_WRITES = 10


# Each takes as long as the clients' waiting; test_faults has them all in a whole search.
QUICK = ("PostgreSQL killed", "disk full")


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAULTS]
)
def test_uploads_wait_for_the_end_of_a_fault(fault: str, client_of: TrackingServer, tmp_path: Path) -> None:
    store = open_store(None, tmp_path, "uploads")
    run_id = store.client.create_run(store.experiment_id).info.run_id
    notices: list[str] = []
    writer = PatientWriter(120, notices.append)
    contents = {f"{number}.bin": os.urandom(100_000) for number in range(NUM_WRITES)}
    with befall(client_of, fault):
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
            writer.submit(partial(store.client.log_artifact, run_id, str(tmp_path / name)))
        time.sleep(3)
        (tmp_path / "back").mkdir()
        assert writer._queue.unfinished_tasks, "nothing had to wait"
    writer.drain()
    back = Path(store.client.download_artifacts(run_id, "", str(tmp_path / "back")))
    assert {path.name: path.read_bytes() for path in back.iterdir()} == contents


def test_an_upload_waits_while_its_user_cannot_be_looked_up(client_of: TrackingServer, tmp_path: Path) -> None:
    store = open_store(None, tmp_path, "uploads")
    run_id = store.client.create_run(store.experiment_id).info.run_id
    store.client.log_text(run_id, "the client knows the place now", "first.txt")
    with client_of.killed():
        pass  # a new one remembers no user
    notices: list[str] = []
    writer = PatientWriter(120, notices.append)
    with client_of.postgres.killed():
        writer.submit(lambda: store.client.log_text(run_id, "arrived", "second.txt"))
        time.sleep(2)
    writer.drain()
    assert any("401 Client Error" in notice for notice in notices), notices
    back = store.client.download_artifacts(run_id, "second.txt", str(tmp_path))
    assert Path(back).read_text() == "arrived"


def test_a_data_set_named_by_several_runs_at_once_is_there_once(client_of: TrackingServer, tmp_path: Path) -> None:
    store = open_store(None, tmp_path, "data sets")
    runs = [store.client.create_run(store.experiment_id).info.run_id for _ in range(8)]

    def name(run_id: str, number: int) -> None:
        dataset = Dataset("faces", f"digest {number}", "local", "{}")
        PatientWriter(60).call(lambda: store.client.log_inputs(run_id, [DatasetInput(dataset)]))

    for number in range(5):
        with ThreadPoolExecutor(len(runs)) as pool:
            list(pool.map(name, runs, [number] * len(runs)))
    for run_id in runs:
        inputs = store.client.get_run(run_id).inputs.dataset_inputs
        assert sorted(one.dataset.digest for one in inputs) == [f"digest {number}" for number in range(5)]


def test_writes_of_several_threads_survive_restarts_of_the_database(client_of: TrackingServer, tmp_path: Path) -> None:
    store = open_store(None, tmp_path, "metrics")
    run_id = store.client.create_run(store.experiment_id).info.run_id
    writers = [PatientWriter(120) for _ in range(4)]
    is_over = threading.Event()
    num_steps = [0] * len(writers)

    def write(number: int) -> None:
        while not is_over.is_set():
            step = num_steps[number] = num_steps[number] + 1
            point = Metric(f"metric_{number}", float(step), step, step)
            writers[number].call(partial(store.client.log_batch, run_id, metrics=[point]))
            writers[number].call(partial(store.client.log_text, run_id, str(step), f"text_{number}.txt"))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(writers))]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(1)
        with client_of.postgres.killed():
            time.sleep(0.5)
    is_over.set()
    for number, thread in enumerate(threads):
        thread.join()
        points = store.client.get_metric_history(run_id, f"metric_{number}")
        assert [point.step for point in points] == list(range(1, num_steps[number] + 1))
