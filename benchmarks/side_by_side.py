"""`fakeface_lab.baseline` beside the documented recipe as a plain Keras script and in PyTorch.

    python benchmarks/side_by_side.py data/hardfakevsrealfaces --epochs 2 --rounds 3 --output FOLDER
    python benchmarks/side_by_side.py demo --image-size 64 --epochs 1 --rounds 1

Time, memory and the first step of whole programs in fresh processes, all sides in turn, so that a machine whose speed
drifts slows all; the ratios are what counts, each from the runs of one round. One run of the program comes first and is
not counted: it makes the tracking store and warms the disk. *Cold* is a run with an empty pixel cache, which is ended
after its first step. The scripts decode the images in each run and track nothing. Needs the extra `bench`.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from processes import Cost, measure, with_clock
from results import need, side_environment, table, write_results

from fakeface_lab.data.sources import find_source

__all__: list[str] = []

HERE = Path(__file__).resolve().parent
SIDES = ("baseline, plain step", "baseline, fast step", "Keras script", "PyTorch script")
REFERENCE = "Keras script"


def words_of(side: str, data: Path, options: argparse.Namespace) -> list[str]:
    """Return the command line of a side, without Python."""
    shared = ["--epochs", str(options.epochs), "--image-size", str(options.image_size), "--seed", "0"]
    if side == "Keras script":
        return [str(HERE / "documented_recipe.py"), str(data), *shared]
    if side == "PyTorch script":
        return [str(HERE / "documented_recipe_torch.py"), str(data), *shared]
    step = "fast" if "fast" in side else "plain"
    return ["-m", "fakeface_lab.baseline", "--data", str(data), "--step", step, *shared]


def measure_round(data: Path, options: argparse.Namespace, scratch: Path) -> dict[str, tuple[Cost, Cost]]:
    """Return what each side took, and its run with an empty pixel cache; a script has no cache, so it has one run."""
    costs = {}
    for side in options.sides:
        command = with_clock(words_of(side, data, options))
        warm = measure(command, scratch, side_environment(FAKEFACE_CACHE=str(scratch / "cache")))
        cold = warm
        if side.startswith("baseline"):
            shutil.rmtree(scratch / "empty", ignore_errors=True)
            environment = side_environment(FAKEFACE_CACHE=str(scratch / "empty"))
            cold = measure(command, scratch, environment, until_first_step=True)
        costs[side] = (warm, cold)
        shown = f"step {warm.step_secs:.3f} s, {warm.wall_secs:.1f} s, {warm.peak_private_bytes / 1e9:.2f} GB"
        print(f"{side}: {shown}", flush=True)
    return costs


def columns(warm: Cost, cold: Cost) -> dict[str, float]:
    """Return the figures of one run, by column."""
    assert warm.step_secs is not None
    assert warm.first_step_secs is not None
    assert cold.first_step_secs is not None
    return {
        "a step, s": warm.step_secs,
        "wall, s": warm.wall_secs,
        "processor, s": warm.cpu_secs,
        "peak private memory, GB": warm.peak_private_bytes / 1e9,
        "first step, cold, s": cold.first_step_secs,
        "first step, warm, s": warm.first_step_secs,
    }


def summary(rounds: Sequence[dict[str, tuple[Cost, Cost]]], sides: Sequence[str]) -> str:
    """Return two tables in Markdown: medians of all rounds, and medians of the ratios within a round."""
    figures = {side: [columns(*one[side]) for one in rounds] for side in sides}
    names = list(figures[sides[0]][0])
    medians = [
        [side, *(f"{statistics.median(one[name] for one in figures[side]):.2f}" for name in names)] for side in sides
    ]
    text = table(["", *names], medians)
    if REFERENCE not in sides:
        return text
    ratios = [[side, *(_ratio(figures[side], figures[REFERENCE], name) for name in names)] for side in sides]
    headings = ["ratio to the Keras script", *(name.rsplit(", ", 1)[0] for name in names)]
    return f"{text}\n\n{table(headings, ratios)}"


def _ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]], name: str) -> str:
    return f"{statistics.median(one[name] / other[name] for one, other in zip(ours, theirs, strict=True)):.2f}"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder that holds fake/ and real/, or demo")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--output", type=Path, help="folder for the results as Markdown and JSON")
    options = parser.parse_args()
    if "PyTorch script" in options.sides:
        need("torch")
    data = find_source(options.data, None, Path.cwd(), options.image_size).root
    if not {"fake", "real"} <= {path.name for path in data.iterdir()}:
        sys.exit(f"{options.data}: needs the folders fake/ and real/")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "experiments").mkdir()
        first = [sys.executable, *words_of(SIDES[0], data, options)]
        measure(first, scratch, side_environment(FAKEFACE_CACHE=str(scratch / "cache")))
        rounds = [measure_round(data, options, scratch) for _ in range(options.rounds)]
    results = [
        {side: {"warm": asdict(warm), "cold": asdict(cold)} for side, (warm, cold) in one.items()} for one in rounds
    ]
    heading = f"{options.epochs} epochs, {options.image_size} px, batches of 32; medians of {options.rounds} rounds"
    text = f"{heading}\n\n{summary(rounds, options.sides)}"
    write_results(options.output, "side_by_side", text, results, ["torch"])


if __name__ == "__main__":
    main()
