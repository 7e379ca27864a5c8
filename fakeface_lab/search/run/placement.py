"""Where the trials of a search run, and the engine that follows from it."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fakeface_lab.backend import tf
from fakeface_lab.errors import ConfigError
from fakeface_lab.files import pickle_mapped
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.run.checkpoint_storage import CheckpointStorage
from fakeface_lab.search.run.engine import EngineMaker, InlineEngine, Work
from fakeface_lab.search.run.local_engine import LocalEngine
from fakeface_lab.search.run.ray_cluster import connect, default_num_gpus, note_room
from fakeface_lab.search.run.ray_engine import RayEngine

__all__ = ["EngineKind", "EngineSettings", "make_engine"]

EngineKind = Literal["inline", "local", "ray"]


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
        memory_per_trial_bytes: a trial that uses more is ended; None for no limit.
        checkpoint_storage: place for checkpoints that all nodes can reach; None: a lost node's trials start again.
    """

    kind: EngineKind
    workers: int
    num_threads: int
    hang_secs: float
    ray_address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    memory_per_trial_bytes: int | None = None
    checkpoint_storage: str | None = None

    def __post_init__(self) -> None:
        """Refuse what the engine would ignore."""
        for name, value in (("ray_address", self.ray_address), ("cpus_per_trial", self.cpus_per_trial)):
            if value is not None and self.kind != "ray":
                raise ConfigError(f"{name} = {value}: only for engine ray, not {self.kind}; leave it out")
        if self.kind == "inline":
            for name in ("gpus_per_trial", "memory_per_trial_bytes", "checkpoint_storage"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name.removesuffix('_bytes')}: not with engine inline; use local or ray")


def make_engine(settings: EngineSettings, work: Work, ledger: Ledger) -> EngineMaker:
    """Return a function that makes the engine, given the handler of its events.

    Args:
        settings: which engine.
        work: what is trained; sent to worker processes through a file in the search's folder, to nodes by Ray.
        ledger: of the search.

    Raises:
        ConfigError: there are fewer GPUs than workers, no cluster answers, or the storage cannot be written.
    """
    if settings.kind == "inline":
        return lambda handler: InlineEngine(work, handler)
    place, memory_bytes = settings.checkpoint_storage, settings.memory_per_trial_bytes
    if settings.kind == "ray":
        connect(settings.ray_address)
    storage = CheckpointStorage.open(place, ledger.parent.run_id) if place else None
    if settings.kind == "local":
        path, gpus = pickle_mapped(work, ledger.parent.folder, "work.pkl"), _gpus(settings)
        return lambda handler: LocalEngine(
            path, handler, num_workers=settings.workers, num_threads=settings.num_threads,
            hang_secs=settings.hang_secs, gpus=gpus, memory_bytes=memory_bytes, storage=storage,
        )  # fmt: skip
    num_cpus = settings.cpus_per_trial or settings.num_threads
    num_gpus = default_num_gpus() if settings.gpus_per_trial is None else settings.gpus_per_trial
    note_room(num_cpus, num_gpus, memory_bytes)
    return lambda handler: RayEngine(
        work, handler, num_trials=settings.workers, num_threads=settings.num_threads, hang_secs=settings.hang_secs,
        num_cpus=num_cpus, num_gpus=num_gpus, memory_bytes=memory_bytes, storage=storage,
    )  # fmt: skip


def _gpus(settings: EngineSettings) -> Sequence[str]:
    """Return the GPU of each worker, as in CUDA_VISIBLE_DEVICES; empty if this machine has none.

    Raises:
        ConfigError: there are too few.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    if not num_gpus:
        if settings.gpus_per_trial:
            raise ConfigError(f"gpus_per_trial = {settings.gpus_per_trial:g}: TensorFlow sees no GPU; leave it out")
        return []
    names = visible.split(",") if visible else [str(index) for index in range(num_gpus)]
    if settings.gpus_per_trial == 0:
        return [""] * settings.workers
    per_gpu = 1 if settings.gpus_per_trial is None else int(1 / settings.gpus_per_trial + 1e-9)
    if settings.workers > per_gpu * num_gpus:
        raise ConfigError(
            f"workers = {settings.workers}: {num_gpus} GPUs have room for {per_gpu * num_gpus} trials; give fewer "
            f"workers, or let trials share one with gpus_per_trial = {1 / math.ceil(settings.workers / num_gpus):.2g}"
        )
    return [names[worker // per_gpu] for worker in range(settings.workers)]
