import threading
from functools import partial

import pytest

from fakeface_lab.tracking.writer import Background


def test_work_is_begun_in_order_and_gives_results_and_errors() -> None:
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


def test_several_threads_do_not_wait_for_a_slow_one() -> None:
    beside, go = Background("test", num_threads=2), threading.Event()
    slow = beside.submit(go.wait)
    assert beside.submit(lambda: "quick").result(timeout=10) == "quick"
    assert not slow.done()
    go.set()
    assert slow.result(timeout=10)
    beside.close()


def test_what_is_queued_is_not_begun_after_the_close() -> None:
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
