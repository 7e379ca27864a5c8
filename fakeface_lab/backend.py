"""Imports Keras, KerasTuner and TensorFlow without their noise, and makes this process deterministic."""

import math
import os
from contextlib import suppress

from fakeface_lab.errors import ConfigError
from fakeface_lab.files import silent_stderr
from fakeface_lab.garbage import loading_libraries

__all__ = ["gpu_of_each", "hide_gpus", "keras", "keras_tuner", "num_cores", "set_up_process", "tf"]

# Both variables are read on import. A training step of the documented CNN takes 4 times as long on PyTorch and 6 times
# on JAX, and batches and determinism here are TensorFlow's.
if os.environ.setdefault("KERAS_BACKEND", "tensorflow") != "tensorflow":
    raise ConfigError(f"KERAS_BACKEND = {os.environ['KERAS_BACKEND']!r}: only tensorflow is supported; unset it")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


with silent_stderr(), loading_libraries():
    import keras
    import keras_tuner
    import tensorflow as tf

    # Otherwise a process takes the whole memory of a GPU. Set on import, because it must precede the first model, and a
    # search builds models before it has any settings.
    for _gpu in tf.config.list_physical_devices("GPU"):
        with suppress(RuntimeError):  # TensorFlow is already initialized: the caller has decided
            tf.config.experimental.set_memory_growth(_gpu, True)


def set_up_process(threads: int) -> int:
    """Make TensorFlow deterministic with a fixed number of threads, and return that number.

    Must be called before the first TensorFlow operation. The number of threads changes results from the seventh digit
    on, so runs record it.

    Args:
        threads: number of threads; 0 for all cores that this process may use.

    Raises:
        ConfigError: TensorFlow already runs with a different number of threads.
    """
    all_cores = num_cores()
    num_threads = threads or all_cores
    if tf.config.threading.get_intra_op_parallelism_threads() != num_threads:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(num_threads)
            # One operation at a time, on all threads: equally fast for this network, with fewer live buffers.
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError as err:
            present = tf.config.threading.get_intra_op_parallelism_threads() or all_cores
            if present != num_threads:
                raise ConfigError(
                    f"threads = {num_threads}: TensorFlow already runs with {present} in this process; use that "
                    f"number, or restart Python (in a notebook, its kernel)"
                ) from err
    # It costs nothing measurable on a CPU, where seeds alone already gave bit-equal runs; the kernels of a GPU need it.
    tf.config.experimental.enable_op_determinism()
    return num_threads


def hide_gpus() -> None:
    """Let this process use no GPU, so that all are free for the processes that train."""
    with suppress(RuntimeError):  # TensorFlow already uses one: the caller has decided
        tf.config.set_visible_devices([], "GPU")


def gpu_of_each(num_workers: int, gpus_per_trial: float | None) -> list[str]:
    """Return the GPU of each worker, as in CUDA_VISIBLE_DEVICES; empty if this machine has none.

    Raises:
        ConfigError: there are too few.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    if not num_gpus:
        if gpus_per_trial:
            raise ConfigError(f"gpus_per_trial = {gpus_per_trial:g}: TensorFlow sees no GPU; leave it out")
        return []
    names = visible.split(",") if visible else [str(index) for index in range(num_gpus)]
    if gpus_per_trial == 0:
        return [""] * num_workers
    per_gpu = 1 if gpus_per_trial is None else int(1 / gpus_per_trial + 1e-9)
    if num_workers > per_gpu * num_gpus:
        raise ConfigError(
            f"workers = {num_workers}: {num_gpus} GPUs have room for {per_gpu * num_gpus} trials; give fewer "
            f"workers, or let trials share one with gpus_per_trial = {1 / math.ceil(num_workers / num_gpus):.2g}"
        )
    return [names[worker // per_gpu] for worker in range(num_workers)]


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    import psutil

    # Not `os.cpu_count`, which also counts cores that `taskset` or the scheduler of a cluster keeps from this process.
    process = psutil.Process()
    # macOS has no CPU affinity.
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1
