"""Runs of this process, and of a program that works until it is stopped."""

import os
import subprocess
import sys
from pathlib import Path

from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import Store
from fakeface_lab.tracking.writer import PatientWriter


def make_run(store: Store, writer: PatientWriter, name: str = "run 1", **tags: str) -> TrackedRun:
    return TrackedRun.create(store, writer, name, {"role": "baseline", **tags})


# A program that opens a run and then works until it is stopped.
PROGRAM = """
import sys, time
from pathlib import Path
from fakeface_lab.terminal import run_program
from fakeface_lab.settings import BaselineSettings
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.store import open_store

def body(settings):
    store = open_store(None, Path.cwd(), "faces")
    run = TrackedRun.create(store, PatientWriter(5), "a run", {"role": "baseline"})
    with run.ending():
        print(run.run_id, flush=True)
        time.sleep(120)

sys.exit(run_program(BaselineSettings, "program", body, []))
"""


def start_program(project: Path) -> tuple["subprocess.Popen[str]", str]:
    settings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=project, env=settings, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().strip()
