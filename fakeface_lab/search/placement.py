"""Where the trials of a `Tuner` run: in worker processes, if all its parts can be sent to them."""

import io

import cloudpickle
import numpy as np

from fakeface_lab.backend import num_cores, set_up_process, tf
from fakeface_lab.errors import ConfigError
from fakeface_lab.search.hypermodel_work import HypermodelWork
from fakeface_lab.search.run.engine import Placement
from fakeface_lab.terminal import console

__all__ = ["place"]


def place(work: HypermodelWork, wanted: Placement | None, workers: int, threads: int) -> tuple[Placement, int]:
    """Return where the trials run and the threads of one training; say it where it is not what one would expect.

    Args:
        work: what is to be sent; its number of threads does not matter yet.
        wanted: what the user chose, None for worker processes where they can be had.
        workers: trials at the same time.
        threads: what the user chose, 0 for the cores shared among the workers.

    Raises:
        ConfigError: worker processes are wanted and something cannot be sent to them; or this process has begun to
            work with another number of threads.
    """
    obstacle = "engine='inline'" if wanted == "inline" else _obstacle(work)
    if obstacle is None:
        return "local", threads or max(1, num_cores() // workers)
    if wanted == "local":
        raise ConfigError(f"engine='local': {obstacle} cannot be sent to a worker process; give arrays, or 'inline'")
    if wanted is None:
        console.print(
            f"trials run in this process: {obstacle} cannot be sent to a worker process. A crash ends the search "
            f"(start it again, it goes on)",
            style="yellow",
        )
    return "inline", _set_up_here(threads)


class _Sendable(cloudpickle.Pickler):
    """Tries whether something can be pickled, without its arrays."""

    def persistent_id(self, obj: object) -> str | None:
        return "array" if isinstance(obj, np.ndarray) and not obj.dtype.hasobject else None


def _obstacle(work: HypermodelWork) -> str | None:
    """Return what keeps the work from being sent to a worker process, or None."""
    parts = {
        "the hypermodel": work.recipe,
        "a callback": work.fit.callbacks,
        "what search() was given": (work.fit.args, work.fit.kwargs),
    }
    for name, part in parts.items():
        try:
            _Sendable(io.BytesIO()).dump(part)
        except Exception as err:  # whatever the user's object raises
            return f"{name} ({str(err).partition(chr(10))[0]})"
    return None


def _set_up_here(threads: int) -> int:
    """Make this process deterministic, and return its number of threads: fixed once TensorFlow has begun to work."""
    try:
        return set_up_process(threads)
    except ConfigError as err:
        fixed = int(tf.config.threading.get_intra_op_parallelism_threads()) or num_cores()
        if threads not in (0, fixed):
            raise ConfigError(
                f"threads = {threads}: TensorFlow already runs with {fixed} in this process; leave threads out"
            ) from err
        tf.config.experimental.enable_op_determinism()
        return fixed
