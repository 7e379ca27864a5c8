"""Where the trials of a search run: the engine that follows from its settings, and the Ray cluster it may need."""

import logging
import os
import signal
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from fakeface_lab.backend import gpu_of_each
from fakeface_lab.errors import ConfigError, without_credentials
from fakeface_lab.files import pickle_mapped
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from fakeface_lab.search.run.engine import Engine, InlineEngine, Work
from fakeface_lab.search.run.local_engine import LocalEngine
from fakeface_lab.search.run.ray_engine import RayEngine, share
from fakeface_lab.terminal import console, say

__all__ = ["EngineKind", "EngineSettings", "connect", "open_engine"]

EngineKind = Literal["inline", "local", "ray"]

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@dataclass(frozen=True)
class EngineSettings:
    """Where trials run and what each may use.

    Attributes:
        kind: `local`: worker processes on this machine; `ray`: tasks on a cluster; `inline`: this process.
        workers: trials at the same time.
        num_threads: threads per training.
        hang_secs: a trial without a training step for this long is ended, and tried again.
        ray_address: of the cluster; None for `RAY_ADDRESS`, and else one that is started here.
        cpus_per_trial: for Ray's scheduling; None for the number of threads.
        gpus_per_trial: 0 to 1; None for one, if there are any.
        memory_per_trial: GB; a trial that uses more is ended; None for no limit.
        checkpoint_storage: place for checkpoints that all nodes can reach; None: a lost node's trials start again.
    """

    kind: EngineKind
    workers: int
    num_threads: int
    hang_secs: float
    ray_address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    memory_per_trial: float | None = None
    checkpoint_storage: str | None = None

    def __post_init__(self) -> None:
        """Refuse what the engine would ignore."""
        for name, value in (("ray_address", self.ray_address), ("cpus_per_trial", self.cpus_per_trial)):
            if value is not None and self.kind != "ray":
                raise ConfigError(f"{name} = {value}: only for engine ray, not {self.kind}; leave it out")
        if self.kind == "inline":
            for name in ("gpus_per_trial", "memory_per_trial", "checkpoint_storage"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name}: not with engine inline; use local or ray")

    @property
    def memory_bytes(self) -> int | None:
        """What a trial may use; None for no limit."""
        return None if self.memory_per_trial is None else int(1e9 * self.memory_per_trial)


@contextmanager
def open_engine(settings: EngineSettings, work: Work, ledger: Ledger) -> Iterator[Engine]:
    """Yield the engine of a search, and stop it afterwards: the same processes do trials and final trainings.

    Args:
        settings: which engine.
        work: what is trained; sent to worker processes through a file in the search's folder, to nodes by Ray.
        ledger: of the search.

    Raises:
        ConfigError: there are fewer GPUs than workers, no cluster answers, or the storage cannot be written.
    """
    engine = _make_engine(settings, work, ledger)
    try:
        yield engine
    finally:
        engine.stop()


def _make_engine(settings: EngineSettings, work: Work, ledger: Ledger) -> Engine:
    if settings.kind == "inline":
        return InlineEngine(work)
    place, memory_bytes = settings.checkpoint_storage, settings.memory_bytes
    if settings.kind == "ray":
        connect(settings.ray_address)
    storage = CheckpointStorage.open(place, ledger.parent.run_id) if place else None
    if settings.kind == "local":
        return LocalEngine(
            pickle_mapped(work, ledger.parent.folder, "work.pkl"), num_workers=settings.workers,
            num_threads=settings.num_threads, hang_secs=settings.hang_secs,
            gpus=gpu_of_each(settings.workers, settings.gpus_per_trial), memory_bytes=memory_bytes, storage=storage,
        )  # fmt: skip
    import ray

    num_cpus = settings.cpus_per_trial or settings.num_threads
    default_num_gpus = 1 if ray.cluster_resources().get("GPU") else 0
    num_gpus = default_num_gpus if settings.gpus_per_trial is None else settings.gpus_per_trial
    _note_room(num_cpus, num_gpus, memory_bytes)
    return RayEngine(
        share(work), num_trials=settings.workers, num_threads=settings.num_threads, hang_secs=settings.hang_secs,
        num_cpus=num_cpus, num_gpus=num_gpus, memory_bytes=memory_bytes, storage=storage,
    )  # fmt: skip


def connect(address: str | None) -> None:
    """Connect this process to a cluster, unless it already is.

    Args:
        address: `HOST:PORT`, or `auto` for the one on this machine; None for `RAY_ADDRESS`, and without it for a
            cluster of this machine alone, which is started and ends with this process.

    Raises:
        ConfigError: Ray is not installed, no cluster answers, or it refuses the token.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would print a paragraph for each lost node: the search has a line for each attempt that it has cost.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "^(The node with node id: |Raylet is terminated)")
    with _on_loopback() if address is None else nullcontext():
        _join(address)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let the cluster that Ray starts in this block listen on loopback only, as it does on macOS and Windows."""
    # Read when Ray is imported. Afterwards it is unset: a `ray start` of the user's would refuse several nodes.
    is_given = _LOOPBACK in os.environ
    os.environ.setdefault(_LOOPBACK, "0")
    read = sys.modules.get("ray._private.ray_constants")  # of a script that has imported Ray itself
    before = getattr(read, "ENABLE_RAY_CLUSTER", None)
    if read is not None and not is_given:
        setattr(read, "ENABLE_RAY_CLUSTER", False)  # noqa: B010
    try:
        yield
    finally:
        if read is not None:
            setattr(read, "ENABLE_RAY_CLUSTER", before)  # noqa: B010
        if not is_given:
            del os.environ[_LOOPBACK]


def _join(address: str | None) -> None:
    """Connect to the cluster with this address, or start one; errors as in `connect`."""
    if address is not None and address.startswith("ray://"):
        raise ConfigError(f"ray_address = {address}: Ray's client cannot stream; give HOST:PORT, or run on a node")
    try:
        import ray
    except ImportError as err:
        raise ConfigError("engine ray: Ray is not installed; pip install 'fakeface-lab[ray]'") from err
    if ray.is_initialized():  # by the user's script, whose environment for the nodes then stands
        return
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
        if "AuthenticationError" in f"{err!r} {err.__cause__} {err.__context__}":
            raise ConfigError(
                f"ray_address = {address}: wrong or no token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            ) from err
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


def _note_room(num_cpus: float, num_gpus: float, memory_bytes: int | None) -> None:
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
