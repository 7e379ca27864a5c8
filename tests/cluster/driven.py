"""Drivers of searches on a cluster, as processes of their own, and what must not depend on where a search ran."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from fakeface_lab.search.run.engine import InlineEngine
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.tracking.store import open_store
from tests.cluster.curves import EPOCHS
from tests.cluster.ray_nodes import RayNodes
from tests.search.curve_work import CurveWork, Notes, open_ledger, template
from tests.search.run.curve_search import Facts, facts, open_ledger_released

ROOT = Path(__file__).parents[2]


def undisturbed(project: Path, num_trials: int) -> Facts:
    """The facts of the same search in this process."""
    beside = project.with_name("undisturbed")
    (beside / "experiments").mkdir(parents=True)
    shutil.copy(project / "mlflow.db", beside / "mlflow.db")
    ledger = open_ledger(open_store(f"sqlite:///{beside / 'mlflow.db'}", beside, "curves"))
    work = CurveWork(beside / "trained.txt", {})
    oracle = template("random", num_trials, EPOCHS)
    Trials(ledger, oracle, work, InlineEngine(work), Notes(), epochs=EPOCHS, seed=3).run()
    ledger.parent.lock.release()
    return without_order(facts(ledger))


def without_order(rows: Facts) -> Facts:
    """The facts without the order in which trials began and ended, which several at a time do not have."""
    return [(replace(record, created_order=0, ended_order=0), *others) for record, *others in rows]


class Driver:
    """The driver of a search, as a process of its own."""

    def __init__(self, project: Path, nodes: RayNodes, *words: str) -> None:
        self.project, self.log = project, project / "driver.log"
        command = [sys.executable, "-m", "tests.cluster.curves", str(project), nodes.address, *words]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=nodes.environment | {"COLUMNS": "200"}, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def trained(self) -> Counter[str]:
        """How often each epoch of each trial was begun."""
        path = self.project / "trained.txt"
        return Counter(path.read_text().splitlines() if path.exists() else [])

    def wait_for(self, is_met: Callable[[Counter[str]], bool]) -> None:
        deadline = time.monotonic() + 300
        while not is_met(self.trained()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def end(self) -> int:
        try:
            return self.process.wait(600)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def found(project: Path) -> Facts:
    return without_order(facts(open_ledger_released(open_store(None, project, "curves"))))


def trainings(nodes: RayNodes, number: int) -> list[psutil.Process]:
    """The processes of a node that train; one that ends while it is looked at is none."""
    found = []
    for child in psutil.Process(nodes.processes[number].pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie too
            found += [child] if "ray::_train" in " ".join(child.cmdline()) else []
    return found


def node_of_a_training(nodes: RayNodes) -> int:
    """The number of a node, not the head, on which something is trained."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for number in range(1, len(nodes.processes)):
            if trainings(nodes, number):
                return number
    raise TimeoutError("no node trains")
