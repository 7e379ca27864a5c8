"""The Ray cluster that this process is connected to: joined or started, with the code that its nodes need."""

import logging
import os
import signal
import sys
import sysconfig
import threading
from pathlib import Path
from types import ModuleType

from fakeface_lab.errors import ConfigError, without_credentials
from fakeface_lab.terminal import console, say

__all__ = ["connect", "default_num_gpus", "note_room"]


def connect(address: str | None) -> None:
    """Connect this process to a cluster, unless it already is.

    Args:
        address: `HOST:PORT`, or `auto` for the one on this machine; None for `RAY_ADDRESS`, and without it for a
            cluster of this machine alone, which is started and ends with this process.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        # Read on import. As on macOS and Windows, what is started here then listens on loopback only.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError as err:
        raise ConfigError("engine ray: Ray is not installed; pip install 'fakeface-lab[ray]'") from err
    if ray.is_initialized():  # by the user's script, whose environment for the nodes then stands
        return
    if address is not None and address.startswith("ray://"):
        raise ConfigError(f"ray_address = {address}: Ray's client cannot stream; give HOST:PORT, or run on a node")
    own = {"address": "local", "include_dashboard": False}
    # Ray replaces the handler, and a search then ends without saying so in its runs.
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            **(own if address is None else {"address": address}),
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"py_modules": _modules_to_send()},
        )
    except Exception as err:  # Ray's are of many kinds
        text = without_credentials(str(err).partition("\n")[0])
        raise ConfigError(
            f"ray_address = {address}: no cluster answers ({text}); `ray start --head` starts one, and without an "
            f"address one is started here"
        ) from err
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    resources = ray.cluster_resources()
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    say("ray", f"{num_nodes} nodes, {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs")


def default_num_gpus() -> float:
    """Return the GPUs of a trial: one if the cluster has any."""
    import ray

    return 1 if ray.cluster_resources().get("GPU") else 0


def note_room(num_cpus: float, num_gpus: float, memory_bytes: int | None) -> None:
    """Print a line if no node has room for a trial: it then waits for one that joins."""
    import ray

    wanted = {"CPU": num_cpus, "GPU": num_gpus, "memory": memory_bytes or 0}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        words = ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)
        console.print(f"          no node has {words}: trials wait until one joins", style="yellow")


def _modules_to_send() -> list[ModuleType]:
    """Return the imported packages and modules that nodes may lack: this one, and those of the user's own folders.

    Ray keeps one copy per node.
    """
    installed = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
    own = tuple({str(Path(path or ".").absolute()) for path in (sys.path[0], ".")})
    found = {}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        is_sent = path and path.startswith(own) and not path.startswith(installed) and path.endswith(".py")
        # Functions of the script itself are sent with the work.
        if "." not in name and name not in ("__main__", "__mp_main__") and (is_sent or name == "fakeface_lab"):
            found[name] = module
    return list(found.values())
