"""Program: many tiny trials through Ray while nodes die: all finished, nothing twice, memory and costs over time.

    python -m tests.cluster.soak --trials 1000 --kill-every-secs 120 --out FOLDER
    python -m tests.cluster.soak --trials 150 --kill-every-secs 20 --epoch-secs 0.5 --out FOLDER

The search is recorded in the server of `deploy/`, on PostgreSQL and S3, or in a SQLite file. The cluster has a head, on
which nothing trains, and nodes of one core each. One that trains is killed each time that so many seconds have passed
since the replacement of the last one began to train; otherwise a slow machine would do nothing but start nodes. In
FOLDER are `soak.json` (samples of finished trials and memory), `costs.jsonl` (each question and each request of the
driver) and two pictures. It ends with 1 if a trial is missing, failed or has a point twice, or if nothing has been
trained for 300 s.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import psutil
from mlflow.tracking import MlflowClient

from tests.cluster.costs import read_costs
from tests.cluster.driven import ROOT, trainings
from tests.cluster.ray_nodes import RayNodes, ray_nodes
from tests.cluster.soak_report import Sample, draw_costs, draw_memory, summary
from tests.deploy.servers import TrackingServer, deployed

_SAMPLE_SECS = 5.0
_STILL_SECS = 300.0


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--kill-every-secs", type=float, default=120)
    parser.add_argument("--epoch-secs", type=float, default=0.05)
    parser.add_argument("--store", choices=["server", "sqlite"], default="server")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        project = Path(scratch, "project")
        (project / "experiments").mkdir(parents=True)
        with _store(given.store, Path(scratch)) as (address, server):
            with ray_nodes(Path(scratch), given.nodes + 1, head_cpus=0) as nodes:
                soak = _Soak(given, project, nodes, server)
                problems = soak.run(address)
            with mock.patch.dict("os.environ", address):
                problems += _problems(MlflowClient(address["MLFLOW_TRACKING_URI"]), given.trials)
    costs = read_costs(given.out / "costs.jsonl")
    samples = [sample for sample in soak.samples if sample.driver_bytes]  # without those of a driver that has ended
    seen = {"deaths": soak.deaths, "samples": [asdict(sample) for sample in samples], "problems": problems}
    (given.out / "soak.json").write_text(json.dumps(seen))
    draw_memory(samples, costs, soak.deaths, given.out / "soak-memory.png")
    draw_costs(costs, soak.deaths, given.out / "soak-costs.png")
    print(summary(samples, soak.deaths, costs), f"problems: {problems or 'none'}", sep="\n")
    return 1 if problems else 0


@contextmanager
def _store(kind: str, scratch: Path) -> Iterator[tuple[Mapping[str, str], TrackingServer | None]]:
    """Yield what the driver's environment says of the store, and the server if there is one."""
    if kind == "sqlite":
        yield {"MLFLOW_TRACKING_URI": f"sqlite:///{scratch / 'project' / 'mlflow.db'}"}, None
        return
    with deployed(scratch / "servers") as server:
        yield server.address, server


class _Soak:
    """The search, and the deaths of its nodes."""

    def __init__(
        self, given: argparse.Namespace, project: Path, nodes: RayNodes, server: TrackingServer | None
    ) -> None:
        self.samples, self.deaths = list[Sample](), list[float]()
        self._given, self._project, self._nodes, self._server = given, project, nodes, server
        self._living, self._trains_since = list(range(1, len(nodes.processes))), time.monotonic()
        self._newest: int | None = len(nodes.processes) - 1  # None while it trains
        self._began = time.monotonic()

    def run(self, address: Mapping[str, str]) -> list[str]:
        """Run until the driver has ended, or nothing happens any more; return what went wrong."""
        given, costs = self._given, self._given.out / "costs.jsonl"
        costs.unlink(missing_ok=True)
        words = ["--trials", str(given.trials), "--workers", str(given.nodes), "--epoch-secs", str(given.epoch_secs)]
        command = [sys.executable, "-m", "tests.cluster.curves", str(self._project), self._nodes.address, *words]
        with (given.out / "driver.log").open("wb") as log:
            driver = subprocess.Popen(
                [*command, "--costs", str(costs)], cwd=ROOT, env={**self._nodes.environment, **address},
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            while driver.poll() is None:
                self.samples.append(self._sample(driver.pid))
                if self._is_still():
                    return [f"no trial has ended for {_STILL_SECS:.0f} s"]
                self._watch_nodes()
        finally:
            driver.kill()
            driver.wait()
        return [] if driver.returncode == 0 else [f"the driver ended with {driver.returncode}"]

    def _watch_nodes(self) -> None:
        """Until the next sample is due, wait for a new node to train, or for the time of the next death."""
        until = time.monotonic() + _SAMPLE_SECS
        while time.monotonic() < until:
            if self._newest is not None and trainings(self._nodes, self._newest):
                self._newest, self._trains_since = None, time.monotonic()
            if self._newest is None and time.monotonic() - self._trains_since > self._given.kill_every_secs:
                self._kill_one_that_trains()
            time.sleep(0.1)

    def _kill_one_that_trains(self) -> None:
        """Kill the oldest node that trains just now, if one does, and start another one."""
        victim = next((number for number in self._living if trainings(self._nodes, number)), None)
        if victim is not None:
            self.deaths.append(time.monotonic() - self._began)
            self._nodes.kill(victim)
            self._newest = self._nodes.add()
            self._living = [number for number in self._living if number != victim] + [self._newest]

    def _sample(self, pid: int) -> Sample:
        trained, log = self._project / "trained.txt", self._given.out / "driver.log"
        lines = set(trained.read_text().splitlines()) if trained.exists() else set()
        return Sample(
            secs=time.monotonic() - self._began,
            num_trained=sum(line.endswith(" 4") for line in lines),
            num_lost=log.read_text(errors="replace").count("its node was lost"),
            driver_bytes=psutil.Process(pid).memory_full_info().uss,
            server_bytes=self._server.memory_bytes() if self._server else 0,
            database_bytes=self._server.postgres.memory_bytes() if self._server else 0,
        )

    def _is_still(self) -> bool:
        now = self.samples[-1]
        before = next((sample for sample in self.samples if now.secs - sample.secs < _STILL_SECS), now)
        return now.secs > _STILL_SECS and now.num_trained == before.num_trained


def _problems(client: MlflowClient, num_trials: int) -> list[str]:
    """Return what is wrong with the runs of the search."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    token, runs = None, []
    while True:
        page = client.search_runs(experiments, "tags.role = 'trial'", page_token=token)
        runs += page
        token = page.token
        if not token:
            break
    numbers = sorted(int(run.data.tags["trial"]) for run in runs)
    problems = [] if numbers == list(range(num_trials)) else [f"{len(numbers)} trials, not {num_trials}"]
    unfinished = [run.info.run_name for run in runs if run.info.status != "FINISHED"]
    problems += [f"not finished: {unfinished[:5]}"] if unfinished else []
    for run in runs:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "val_loss")]
        if steps != sorted(set(steps)):
            problems.append(f"{run.info.run_name}: val_loss at steps {steps}")
    return problems


if __name__ == "__main__":
    sys.exit(main())
