"""Program: can a search run here? Checks packages, store, unfinished runs, Ray, machine and disk.

    python -m fakeface_lab.doctor
    python -m fakeface_lab.doctor --config experiments/search-bayesian.toml --ray-address head:6379 --json

Takes about eight seconds, most of them to load TensorFlow; half a minute if a search elsewhere has fallen silent.
Nothing that it writes stays in the store. Exits with 2 if it found a problem: a search would fail or lose work. Notes
leave the exit code at 0.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fakeface_lab.config import find_project, load_settings
from fakeface_lab.errors import FakefaceLabError
from fakeface_lab.settings import DoctorSettings, TuneSettings
from fakeface_lab.terminal import console, run_program, say

if TYPE_CHECKING:
    from fakeface_lab.assess.health import Finding
    from fakeface_lab.tracking.store import Store

__all__ = ["examine", "main", "run_doctor"]

_PROG = "python -m fakeface_lab.doctor"
EXIT_PROBLEM = 2
_COLOURS = {"ok": "green", "note": "yellow", "problem": "bold red"}


def examine(settings: DoctorSettings, show: Callable[["Finding"], None] = lambda finding: None) -> list["Finding"]:
    """Make all checks, and return what was found; `show` is called with each finding as soon as it is known.

    Raises:
        ConfigError: the file of the search cannot be read.
    """
    from fakeface_lab.assess.health import check_runs, check_store, check_versions, check_writing
    from fakeface_lab.assess.machines import check_cluster, check_devices

    findings: list[Finding] = []

    def report(found: list["Finding"]) -> None:
        findings.extend(found)
        for finding in found:
            show(finding)

    project = find_project()
    search = None
    if settings.config is not None:
        search = load_settings(TuneSettings, ["--config", str(settings.config)], _PROG)
    report(check_versions())
    uri = settings.tracking_uri or (None if search is None else search.tracking_uri)
    found, store = check_store(uri, project)
    report(found)
    if store is not None:
        report(check_writing(store))
        report(check_runs(store))
    report(check_cluster(settings.ray_address or os.environ.get("RAY_ADDRESS")))
    # Last: TensorFlow takes as long to load as all the rest.
    report(check_devices())
    report(_check_room(search, project, store))
    return findings


def _check_room(search: TuneSettings | None, project: Path, store: "Store | None") -> list["Finding"]:
    from fakeface_lab.assess.health import problem
    from fakeface_lab.assess.machines import BASELINE_BYTES, check_disk, places_of

    needed, user = BASELINE_BYTES, "a baseline"
    if search is not None:
        from fakeface_lab.detector.search import estimate_search

        try:
            plan = estimate_search(search)
        except FakefaceLabError as err:
            return [problem("search", err)]
        needed = {"models": plan.model_bytes, "checkpoints": plan.checkpoint_bytes, "pixels": plan.pixel_bytes}
        user = "the search"
    return check_disk(places_of(needed, project, store), user)


def run_doctor(settings: DoctorSettings) -> int:
    """Print what was found, one line each, and return the exit code."""
    findings = examine(settings, show=lambda finding: None if settings.as_json else _print(finding))
    num_problems = sum(finding.state == "problem" for finding in findings)
    num_notes = sum(finding.state == "note" for finding in findings)
    if settings.as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    elif num_problems:
        console.print(f"{num_problems} to solve before a search, {num_notes} to know", style=_COLOURS["problem"])
    else:
        console.print(f"ready for a search; {num_notes or 'nothing'} to know", style=_COLOURS["ok"])
    return EXIT_PROBLEM if num_problems else 0


def _print(finding: "Finding") -> None:
    advice = f"; {finding.advice}" if finding.advice else ""
    say(finding.check, f"{finding.state:<8} {finding.found}{advice}", label_style=_COLOURS[finding.state])


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program(DoctorSettings, _PROG, run_doctor, argv)


if __name__ == "__main__":
    sys.exit(main())
