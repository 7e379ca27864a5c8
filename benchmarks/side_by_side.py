"""Whole-process time and peak memory of `fakeface_lab.baseline` beside the documented recipe as a plain script.

    python benchmarks/side_by_side.py data/hardfakevsrealfaces --epochs 2 --pairs 3

The two are run in turn, so that a machine whose speed drifts slows both; the ratios are what counts. One run of each
comes first and is not counted: it fills the pixel cache, makes the tracking store and warms the disk.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cost", "measure"]

RECIPE = Path(__file__).with_name("documented_recipe.py")


@dataclass(frozen=True)
class Cost:
    """What a process took: wall seconds, processor seconds, and the peak of its resident memory in bytes."""

    wall_secs: float
    cpu_secs: float
    peak_rss_bytes: int


def measure(command: list[str], folder: Path) -> Cost:
    """Run `command` in `folder` and return what the operating system counted for it.

    Raises:
        SystemExit: the command failed; its output is in `folder/output.log`.
    """
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        log = os.open("output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.execv(command[0], command)
    _, status, usage = os.wait4(pid, 0)
    if status != 0:
        raise SystemExit(f"failed: {' '.join(command)}; see {folder / 'output.log'}")
    return Cost(time.monotonic() - started, usage.ru_utime + usage.ru_stime, 1024 * usage.ru_maxrss)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="holds fake/ and real/")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    data, shared = options.folder.resolve(), ["--epochs", str(options.epochs)]
    ours = [sys.executable, "-m", "fakeface_lab.baseline", "--data", str(data), *shared]
    plain = [sys.executable, str(RECIPE.resolve()), str(data), *shared]
    os.environ["PYTHONPATH"] = str(RECIPE.resolve().parents[1])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "experiments").mkdir()
        pairs = [(measure(ours, folder), measure(plain, folder)) for _ in range(1 + options.pairs)][1:]
    print(f"| pair | baseline, s | script, s | ratio | baseline, GB | script, GB | ratio |\n|{'---|' * 7}")
    for number, (a, b) in enumerate(pairs, 1):
        print(
            f"| {number} | {a.wall_secs:.0f} | {b.wall_secs:.0f} | {a.wall_secs / b.wall_secs:.2f} "
            f"| {a.peak_rss_bytes / 1e9:.2f} | {b.peak_rss_bytes / 1e9:.2f} "
            f"| {a.peak_rss_bytes / b.peak_rss_bytes:.2f} |"
        )
    wall = statistics.median(a.wall_secs / b.wall_secs for a, b in pairs)
    memory = statistics.median(a.peak_rss_bytes / b.peak_rss_bytes for a, b in pairs)
    print(f"\nmedian ratio: wall {wall:.2f}, peak memory {memory:.2f}")


if __name__ == "__main__":
    main()
