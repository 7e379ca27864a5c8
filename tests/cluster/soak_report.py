"""What a soak has seen, as pictures and as a few lines."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.cluster.costs import FREED, QUESTION, Cost

__all__ = ["Sample", "draw_costs", "draw_memory", "summary"]

_WRITE = "POST runs/log-batch"
_NUM_WINDOWS = 40


@dataclass(frozen=True)
class Sample:
    """The state at one time.

    The driver's memory is what it shares with no other process, that of the servers counts what they share once.
    """

    secs: float
    num_trained: int
    num_lost: int
    driver_bytes: int
    server_bytes: int
    database_bytes: int


def draw_memory(samples: Sequence[Sample], costs: Sequence[Cost], deaths: Sequence[float], path: Path) -> None:
    """Draw the memory of driver, server and database over time, and the progress of the search."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    minutes = [sample.secs / 60 for sample in samples]
    for name, label in (("driver", "driver"), ("server", "MLflow server"), ("database", "PostgreSQL")):
        values = [getattr(sample, f"{name}_bytes") / 1e6 for sample in samples]
        if any(values):
            upper.plot(minutes, values, label=label)
    in_use = [driver / 1e6 for driver in _in_use_bytes(samples, costs)]
    upper.plot(minutes, in_use, label="driver, less what malloc keeps", color="C0", linestyle="--")
    upper.set_ylabel("memory, MB")
    upper.legend(loc="center right")
    lower.plot(minutes, [sample.num_trained for sample in samples])
    lower.set_ylabel("trials trained")
    lower.set_xlabel("minutes (dotted: a node was killed)")
    _finish([upper, lower], deaths)
    figure.savefig(path, dpi=90)


def draw_costs(costs: Sequence[Cost], deaths: Sequence[float], path: Path) -> None:
    """Draw what a question and a write take, over time: the median and the slowest tenth."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for one, what, label in zip(axes, (QUESTION, _WRITE), ("a question, CPU ms", "a write, ms"), strict=True):
        chosen = [cost for cost in costs if cost.what == what]
        size = max(1, len(chosen) // _NUM_WINDOWS)
        windows = [chosen[first : first + size] for first in range(0, len(chosen) - size + 1, size)]
        minutes = [statistics.median(cost.at for cost in window) / 60 for window in windows]
        for name, part in (("slowest tenth from", 0.9), ("median", 0.5)):
            one.plot(minutes, [1e3 * _quantile([cost.secs for cost in window], part) for window in windows], label=name)
        one.set_ylabel(label)
    axes[0].legend()
    axes[1].set_xlabel("minutes (dotted: a node was killed)")
    _finish(axes, deaths)
    figure.savefig(path, dpi=90)


def _in_use_bytes(samples: Sequence[Sample], costs: Sequence[Cost]) -> list[float]:
    """Return the driver's memory at each sample without what it has freed and the C library keeps."""
    freed = [(cost.at, cost.num_bytes) for cost in costs if cost.what == FREED]
    at, num_bytes = zip(*freed, strict=True)
    kept = np.interp([sample.secs for sample in samples], at, num_bytes)
    return [float(sample.driver_bytes - one) for sample, one in zip(samples, kept, strict=True)]


def _finish(axes: Sequence[Axes], deaths: Sequence[float]) -> None:
    for one in axes:
        one.set_ylim(bottom=0)
        for death in deaths:
            one.axvline(death / 60, color="grey", linestyle=":", linewidth=0.8)


def summary(samples: Sequence[Sample], deaths: Sequence[float], costs: Sequence[Cost]) -> str:
    """Return the figures as text."""
    last = samples[-1]
    lines = [
        f"{last.num_trained} trials in {last.secs:.0f} s, {len(deaths)} nodes killed, "
        f"{last.num_lost} attempts lost with them"
    ]
    tenth = max(1, len(samples) // 10)
    memory: dict[str, list[float]] = {
        "driver": [sample.driver_bytes for sample in samples],
        "driver, less what malloc keeps": _in_use_bytes(samples, costs),
        "server": [sample.server_bytes for sample in samples],
        "database": [sample.database_bytes for sample in samples],
    }
    for name, values in memory.items():
        parts = [statistics.median(values[at : at + tenth]) for at in (tenth, len(values) // 2, len(values) - tenth)]
        text = _texts([part / 1e6 for part in parts], 0)
        lines.append(f"memory of the {name}, MB, second tenth, middle, last tenth: {text}")
    for what, count in Counter(cost.what for cost in costs if cost.what != FREED).most_common():
        chosen = [cost for cost in costs if cost.what == what]
        tenth = max(1, len(chosen) // 10)
        medians = [1e3 * statistics.median(cost.secs for cost in part) for part in (chosen[:tenth], chosen[-tenth:])]
        mean_bytes = statistics.mean(cost.num_bytes for cost in chosen)
        lines.append(
            f"{what}: {count} ({count / max(1, last.num_trained):.2f} a trial), {mean_bytes:.0f} bytes, "
            f"median of the first and the last tenth: {_texts(medians, 1)} ms"
        )
    return "\n".join(lines)


def _texts(values: Sequence[float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def _quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]
