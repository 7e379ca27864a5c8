"""Work beside the main thread that the end of the program does not wait for."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["Background"]

T = TypeVar("T")


class Background:
    """Threads that begin what is submitted in the order of its submission.

    Unlike those of `concurrent.futures` they are daemons: Ctrl-C must not wait for minutes of upload.
    """

    def __init__(self, name: str, num_threads: int = 1) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._is_closed = False
        self._num_threads = num_threads
        for _ in range(num_threads):
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def submit(self, action: Callable[[], T]) -> Future[T]:
        """Queue `action` and return its future."""
        future: Future[T] = Future()

        def settle() -> None:
            try:
                future.set_result(action())
            except BaseException as err:  # handed to whoever asks for the result
                future.set_exception(err)

        self._queue.put(settle)
        return future

    def close(self) -> None:
        """End the threads after what they are doing now; what is queued is not begun."""
        self._is_closed = True
        for _ in range(self._num_threads):
            self._queue.put(None)

    def _work(self) -> None:
        while (settle := self._queue.get()) is not None and not self._is_closed:
            settle()
