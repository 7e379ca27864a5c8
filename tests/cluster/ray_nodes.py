"""A Ray cluster of several nodes on this machine, whose processes can be killed."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.machines import Machine
from tests.service import kill_family

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass
class RayNodes:
    """Nodes started by `ray start`, the head first. They listen on all interfaces, so they ask for a token."""

    folder: Path
    address: str
    sockets: str
    environment: dict[str, str]
    machines: Sequence[Machine] = ()
    num_gpus: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add(self, num_cpus: int = 1) -> int:
        """Start a node and return its number; the first one is the head."""
        number = len(self.processes)
        port, store = self.address.rpartition(":")[2], f"--temp-dir={self.sockets}"
        machine = self.machines[number] if self.machines else Machine("", ())
        where = [f"--address={self.address}"] if number else [
            "--head", f"--port={port}", store, "--include-dashboard=false"
        ]  # fmt: skip
        if self.num_gpus:
            where.append(f"--num-gpus={self.num_gpus}")
        if machine.address:
            where.append(f"--node-ip-address={machine.address}")
        with (self.folder / f"node-{number}.log").open("wb") as output:
            self.processes.append(
                subprocess.Popen(
                    [
                        *machine.prefix, RAY, "start", *where, f"--num-cpus={num_cpus}",
                        "--object-store-memory=200000000", "--block",
                    ],
                    env=self.environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )  # fmt: skip
        return number

    def kill(self, number: int) -> None:
        """Kill all processes of a node at once."""
        kill_family(self.processes[number])

    def wait(self, num_nodes: int) -> None:
        """Wait until this many nodes are alive."""
        program = f"import ray; ray.init('{self.address}', log_to_driver=False, logging_level=40)\n" + (
            f"import time\nwhile sum(node['Alive'] for node in ray.nodes()) != {num_nodes}: time.sleep(0.2)"
        )
        command = [*(self.machines[0].prefix if self.machines else ()), sys.executable, "-c", program]
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            ended = [process for process in self.processes if process.poll() not in (None, -signal.SIGKILL)]
            assert not ended, f"a node ended, see {self.folder}"
            with suppress(subprocess.TimeoutExpired):
                done = subprocess.run(command, env=self.environment, timeout=20, check=False, capture_output=True)
                if done.returncode == 0:
                    return
        raise TimeoutError(f"{num_nodes} nodes, see {self.folder}")


@contextmanager
def ray_nodes(
    folder: Path, num_nodes: int, head_cpus: int = 1, machines: Sequence[Machine] = (), num_gpus: int = 0
) -> Iterator[RayNodes]:
    """A cluster of this many nodes with one core each, ended with all its processes.

    Args:
        folder: for the nodes' logs.
        num_nodes: to begin with.
        head_cpus: cores of the first node.
        machines: one for each node; none: all are processes beside this one.
        num_gpus: what each node claims to have.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    # Paths of sockets are at most 107 bytes long.
    sockets = tempfile.mkdtemp(prefix="ray-")
    host = machines[0].address if machines else "127.0.0.1"
    nodes = RayNodes(folder, f"{host}:{port}", sockets, environment, machines, num_gpus)
    try:
        # One after another: two that start at once may choose the same port.
        for number in range(num_nodes):
            nodes.add(1 if number else head_cpus)
            nodes.wait(number + 1)
        yield nodes
    finally:
        for number in reversed(range(len(nodes.processes))):
            nodes.kill(number)
        shutil.rmtree(sockets, ignore_errors=True)
