"""Worker processes that train a cheap curve, and the events that they report."""

import time
from pathlib import Path

import cloudpickle

from fakeface_lab.files import pickle_mapped
from fakeface_lab.search.run.engine import Assignment, Event
from fakeface_lab.search.run.local_engine import LocalEngine
from tests.search import curve_work
from tests.search.curve_work import CurveWork

VALUES = {"x": 0.5, "kind": "a"}


class Desk:
    """An engine and the events it has reported."""

    def __init__(
        self,
        folder: Path,
        faults: dict[str, str],
        num_workers: int = 1,
        hang_secs: float = 60,
        kind: type[CurveWork] = CurveWork,
    ) -> None:
        cloudpickle.register_pickle_by_value(curve_work)
        self.folder, self.events = folder, list[Event]()
        work_path = pickle_mapped(kind(folder / "trained.txt", faults), folder / "work", "work.pkl")
        self.engine = LocalEngine(
            work_path, self.events.append, num_workers=num_workers, num_threads=1, hang_secs=hang_secs
        )

    def start(self, key: str) -> None:
        (self.folder / key).mkdir(exist_ok=True)
        self.engine.start(Assignment(key, VALUES, 3, 0), self.folder / key)

    def end_of(self, key: str) -> Event:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            for event in self.events:
                if event.key == key and event.kind not in ("step", "epoch"):
                    return event
            self.engine.wait(1)
        raise TimeoutError(key)

    def run(self, key: str) -> Event:
        self.start(key)
        return self.end_of(key)
