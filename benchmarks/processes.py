"""Runs a program as a process of its own, and measures its time, its private memory and its training steps.

Private memory is `Pss_Anon + Pss_Shmem` of `/proc/PID/smaps_rollup`, summed over the process and all its descendants:
pages that no file backs. `Pss` divides a page by the number of processes that map it, so one that is shared after a
fork counts once. A page of a mapped file, such as the pixel cache, does not count however few processes map it: the
system takes it back when it needs it. `Private_Clean` would count it, which is why that is not used. What was swapped
out does not count.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil

__all__ = ["Cost", "measure", "private_bytes", "with_clock"]

_POLL_SECS = 0.2
_PRIVATE = ("Pss_Anon:", "Pss_Shmem:")
_CLOCK = Path(__file__).with_name("step_clock.py")
_STEPS = "steps.jsonl"


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        wall_secs: from its start to its end.
        cpu_secs: of processor, of the process and those that it has waited for.
        peak_private_bytes: largest private memory of the process with its descendants, looked at every 0.2 s.
        first_step_secs: from its start to the end of its first training step; None without a clock.
        step_secs: of a training step, the median without the first; None without a clock.
    """

    wall_secs: float
    cpu_secs: float
    peak_private_bytes: int
    first_step_secs: float | None = None
    step_secs: float | None = None


def private_bytes(process: psutil.Process) -> int:
    """Return the private memory of a process and its descendants; 0 once they are gone."""
    total = 0
    with suppress(psutil.Error):
        for one in [process, *process.children(recursive=True)]:
            with suppress(OSError):
                for line in Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith(_PRIVATE):
                        total += 1024 * int(line.split()[1])
    return total


def with_clock(words: Sequence[str]) -> list[str]:
    """Return the command of a Python program (`-m NAME ...` or `FILE ...`) that notes its training steps."""
    return [sys.executable, str(_CLOCK), _STEPS, *words]


def measure(
    command: Sequence[str], folder: Path, environment: dict[str, str], *, until_first_step: bool = False
) -> Cost:
    """Run `command` in `folder` and return what it took.

    Args:
        command: of `with_clock`, if steps are to be timed.
        folder: where to run it; gets `output.log`.
        environment: of the process.
        until_first_step: end it with SIGTERM once the first training step has ended.

    Raises:
        SystemExit: the command failed.
    """
    steps = folder / _STEPS
    steps.unlink(missing_ok=True)
    with (folder / "output.log").open("ab") as log:
        began, began_at = time.monotonic(), time.time()
        child = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    process, peak, done = psutil.Process(child.pid), 0, 0
    while True:
        # Not `Popen.poll`, which would throw away what the system has counted.
        done, status, usage = os.wait4(child.pid, os.WNOHANG)
        if done:
            break
        peak = max(peak, private_bytes(process))
        if until_first_step and steps.exists() and steps.stat().st_size:
            child.send_signal(15)
            until_first_step, status = False, -1
        time.sleep(_POLL_SECS)
    wall_secs = time.monotonic() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    stopped = child.returncode in (-15, 143)
    if child.returncode and not stopped:
        sys.exit(f"failed: {' '.join(command)}; see {folder / 'output.log'}")
    ends = [json.loads(line) for line in steps.read_text().splitlines()] if steps.exists() else []
    between = [after - before for before, after in pairwise(ends)]
    return Cost(
        wall_secs,
        usage.ru_utime + usage.ru_stime,
        peak,
        ends[0] - began_at if ends else None,
        statistics.median(between) if between else None,
    )
