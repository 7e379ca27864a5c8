"""What a driver's questions and its requests to the tracking server take, noted as they happen."""

import ctypes
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import requests.adapters

from fakeface_lab.search.run import trials

__all__ = ["FREED", "QUESTION", "Cost", "note_costs", "read_costs"]

QUESTION = "question"
FREED = "freed memory that malloc keeps"
_FREED_SECS = 5.0


@dataclass(frozen=True)
class Cost:
    """One question or request, or a look at the memory.

    Attributes:
        what: `QUESTION`, `FREED`, or method and path of a request, without ids.
        at: seconds since the notes began.
        secs: CPU seconds of a question, seconds until the answer of a request.
        num_bytes: of the request's body, or of the memory.
        threads: how many requests were under way, this one included.
    """

    what: str
    at: float
    secs: float
    num_bytes: int = 0
    threads: int = 1


def note_costs(path: Path) -> None:
    """From now on write a line into a file for each question and each request of this process, and on its memory."""
    began, lock, under_way = time.monotonic(), threading.Lock(), [0]

    def note(what: str, secs: float, num_bytes: int = 0, threads: int = 1) -> None:
        with lock, path.open("a") as file:
            file.write(json.dumps(asdict(Cost(what, time.monotonic() - began, secs, num_bytes, threads))) + "\n")

    ask: Callable[..., Any] = getattr(trials, "suggest")  # noqa: B009
    send: Callable[..., Any] = requests.adapters.HTTPAdapter.send

    def timed_ask(*words: Any) -> Any:
        started = time.thread_time()
        answer = ask(*words)
        note(QUESTION, time.thread_time() - started)
        return answer

    def timed_send(adapter: Any, request: requests.PreparedRequest, *words: Any, **named: Any) -> Any:
        started, size = time.monotonic(), int(request.headers.get("Content-Length", 0))
        with lock:
            under_way[0] += 1
            threads = under_way[0]
        try:
            return send(adapter, request, *words, **named)
        finally:
            with lock:
                under_way[0] -= 1
            note(f"{request.method} {_without_ids(request.url or '')}", time.monotonic() - started, size, threads)

    def note_freed() -> None:
        while True:
            note(FREED, 0.0, _freed_bytes())
            time.sleep(_FREED_SECS)

    threading.Thread(target=note_freed, daemon=True).start()
    setattr(trials, "suggest", timed_ask)  # noqa: B010
    setattr(requests.adapters.HTTPAdapter, "send", timed_send)  # noqa: B010


def read_costs(path: Path) -> list[Cost]:
    """Return what was noted; a last line that is not whole is left out."""
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [Cost(**json.loads(line)) for line in whole.splitlines()]


class _Mallinfo2(ctypes.Structure):
    """What glibc's `mallinfo2` returns, see its manual page."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def _freed_bytes() -> int:
    """Return how much memory this process has freed that the C library keeps for later, over all its arenas."""
    library = ctypes.CDLL("libc.so.6")
    library.mallinfo2.restype = _Mallinfo2
    return int(library.mallinfo2().fordblks)


def _without_ids(url: str) -> str:
    address = url.partition("?")[0]
    path = re.sub(r"^\w+://[^/]+/(ajax-)?(api/[0-9.]+/(mlflow/)?)?", "", address)
    return re.sub(r"(m-)?[0-9a-f]{32}|artifacts/([0-9]+|mlflow)/.*", "...", path)
