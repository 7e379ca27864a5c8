"""What the measuring programs share: tables in Markdown, and results with versions and machine in files."""

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

__all__ = ["PROJECT", "need", "side_environment", "table", "write_results"]

PROJECT = Path(__file__).resolve().parents[1]

_PACKAGES = ("fakeface-lab", "tensorflow", "keras", "keras-tuner", "mlflow", "numpy", "pillow")
_EXTRA_OF_BENCH = {"torch", "optuna", "optuna-integration", "ray"}


def need(*packages: str) -> None:
    """End the program with one line if a package that it compares with is missing."""
    for package in packages:
        try:
            version(package)
        except PackageNotFoundError:
            how = "pip install -e '.[bench]'" if package in _EXTRA_OF_BENCH else f"pip install {package}"
            sys.exit(f"{package} is not installed; {how}")


def side_environment(**more: str) -> dict[str, str]:
    """Return the environment of a measured process: this project importable, no store or setting of the user's."""
    foreign = ("MLFLOW_TRACKING", "MLFLOW_EXPERIMENT", "MLFLOW_RUN", "FAKEFACE_", "RAY_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "benchmarks")]),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **more,
    }


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown; numbers are to be given as text, with the digits that they are worth."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def write_results(output: Path | None, name: str, text: str, data: Any, packages: Sequence[str] = ()) -> None:
    """Print `text`; with a folder, also write NAME.md and NAME.json there, with versions and machine."""
    machine, versions = _machine(), _versions((*_PACKAGES, *packages))
    used = ", ".join(f"{package} {number}" for package, number in versions.items())
    print(f"\n{text}\n\n{machine['summary']}. {used}.", flush=True)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *_without_paths(sys.argv[1:])])
        page = f"    {command}\n\n{text}\n\n{machine['summary']}. {used}.\n"
        (output / f"{name}.md").write_text(page)
        content = {"command": command, "machine": machine, "versions": versions, "results": data}
        (output / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    load_before = os.getloadavg()[2] if hasattr(os, "getloadavg") else None
    memory_gb = round(psutil.virtual_memory().total / 1e9)
    cores, processor = psutil.cpu_count() or 1, _processor()
    load = "" if load_before is None else f", load of the last 15 minutes {load_before:.1f}"
    return {
        "summary": f"{processor}, {cores} cores, {memory_gb} GB, {platform.system()}{load}",
        "processor": processor,
        "num_cores": cores,
        "memory_gb": memory_gb,
        "system": f"{platform.system()} {platform.machine()}",
        "load_15_minutes": load_before,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _without_paths(words: Sequence[str]) -> list[str]:
    """Return the words of a command line, absolute paths cut to their last part: they say nothing elsewhere."""
    return [Path(word).name if Path(word).is_absolute() else word for word in words]
