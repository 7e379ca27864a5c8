"""Runs a Python program unchanged, and notes when each of its training steps ends.

    python benchmarks/step_clock.py STEPS.jsonl -m fakeface_lab.baseline --data demo
    python benchmarks/step_clock.py STEPS.jsonl benchmarks/documented_recipe_torch.py FOLDER

STEPS gets one Unix time a line, in seconds. In Keras it is a callback that every `fit` gets, in a program whose name
ends in `torch.py` a hook of the optimizers: either is called right after the weights have changed.
"""

import functools
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

__all__: list[str] = []


def note_keras_steps(path: Path) -> None:
    """Give every `fit` of Keras a callback that notes its steps."""
    from fakeface_lab.backend import keras

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            note(path)

    fit = keras.Model.fit

    @functools.wraps(fit)
    def noted(*args: Any, callbacks: Any = (), **kwargs: Any) -> Any:
        return fit(*args, callbacks=[*(callbacks or ()), Clock()], **kwargs)

    setattr(keras.Model, "fit", noted)  # noqa: B010


def note_torch_steps(path: Path) -> None:
    """Note every step of an optimizer of PyTorch."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: note(path))


def note(path: Path) -> None:
    """Append the time."""
    with path.open("a") as file:
        file.write(json.dumps(time.time()) + "\n")


def main() -> None:
    """Run the program with its own command line."""
    steps, *words = sys.argv[1:]
    path = Path(steps).resolve()
    if words[0].endswith("torch.py"):
        note_torch_steps(path)
    else:
        note_keras_steps(path)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
