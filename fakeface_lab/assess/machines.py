"""What can be wrong with this machine and with the nodes of a Ray cluster before a search: findings, as in `health`."""

import logging
import os
import platform
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from fakeface_lab.assess.health import Finding, problem
from fakeface_lab.data.sources import cache_folder
from fakeface_lab.errors import ConfigError, TrackingError, without_credentials
from fakeface_lab.tracking.owner import package_versions
from fakeface_lab.tracking.probe import artifact_location, local_folder, within
from fakeface_lab.tracking.store import Store

__all__ = ["BASELINE_BYTES", "Place", "check_cluster", "check_devices", "check_disk", "compare_versions", "places_of"]


def check_devices() -> list[Finding]:
    """Report cores, memory and GPUs as a training sees them; loads TensorFlow, which takes seconds."""
    try:
        from fakeface_lab.backend import num_cores, tf
    except ConfigError as err:
        return [problem("backend", err)]
    except ImportError as err:
        return [Finding("backend", "problem", f"TensorFlow cannot be loaded: {err}", "pip install --force tensorflow")]
    return [_judge_cores(num_cores()), _memory(), _judge_gpus(len(tf.config.list_physical_devices("GPU")))]


def _judge_cores(num_usable: int) -> Finding:
    import joblib

    # It knows the limits of containers, which the affinity of a process does not show.
    num_allowed = joblib.cpu_count()
    if num_allowed < num_usable:
        found = f"a training starts {num_usable} threads, but the limit of this container is {num_allowed} cores"
        return Finding("cores", "note", found, f"set --threads {num_allowed}, or raise the limit")
    return Finding("cores", "ok", f"{num_usable} of {os.cpu_count()} usable")


_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def _memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    limit = int(memory.total)
    for path in map(Path, _MEMORY_LIMITS):
        with suppress(OSError, ValueError):  # absent, or the word "max"
            limit = min(limit, int(path.read_text()))
    free = min(int(memory.available), limit)
    return Finding("memory", "ok", f"{_gigabytes(free)} of {_gigabytes(limit)} available")


def _judge_gpus(num_seen: int) -> Finding:
    if num_seen:
        return Finding("gpu", "ok", f"TensorFlow sees {num_seen}")
    if list(Path("/dev").glob("nvidia[0-9]*")):
        found = "there is an NVIDIA card, but TensorFlow does not see it"
        return Finding("gpu", "note", found, "pip install 'fakeface-lab[gpu]', and see nvidia-smi")
    return Finding("gpu", "ok", "none; trainings use the cores")


@dataclass(frozen=True)
class Place:
    """What will be written to a folder, which may not exist yet.

    Attributes:
        what: will be written there.
        folder: the folder.
        needed_bytes: how much.
    """

    what: str
    folder: Path
    needed_bytes: float


# 46 million parameters in float32, with Adam's two moments and the best epoch in the checkpoint.
BASELINE_BYTES = {"models": 185e6, "checkpoints": 740e6, "pixels": 350e6}
_MARGIN = 1.5  # estimates are no better


def places_of(needed_bytes: Mapping[str, float], project: Path, store: Store | None) -> list[Place]:
    """Return where models, checkpoints and pixels go; without the models if they do not stay on this machine."""
    places = [
        Place("checkpoints", project / "mlruns" / ".work", needed_bytes["checkpoints"]),
        Place("pixels", cache_folder(), needed_bytes["pixels"]),
    ]
    # A new experiment of a local store has its artifacts in the project, wherever those of others are.
    folder = project / "mlruns" if store is None or store.is_local else local_folder(artifact_location(store))
    return places if folder is None else [*places, Place("models", folder, needed_bytes["models"])]


def check_disk(places: Sequence[Place], user: str) -> list[Finding]:
    """Compare the free space of each file system with what `user`, such as `one baseline`, will write to it."""
    by_device: dict[int, list[Place]] = {}
    for place in places:
        by_device.setdefault(_existing(place.folder).stat().st_dev, []).append(place)
    return [_judge_disk(shared, user) for shared in by_device.values()]


def _judge_disk(places: Sequence[Place], user: str) -> Finding:
    folder = _existing(places[0].folder)
    free, needed = shutil.disk_usage(folder).free, sum(place.needed_bytes for place in places)
    parts = ", ".join(f"{place.what} {_gigabytes(place.needed_bytes)}" for place in places)
    found = f"{_gigabytes(free)} free in {folder}; {user} needs about {_gigabytes(needed)} ({parts})"
    if free >= _MARGIN * needed:
        return Finding("disk", "ok", found)
    advice = "make room, keep fewer models (--keep-models), or move the folders (FAKEFACE_CACHE; the project)"
    return Finding("disk", "problem" if free < needed else "note", found, advice)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


_TASK_SECS = 60.0
_PORT_SECS = 5.0


def check_cluster(address: str | None) -> list[Finding]:
    """Look at the Ray cluster with this address: nodes, resources, and the packages on each node.

    Without an address, only whether Ray is installed. This process is disconnected from the cluster afterwards.
    """
    try:
        import ray
    except ImportError:
        advice = "for trials on a cluster: pip install 'fakeface-lab[ray]'"
        return [Finding("ray", "problem" if address else "note", "not installed", advice)]
    if address is None:
        return [Finding("ray", "ok", f"{ray.__version__}; no cluster is named (--ray-address, RAY_ADDRESS)")]
    shown = f"cluster {without_credentials(address)}"
    try:
        _require_port(address)
        within(lambda: _connect(address), shown, _TASK_SECS)
        # Where a task has to wait for a worker, `ray.get` would wait forever.
        return within(lambda: _look_at_nodes(shown), shown, 2 * _TASK_SECS)
    # ConnectionError: none there; RuntimeError: other versions of Ray or Python; ValueError: not an address.
    except (OSError, RuntimeError, ValueError, TrackingError) as err:
        reason = next((line.strip() for line in str(err).splitlines() if line.strip()), type(err).__name__)
        advice = (
            f"is it running, with Ray {ray.__version__} and Python {platform.python_version()}, and is RAY_AUTH_TOKEN "
            f"its token? see `ray status`"
        )
        return [Finding("ray", "problem", f"{shown}: {reason}", advice)]
    finally:
        ray.shutdown()


def _require_port(address: str) -> None:
    """Raise OSError if nothing listens there: Ray would wait for a minute, and may end the process."""
    parsed = urlparse(address if "://" in address else f"ray://{address}")
    if parsed.hostname and parsed.port:
        socket.create_connection((parsed.hostname, parsed.port), _PORT_SECS).close()


def _connect(address: str) -> None:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _look_at_nodes(shown: str) -> list[Finding]:
    import ray

    nodes = ray.nodes()
    alive = [node for node in nodes if node["Alive"]]
    total = ray.cluster_resources()
    resources = (
        f"{len(alive)} node(s), {total.get('CPU', 0):.0f} CPUs, {total.get('GPU', 0):.0f} GPUs, "
        f"{_gigabytes(total.get('memory', 0))} memory, {_gigabytes(total.get('object_store_memory', 0))} for objects"
    )
    findings = [Finding("ray", "ok", f"{shown} has {resources}")]
    if len(alive) < len(nodes):
        found = f"{shown} has lost {len(nodes) - len(alive)} node(s)"
        findings.append(Finding("ray", "note", found, "see `ray status` and the logs of those nodes"))
    here = {**package_versions(), "ray": ray.__version__}
    there = _versions_on_nodes(alive, list(here))
    for node in alive:
        findings += compare_versions(str(node["NodeManagerHostname"]), here, there.get(node["NodeID"]))
    return findings


def _versions_on_nodes(nodes: Sequence[Mapping[str, Any]], names: list[str]) -> dict[str, dict[str, str]]:
    """Return the versions of packages on each node, by the node's id; nodes that do not answer are left out."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Inside a function, so that Ray sends its code: this package may be missing on the node.
    def look_up(names: list[str]) -> dict[str, str]:
        import platform
        from importlib import metadata

        found = {"python": platform.python_version()}
        for name in names:
            try:
                found[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
        return found

    task = ray.remote(look_up)
    tasks = {}
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        # No CPU, so that a busy node answers too.
        reference = task.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote(names)
        tasks[reference] = node["NodeID"]
    done, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=_TASK_SECS)
    versions = {}
    for reference in done:
        with suppress(ray.exceptions.RayError):  # the node died meanwhile
            versions[tasks[reference]] = ray.get(reference)
    return versions


def compare_versions(node: str, here: Mapping[str, str], there: Mapping[str, str] | None) -> list[Finding]:
    """Compare the versions of packages on a node with those here; None: the node did not answer."""
    if there is None:
        found = f"node {node} did not run a task within {_TASK_SECS:.0f} s"
        return [Finding("ray", "problem", found, "see `ray status` and the logs of that node")]
    findings = []
    missing = [f"{name} {version}" for name, version in here.items() if name not in there]
    if missing:
        found = f"node {node} lacks {', '.join(missing)}"
        findings.append(Finding("ray", "problem", found, "install on it what is installed here"))
    others = [
        f"{name} {there[name]} instead of {version}"
        for name, version in here.items()
        if there.get(name, version) != version
    ]
    if others:
        found = f"node {node} has {', '.join(others)}"
        advice = "install the same versions, or equal trials may end with different numbers"
        findings.append(Finding("ray", "note", found, advice))
    return findings
