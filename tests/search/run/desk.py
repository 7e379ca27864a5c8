"""An engine that trains a cheap curve, and the events that it reports."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cloudpickle
import psutil

from fakeface_lab.files import pickle_mapped
from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from fakeface_lab.search.run.engine import Assignment, Engine, Event, InlineEngine
from fakeface_lab.search.run.local_engine import LocalEngine
from fakeface_lab.search.run.placement import EngineKind, connect
from fakeface_lab.search.run.ray_engine import RayEngine, share
from tests.search import curve_work
from tests.search.curve_work import CurveWork

VALUES = {"x": 0.5, "kind": "a"}


def workers() -> set[int]:
    """Return the process ids of the workers of this process."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if "fakeface_lab.search.run.worker" in " ".join(child.cmdline())}


class Desk:
    """An engine and the events it has reported."""

    def __init__(
        self,
        folder: Path,
        faults: dict[str, str],
        num_workers: int = 1,
        hang_secs: float = 60,
        kind: type[CurveWork] = CurveWork,
        engine: EngineKind = "local",
        memory_bytes: int | None = None,
        storage: CheckpointStorage | None = None,
        gpus: Sequence[str] = (),
    ) -> None:
        self.folder, self.events = folder, list[Event]()
        work = kind(folder / "trained.txt", faults)
        self.engine: Engine
        match engine:
            case "local":
                cloudpickle.register_pickle_by_value(curve_work)
                self.engine = LocalEngine(
                    pickle_mapped(work, folder / "work", "work.pkl"), num_workers=num_workers,
                    num_threads=1, hang_secs=hang_secs, memory_bytes=memory_bytes, storage=storage, gpus=gpus,
                )  # fmt: skip
            case "ray":
                connect(None)
                self.engine = RayEngine(
                    share(work), num_trials=num_workers, num_threads=1, hang_secs=hang_secs,
                    num_cpus=1, num_gpus=0, memory_bytes=memory_bytes, storage=storage,
                )  # fmt: skip
            case "inline":
                self.engine = InlineEngine(work)
        self.engine.handler = self.events.append

    def start(self, key: str) -> None:
        (self.folder / key).mkdir(exist_ok=True)
        self.engine.start(Assignment(key, VALUES, 3, 0), self.folder / key)

    def wait_for(self, is_met: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 120
        while not is_met():
            if time.monotonic() > deadline:
                raise TimeoutError(what)
            self.engine.wait(1)

    def kinds(self, key: str) -> list[str]:
        return [event.kind for event in self.events if event.key == key]

    def end_of(self, key: str) -> Event:
        ends: list[Event] = []

        def has_ended() -> bool:
            mine = [event for event in self.events if event.key == key]
            ends.extend(event for event in mine if event.kind not in ("step", "epoch", "print"))
            return bool(ends)

        self.wait_for(has_ended, key)
        return ends[0]

    def run(self, key: str) -> Event:
        self.start(key)
        return self.end_of(key)
