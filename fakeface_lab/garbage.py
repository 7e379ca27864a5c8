"""Python's garbage collector, kept from looking again and again at what is no garbage."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collector_paused", "loading_libraries"]


@contextmanager
def collector_paused() -> Iterator[None]:
    """Let Python look for no garbage: for work that makes many objects and keeps them.

    Each round looks at all objects there are. How much it saves: docs/performance.md.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Load what stays as long as the process: no round looks for garbage in it, now, later, or when the process ends.

    TensorFlow alone leaves 600,000 objects. If it is loaded already, nothing is done: the caller may have models, whose
    memory only a round can free.
    """
    if "tensorflow" in sys.modules:
        yield
        return
    with collector_paused():
        yield
        gc.freeze()
    # The last rounds free memory that the system takes back a moment later; with TensorFlow they take a second.
    atexit.register(gc.freeze)
