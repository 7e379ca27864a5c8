"""What can be wrong with the store and the installed packages before a search: findings, each with what to do."""

import json
import platform
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from fakeface_lab.errors import FakefaceLabError, TrackingError, without_credentials
from fakeface_lab.search.ledger import heartbeat
from fakeface_lab.tracking.lookup import Run, get_run, open_for_reading
from fakeface_lab.tracking.owner import OwnerState, unfinished_runs
from fakeface_lab.tracking.probe import artifact_location, ask_store, try_artifact, try_tag, within
from fakeface_lab.tracking.store import Store, resolve_tracking_uri

__all__ = [
    "Finding",
    "check_runs",
    "check_store",
    "check_versions",
    "check_writing",
    "judge_clock",
    "judge_server",
    "judge_versions",
    "problem",
]

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what, in one word.
        state: `note`: worth knowing, but searches work; `problem`: a search would fail or lose work.
        found: what is there.
        advice: what to do; "" if there is nothing to do.
    """

    check: str
    state: State
    found: str
    advice: str = ""


def problem(check: str, err: FakefaceLabError) -> Finding:
    """Return an error of this package, whose message says what is wrong, then what to do."""
    found, _, advice = str(err).partition("; ")
    return Finding(check, "problem", found, advice)


_PACKAGES = ("tensorflow", "keras", "keras-tuner", "mlflow", "ray")
_OPTIONAL = {"ray"}


def check_versions() -> list[Finding]:
    """Compare the installed packages with what this package requires, and with the versions that it was tested with."""
    installed = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    try:
        return judge_versions(installed, _required(), _tested())
    except metadata.PackageNotFoundError:
        advice = "install it with pip, as the README says"
        return [Finding("versions", "note", "fakeface-lab is not installed, so what it requires is unknown", advice)]


def judge_versions(
    installed: Mapping[str, str], required: Mapping[str, SpecifierSet], tested: Mapping[str, Version]
) -> list[Finding]:
    """Return what is wrong with versions, given by the name of the package; one `ok` if nothing is."""
    findings = []
    for name in _PACKAGES:
        version = installed.get(name)
        if version is None:
            if name not in _OPTIONAL:
                advice = f"pip install '{name}{required[name]}'"
                findings.append(Finding("versions", "problem", f"{name} is not installed", advice))
        elif not required[name].contains(version, prereleases=True):
            advice = f"pip install '{name}{required[name]}'"
            found = f"{name} {version} is outside the supported range, {required[name]}"
            findings.append(Finding("versions", "problem", found, advice))
        elif name in tested and Version(version) > tested[name]:
            advice = f"if something fails, pip install {name}=={tested[name]}"
            found = f"{name} {version} is newer than {tested[name]}, the newest that this was tested with"
            findings.append(Finding("versions", "note", found, advice))
    words = ", ".join(f"{name} {version}" for name, version in installed.items())
    return findings or [Finding("versions", "ok", f"python {platform.python_version()}, {words}")]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _required() -> dict[str, SpecifierSet]:
    ranges: dict[str, SpecifierSet] = {}
    for text in metadata.requires("fakeface-lab") or ():
        requirement = Requirement(text)
        # The first: an extra may name a package again, without a range.
        ranges.setdefault(requirement.name, requirement.specifier)
    return ranges


def _tested() -> dict[str, Version]:
    """Return the pinned versions; none outside the repository, where the file with them is missing."""
    path = Path(__file__).parents[2] / "constraints.txt"
    if not path.exists():
        return {}
    pins = (line.split("==") for line in path.read_text().splitlines() if "==" in line and not line.startswith("#"))
    return {name: Version(version.split(";")[0].strip()) for name, version in pins}


def check_store(setting: str | None, project: Path) -> tuple[list[Finding], Store | None]:
    """Look at the store that `--tracking-uri` names: does it answer, which version and which time has it.

    Returns:
        What was found, and the store; None if it cannot be opened, or if nothing has been recorded yet.
    """
    uri = resolve_tracking_uri(setting, project)
    try:
        answer = ask_store(uri)
        if answer.is_new:
            advice = "the first run makes it; if your runs are elsewhere, see --tracking-uri"
            return [Finding("store", "note", f"{without_credentials(uri)} has no runs yet", advice)], None
        store = within(lambda: open_for_reading(setting, project), f"tracking store {uri}")
    except TrackingError as err:
        return [problem("store", err)], None
    findings = [Finding("store", "ok", f"{without_credentials(uri)} answers")]
    if uri.startswith("http"):
        findings.append(judge_server(answer.server_version, metadata.version("mlflow"), _required()["mlflow"]))
    if answer.clock_ahead_secs is not None:
        findings.append(judge_clock(answer.clock_ahead_secs))
    return findings, store


def judge_server(server: str | None, client: str, supported: SpecifierSet) -> Finding:
    """Compare the version of the server's MLflow with the one here."""
    if server is None:
        return Finding("server", "note", "does not tell its version", f"compare it with the one here, {client}")
    if not supported.contains(server, prereleases=True):
        found = f"MLflow {server} is outside the supported range, {supported}"
        return Finding("server", "problem", found, f"upgrade the server to the version here, {client}")
    if Version(server) < Version(client):
        found = f"MLflow {server} is older than the one here, {client}"
        return Finding("server", "note", found, f"if it refuses a request, upgrade it, or pip install mlflow=={server}")
    return Finding("server", "ok", f"MLflow {server}")


_NOTED_SECS, _WRONG_SECS = 5.0, 60.0


def judge_clock(ahead_secs: float) -> Finding:
    """Judge how far the store's clock is ahead of the one here, s."""
    if abs(ahead_secs) <= _NOTED_SECS:
        return Finding("clock", "ok", f"within {_NOTED_SECS:.0f} s of the store's")
    found = f"the store's is {abs(ahead_secs):.0f} s {'ahead of' if ahead_secs > 0 else 'behind'} the one here"
    # Heartbeats are compared with each other, never with a clock.
    advice = (
        "set both by NTP: the newest run is the one with the latest start, so that runs of several machines get out of "
        "order, and S3 refuses requests that are 15 min off"
    )
    return Finding("clock", "problem" if abs(ahead_secs) > _WRONG_SECS else "note", found, advice)


def check_writing(store: Store) -> list[Finding]:
    """Write a tag and a file to the store, read the file back, and delete both."""
    findings = []
    try:
        try_tag(store)
        findings.append(Finding("writing", "ok", f"experiment {store.experiment_name} takes a tag and gives it up"))
    except TrackingError as err:
        findings.append(Finding("writing", "problem", str(err), "ask for the right to edit it, or see --tracking-uri"))
    location = ""
    try:
        location = within(lambda: artifact_location(store), f"experiment {store.experiment_name}")
        try_artifact(store, location)
        found = f"a file was written to {without_credentials(location)}, read and deleted"
        findings.append(Finding("artifacts", "ok", found))
    except TrackingError as err:
        findings.append(Finding("artifacts", "problem", str(err), _artifact_advice(location)))
    return findings


def _artifact_advice(location: str) -> str:
    if location.startswith("s3:"):
        return "set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, unless it is Amazon's, MLFLOW_S3_ENDPOINT_URL"
    if location.startswith("mlflow-artifacts:"):
        return "see the server's log, and its --artifacts-destination"
    return "can this machine write there? if not, let the server do it (mlflow server --serve-artifacts)"


def check_runs(store: Store) -> list[Finding]:
    """Look for runs that are recorded as running; takes longer than a heartbeat if a search elsewhere is silent."""
    try:
        found = within(lambda: unfinished_runs(store), "unfinished runs")
        ours = [(run, state) for run, state in found if "role" in run.data.tags]
        ids = {run.info.run_id for run, _ in ours}
        parents = Counter(run.data.tags.get("mlflow.parentRunId") for run, _ in ours)
        # The trials of an unfinished search are part of it.
        roots = [(run, state) for run, state in ours if run.data.tags.get("mlflow.parentRunId") not in ids]
        elsewhere = [run for run, state in roots if state == "elsewhere" and run.data.tags.get("driver")]
        silent = _silent(store, elsewhere)
    except TrackingError as err:
        return [problem("runs", err)]
    return [
        _judge_run(store, run, state, parents[run.info.run_id], is_silent=run.info.run_id in silent)
        for run, state in roots
    ] or [Finding("runs", "ok", "none is unfinished")]


def _silent(store: Store, searches: Sequence[Run]) -> set[str]:
    """Return the ids of the searches whose heartbeat does not change within the time of a beat."""
    signs = {run.info.run_id: run.data.tags["driver"] for run in searches}
    deadline = time.monotonic() + _watch_secs()
    while signs and time.monotonic() < deadline:
        time.sleep(heartbeat.BEAT_SECS / 20)
        signs = {key: sign for key, sign in signs.items() if get_run(store, key).data.tags.get("driver") == sign}
    return set(signs)


def _watch_secs() -> float:
    return 1.25 * heartbeat.BEAT_SECS


def _judge_run(store: Store, run: Run, state: OwnerState, num_children: int, *, is_silent: bool) -> Finding:
    name = run.data.tags.get("search") or str(run.info.run_name)
    what = f"{run.data.tags['role']} {name!r}" + (f" with {num_children} of its runs" if num_children else "")
    driver = json.loads(run.data.tags.get("driver") or "null")
    who = f"process {driver['pid']} on {driver['host']}" if driver else ""
    advice = f"{_how_to_resume(run, name)}; {_how_to_close(store, run)}"
    if state == "alive":
        return Finding("runs", "ok", f"{what}: its process is running")
    if state == "gone":
        return Finding("runs", "note", f"{what}: its process ended without closing it", advice)
    if who and not is_silent:
        return Finding("runs", "ok", f"{what}: {who} drives it")
    if who:
        return Finding("runs", "note", f"{what}: no heartbeat of {who} for {_watch_secs():.0f} s", advice)
    found = f"{what}: made in another folder or on another machine, where alone one can tell whether it is running"
    return Finding("runs", "note", found, f"if it is not: {advice}")


def _how_to_resume(run: Run, name: str) -> str:
    role, program = run.data.tags["role"], run.data.tags.get("mlflow.source.name", "the program")
    if role == "search" and program == "tune":
        return f"to resume it: python -m fakeface_lab.tune --name {shlex.quote(name)}, with its other settings"
    if role == "search":
        return f"to resume it: run {program} again"
    if role == "baseline":
        return "to resume it: python -m fakeface_lab.baseline --resume, with its other settings"
    return "its program starts over"


def _how_to_close(store: Store, run: Run) -> str:
    code = (
        f'from mlflow import MlflowClient; MlflowClient("{without_credentials(store.uri)}")'
        f'.set_terminated("{run.info.run_id}", "KILLED")'
    )
    return f"to close it: python -c {shlex.quote(code)}"
