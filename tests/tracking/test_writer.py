"""A store that goes away costs neither the training nor a metric, and for how long is the user's setting."""

import threading
import time
from functools import partial
from pathlib import Path

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos import databricks_pb2

from fakeface_lab.errors import TrackingError
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import open_store
from fakeface_lab.tracking.writer import Background, PatientWriter, is_transient_error
from tests.mlflow_server import Server

NOW_MS = 1_760_000_000_000


def http_error(status_code: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status_code
    return requests.HTTPError("upload failed", response=response)


@pytest.mark.parametrize(
    "fault",
    [
        MlflowException("API request failed with exception: connection refused"),
        MlflowException("database is locked", databricks_pb2.TEMPORARILY_UNAVAILABLE),
        MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed", databricks_pb2.BAD_REQUEST),
        MlflowException("(psycopg.errors.UniqueViolation) duplicate key", databricks_pb2.BAD_REQUEST),
        RestException({"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "slow down"}),
        requests.ConnectionError("refused"),
        requests.Timeout("too slow"),
        ConnectionResetError("reset"),
        http_error(502),
        http_error(429),
        http_error(401),
    ],
)
def test_errors_that_are_transient(fault: Exception) -> None:
    assert is_transient_error(fault)


@pytest.mark.parametrize(
    "fault",
    [
        MlflowException("no such run", databricks_pb2.RESOURCE_DOES_NOT_EXIST),
        RestException({"error_code": "PERMISSION_DENIED", "message": "no"}),
        RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "changed"}),
        http_error(403),
        FileNotFoundError("gone"),
        ValueError("a fault of the program"),
    ],
)
def test_errors_that_are_permanent(fault: Exception) -> None:
    assert not is_transient_error(fault)


class Flaky:
    """An action that fails some times before it goes through."""

    def __init__(self, num_failures: int, fault: Exception) -> None:
        self.left, self.fault, self.calls = num_failures, fault, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.left:
            raise self.fault
        return "done"


def test_a_call_is_retried_until_it_succeeds() -> None:
    notices: list[str] = []
    action = Flaky(2, requests.ConnectionError("refused\nand a trace"))
    assert PatientWriter(30, notices.append).call(action) == "done"
    assert action.calls == 3
    assert notices == [
        "tracking store does not answer, retrying in 0.5 s: refused",
        "tracking store does not answer, retrying in 1 s: refused",
    ]


def test_only_submitted_writes_start_a_thread() -> None:
    def num_threads() -> int:
        return sum(thread.name == "tracking-writer" for thread in threading.enumerate())

    before = num_threads()
    writer = PatientWriter(30)
    assert writer.call(lambda: "done") == "done"
    assert num_threads() == before
    writer.submit(lambda: None)
    writer.drain()
    assert num_threads() == before + 1


def test_a_refusal_is_reported_immediately_in_one_line() -> None:
    action = Flaky(1, MlflowException("param epochs\nwas 10", databricks_pb2.INVALID_PARAMETER_VALUE))
    with pytest.raises(TrackingError, match=r"^tracking store refused: .*param epochs$") as err:
        PatientWriter(30).call(action)
    assert "\n" not in str(err.value)
    assert action.calls == 1


def test_an_internal_error_is_raised_unchanged() -> None:
    with pytest.raises(ZeroDivisionError):
        PatientWriter(30).call(lambda: 1 / 0)


def test_beyond_the_retry_limit_the_program_stops_with_one_line() -> None:
    action = Flaky(99, requests.ConnectionError("refused\nand a trace"))
    started = time.monotonic()
    with pytest.raises(TrackingError) as err:
        PatientWriter(1).call(action)
    assert 1 <= time.monotonic() - started < 5
    assert str(err.value).startswith("tracking store: unreachable for ")
    assert str(err.value).endswith("longer than the retry limit of 1 s; rerun when it is back to resume (refused)")


def test_a_submitted_write_does_not_delay_the_training() -> None:
    writer = PatientWriter(30)
    let_go = threading.Event()
    done: list[int] = []
    started = time.monotonic()
    writer.submit(lambda: let_go.wait(20))
    for number in range(5):
        writer.submit(partial(done.append, number))
    assert time.monotonic() - started < 5
    assert done == []
    let_go.set()
    writer.drain()
    assert done == [0, 1, 2, 3, 4], "in the order they were given"


def test_a_failed_background_write_stops_the_training_at_the_next_write() -> None:
    writer = PatientWriter(0)
    writer.submit(Flaky(99, requests.ConnectionError("refused")))
    later = Flaky(0, ValueError())
    with pytest.raises(TrackingError, match="unreachable for 0 s"):
        writer.drain()
    with pytest.raises(TrackingError, match="unreachable for 0 s"):
        writer.submit(later)
    with pytest.raises(TrackingError, match="unreachable for 0 s"):
        writer.call(later)
    assert later.calls == 0


def test_a_server_that_is_killed_and_restarted_loses_and_duplicates_nothing(server: Server, project: Path) -> None:
    notices: list[str] = []
    store = open_store(server.uri, project, "faces restarted")
    run = TrackedRun.create(store, PatientWriter(120, notices.append), "patient", {})
    impatient = TrackedRun.create(store, PatientWriter(1), "impatient", {})
    run.log_metrics({"loss": 1.0}, 1, NOW_MS)
    run.writer.drain()
    server.kill()
    started = time.monotonic()
    try:
        for epoch in (2, 3, 4):
            run.log_metrics({"loss": 1 / epoch}, epoch, NOW_MS + epoch)
        assert time.monotonic() - started < 2, "the training goes on"
        with pytest.raises(TrackingError, match="longer than the retry limit of 1 s; rerun"):
            train_one_epoch(impatient)
        assert not impatient.lock.is_locked, "the same command can go on with it"
    finally:
        server.start()
    run.end("FINISHED")
    points = store.client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
    assert store.client.get_run(run.run_id).info.status == "FINISHED"
    assert notices
    assert all("\n" not in notice for notice in notices)


def train_one_epoch(run: TrackedRun) -> None:
    with run.ending():
        run.log_metrics({"loss": 1.0}, 1, NOW_MS)


def test_actions_start_in_order_and_return_results_and_errors() -> None:
    beside = Background("test")
    done: list[int] = []

    def do(number: int) -> int:
        done.append(number)
        return number

    futures = [beside.submit(partial(do, number)) for number in range(5)]
    assert [future.result(timeout=10) for future in futures] == done == [0, 1, 2, 3, 4]
    with pytest.raises(ZeroDivisionError):
        beside.submit(lambda: 1 / 0).result(timeout=10)
    beside.close()


def test_several_threads_do_not_wait_for_a_slow_action() -> None:
    beside, go = Background("test", num_threads=2), threading.Event()
    slow = beside.submit(go.wait)
    assert beside.submit(lambda: "quick").result(timeout=10) == "quick"
    assert not slow.done()
    go.set()
    assert slow.result(timeout=10)
    beside.close()


def test_queued_actions_do_not_start_after_the_close() -> None:
    beside, go, started = Background("test"), threading.Event(), threading.Event()

    def run() -> bool:
        started.set()
        return go.wait(10)

    running = beside.submit(run)
    queued = beside.submit(lambda: "never")
    assert started.wait(10)
    beside.close()
    go.set()
    assert running.result(timeout=10)
    with pytest.raises(TimeoutError):
        queued.result(timeout=0.2)
