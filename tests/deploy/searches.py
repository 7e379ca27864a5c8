"""Small searches of the detector on a tracking server, in processes of their own."""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlflow.tracking import MlflowClient

from tests.deploy.servers import TrackingServer
from tests.kill_search import start_search, write_project
from tests.search_state import State, read_state

__all__ = ["Searches"]

_LIFE_SECS = 600


@dataclass
class Searches:
    """Starts searches with equal settings, each in an experiment and a project folder of its own.

    Attributes:
        server: where they are tracked; this process must have its address in its environment.
        folder: holds their project folders.
    """

    server: TrackingServer
    folder: Path
    config: Path = field(init=False)
    processes: list[subprocess.Popen[bytes]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.config = write_project(self.folder, "random", workers=1, final_seeds=1, num_trials=3)

    def start(self, experiment: str, machine: str = "", **variables: str) -> subprocess.Popen[bytes]:
        """Start or resume the search of an experiment, in the project folder of one machine."""
        address = self.server.address | {"MLFLOW_EXPERIMENT_NAME": experiment}
        process = start_search(
            self.config, self.project(experiment, machine), "--engine", "inline", **{**address, **variables}
        )
        self.processes.append(process)
        return process

    def project(self, experiment: str, machine: str = "") -> Path:
        """Return a search's project folder on one machine."""
        return self.folder / f"{experiment}{machine}"

    def log(self, experiment: str, machine: str = "") -> str:
        """Return what a search has printed."""
        return (self.project(experiment, machine) / "log.txt").read_text(errors="replace")

    def wait_for_trial(self, experiment: str, number: int) -> None:
        """Wait until a trial has begun."""
        client = MlflowClient(self.server.uri)

        def has_begun() -> bool:
            found = client.get_experiment_by_name(experiment)
            query = f"tags.role = 'trial' and tags.trial = '{number}'"
            return found is not None and bool(client.search_runs([found.experiment_id], query))

        self.wait_until(has_begun, f"trial {number} of {experiment}")

    def wait_until(self, is_so: Callable[[], bool], what: str) -> None:
        """Wait until something is so, for as long as the last search that was started is running."""
        deadline = time.monotonic() + _LIFE_SECS
        while not is_so():
            if self.processes[-1].poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"{what}: the search has ended or hangs")
            time.sleep(0.1)

    def state(self, experiment: str, machine: str = "") -> State:
        """Return what the server holds of a finished search."""
        return read_state(self.server.uri, self.project(experiment, machine), experiment)

    def empty_registry(self) -> None:
        """Delete the registered models: the registry is one for all experiments, and belongs to the next search."""
        client = MlflowClient(self.server.uri)
        for model in client.search_registered_models():
            client.delete_registered_model(model.name)

    def finish(self, experiment: str, process: subprocess.Popen[bytes]) -> State:
        """Wait for the end of a search, which must be a good one, and return its state."""
        assert process.wait(_LIFE_SECS) == 0, self.log(experiment)[-5000:]
        return self.state(experiment)

    def end(self) -> None:
        """Kill what is still running."""
        for process in self.processes:
            process.kill()
            process.wait()
