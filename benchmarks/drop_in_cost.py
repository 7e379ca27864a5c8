"""What a trial of a script costs beside building and fitting its model, with KerasTuner and with the one changed line.

    python benchmarks/drop_in_cost.py --trials 20 --rounds 5

Random search over a tiny dense network on scikit-learn's digits, the same configurations on all sides, in this process
(`engine="inline"`), fresh processes in turn. A trial is the time from one `fit` to the next, the mean over a search;
what it takes longer than in `fit alone`, which clears the session, builds the model and fits it, is its overhead. Here
that is the suggestion, its run in MLflow with parameters, metrics by epoch, curves and layer table; there it is
KerasTuner's own JSON and weights. `here, no model` leaves out what KerasTuner does not do: packaging the model for
MLflow and uploading it. What a search does once, at its start and end, has a column of its own.
"""

import argparse
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__: list[str] = []

SIDES = ("fit alone", "KerasTuner", "here", "here, no model")
_NUM_WARM_UP = 3
FIT = {"epochs": 2, "validation_split": 0.2, "verbose": 0}


def run_side(side: str, num_trials: int) -> dict[str, float]:
    """Run one search in the current, empty folder; return seconds per trial, and of what is done once."""
    keras_tuner: Any = importlib.import_module(f"{'fakeface_lab.' if side.startswith('here') else ''}keras_tuner")
    import keras
    from sklearn.datasets import load_digits

    own: dict[str, Any] = {"engine": "inline", "defaults_first": False} if side.startswith("here") else {}
    if side == "here, no model":
        from fakeface_lab.training import hypermodel

        vars(hypermodel)["package_model"] = lambda *_: None

    def build(hp: Any) -> Any:
        layers = [keras.layers.Dense(hp.Int("units", 8, 64, step=8), "relu"), keras.layers.Dense(10, "softmax")]
        model = keras.Sequential([keras.Input((64,)), *layers])
        rate = hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    fits, fit = [], keras.Model.fit

    @functools.wraps(fit)  # its signature tells the search which arguments there are
    def noted(*args: Any, **kwargs: Any) -> Any:
        fits.append(time.perf_counter())
        return fit(*args, **kwargs)

    setattr(keras.Model, "fit", noted)  # noqa: B010
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    tuner = keras_tuner.RandomSearch(
        build, "val_accuracy", max_trials=num_trials, seed=3, directory="searches", project_name="digits", **own
    )
    began = time.perf_counter()
    if side == "fit alone":
        for number in range(num_trials):
            trial = tuner.oracle.create_trial(str(number))
            keras.backend.clear_session()
            build(trial.hyperparameters).fit(x, y, **FIT)
    else:
        tuner.search(x, y, **FIT)
    ended = time.perf_counter()
    # The first trials trace and import what the later ones find.
    trial = (fits[-1] - fits[_NUM_WARM_UP]) / (len(fits) - 1 - _NUM_WARM_UP)
    return {"trial": trial, "once": ended - began - num_trials * trial}


def measure(side: str, num_trials: int) -> dict[str, float]:
    """Run one side in a process and a folder of its own."""
    words = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--trials", str(num_trials)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "experiments").mkdir()
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    secs: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return secs


def main() -> None:
    """Measure all sides in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(run_side(given.side, given.trials)))
        return
    rounds = []
    for number in range(given.rounds):
        rounds.append({side: measure(side, given.trials) for side in SIDES})
        shown = ", ".join(f"{side} {secs['trial']:.2f} s" for side, secs in rounds[-1].items())
        print(f"round {number + 1}: {shown}", flush=True)
    print(f"\nmedians of {given.rounds} rounds, {given.trials} trials each\n")
    print("| | a trial, s | its overhead, s | ratio to KerasTuner's, same round | once, s |\n|---|---|---|---|---|")
    beside = {name: [one[name]["trial"] - one["fit alone"]["trial"] for one in rounds] for name in SIDES}
    for side in SIDES:
        ratios = [ours / theirs for ours, theirs in zip(beside[side], beside["KerasTuner"], strict=True)]
        trial, once = (statistics.median(one[side][part] for one in rounds) for part in ("trial", "once"))
        overhead, ratio = statistics.median(beside[side]), statistics.median(ratios)
        print(f"| {side} | {trial:.2f} | {overhead:.2f} | {ratio:.2f} | {once:.1f} |")


if __name__ == "__main__":
    main()
