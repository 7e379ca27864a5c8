"""Work beside the main thread, one piece after the other, that the end of the program does not wait for."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["Background"]

T = TypeVar("T")


class Background:
    """A thread of its own that does what is submitted, in order.

    Unlike the threads of `concurrent.futures` it is a daemon: Ctrl-C must not wait for minutes of upload.
    """

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._is_closed = False
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
        """End the thread after what it is doing now; what is queued is not begun."""
        self._is_closed = True
        self._queue.put(None)

    def _work(self) -> None:
        while (settle := self._queue.get()) is not None and not self._is_closed:
            settle()
