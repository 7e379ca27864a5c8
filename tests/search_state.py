"""Everything that a search or a baseline left in its store and on disk, in a form that two of them can be compared by.

Ids are replaced by names, and what is measured (times, memory) by nothing; all else must be equal to the last bit.
"""

import csv
import hashlib
import io
import json
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mlflow.entities import LoggedModel, LoggedModelStatus, Run, ViewType
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient
from PIL import Image

from tests.saved_views import VIEW_TAG, read_view

__all__ = ["State", "broken_promises", "differences", "read_state"]

# Times and memory.
_MEASURED_METRICS = {"epoch_secs", "train_secs", "peak_rss_bytes"}
# A time, how often a process was started or died, which is what the test does to it, and what git says meanwhile.
_MEASURED_TAGS = {"used_secs", "run_key", "owner", "num_restarts", "num_starts", "num_deaths",
                  "mlflow.source.git.commit", "mlflow.source.git.dirty"}  # fmt: skip
# `resume` is how the last process was started.
_MEASURED_KEYS = _MEASURED_METRICS | {"utc_time_created", "date_saved", "model_size_bytes", "resume"}
# Bars of measured times.
_MEASURED_PICTURES = {"cost.png"}

State = dict[str, Any]


def read_state(uri: str, project: Path, experiment: str | None = None) -> State:
    """Return the state of the only search or baseline in a store or in one experiment of it.

    Args:
        uri: of the store.
        project: its project folder.
        experiment: name of the experiment; None: all.
    """
    client = MlflowClient(uri)
    experiments = client.search_experiments(view_type=ViewType.ALL)
    if experiment is not None:
        experiments = [one for one in experiments if one.name == experiment]
    ids = [experiment.experiment_id for experiment in experiments]
    runs = list(client.search_runs(ids, run_view_type=ViewType.ALL, max_results=1000))
    names = _Names(project)
    counts = Counter(map(_run_name, runs))
    seen: Counter[str] = Counter()
    for run in sorted(runs, key=lambda run: int(run.info.start_time)):
        name = _run_name(run)
        seen[name] += 1
        names.add(run.info.run_id, name if counts[name] == 1 else f"{name}, number {seen[name]}")
    models = [model for one in ids for model in client.search_logged_models([one], max_results=1000)]
    of_run = defaultdict[str, list[LoggedModel]](list)
    for model in sorted(models, key=lambda model: int(model.creation_timestamp)):
        of_run[str(model.source_run_id)].append(model)
        names.add(model.model_id, f"model {len(of_run[str(model.source_run_id)])} of {names.of(model.source_run_id)}")
    state: State = {
        "experiments": {
            one.name if experiment is None else "": [one.lifecycle_stage, names.in_tags(one.tags)]
            for one in experiments
        },
        "registry": _read_registry(client, names),
        "files": _read_files(project, names, {run.info.run_id for run in runs} | {model.model_id for model in models}),
    }
    for run in runs:
        state[f"run {names.of(run.info.run_id)}"] = _read_run(client, uri, run, names)
    for model in models:
        state[names.of(model.model_id)] = _read_model(uri, model, names)
    return state


def differences(undisturbed: Any, other: Any, where: str = "") -> list[str]:
    """Return how two states differ, one line each."""
    if isinstance(undisturbed, dict) and isinstance(other, dict):
        found, last = [], "-"
        for key in sorted({**undisturbed, **other}, key=str):
            place = f"{where} / {key}" if where else str(key)
            if str(key).startswith(last + "/"):
                continue  # a file of a folder that is named already
            if (key in undisturbed) != (key in other):
                last = str(key)
            if key not in other:
                found.append(f"{place}: missing")
            elif key not in undisturbed:
                found.append(f"{place}: too many ({_short(other[key])})")
            else:
                found += differences(undisturbed[key], other[key], place)
        return found
    if undisturbed == other:
        return []
    return [f"{where}: {_short(undisturbed)} undisturbed, {_short(other)} here"]


def broken_promises(undisturbed: State, state: State) -> list[str]:
    """Return what is wrong with a search at a moment of its life: these things hold always, not only in the end."""
    found = []
    for name, facts in state.items():
        if name.startswith("model ") and facts["status"] == "READY":
            found += differences(undisturbed.get(name, {}).get("files"), facts["files"], f"READY {name}")
        if name.startswith("run ") and facts["status"] == "FINISHED" and facts["tags"].get("role") != "search":
            found += differences(undisturbed.get(name), facts, f"FINISHED {name}")
        if name.startswith("run final-") and facts["params"] and not state["run search"]["tags"].get("test_openings"):
            found.append(f"{name}: begun, and the opening of the test split is not counted")
    return found


class _Names:
    """Replaces ids and places by names that are equal in equal searches."""

    def __init__(self, project: Path) -> None:
        self._project = str(project)
        self._names: dict[str, str] = {}

    def add(self, one: str, name: str) -> None:
        self._names[one] = name

    def of(self, one: str) -> str:
        return self._names.get(one, "unknown")

    def in_text(self, text: str) -> str:
        text = re.sub(r"mlflow-artifacts:/[0-9]+/", "mlflow-artifacts:/", text.replace(self._project, "<project>"))
        text = re.sub(r"\b(m-)?[0-9a-f]{32}\b", lambda found: f"<{self._names.get(found[0], found[0])}>", text)
        # A second search in one store opens the same test images once more.
        text = re.sub(r"have been opened (once|\d+ times) in this store\.( Anything [^.]*\.)?", "<openings>", text)
        # A digest of ids stands for the runs that were registered.
        text = re.sub(r'"runs": "[0-9a-f]{16}"', '"runs": "<digest>"', text)
        # The table of trials shows rounded times, and the verdict's line a run's first characters.
        text = re.sub(r"\b[0-9]+(\.[0-9]+)? (ms|s|min|h)\b", "<time>", text)
        for one, name in self._names.items():
            text = text.replace(one[:12], f"<{name}>") if not one.startswith("m-") else text
        return text

    def in_tags(self, tags: dict[str, str]) -> dict[str, str]:
        readable = {key: _view(value) if key.startswith(VIEW_TAG) else value for key, value in tags.items()}
        return {key: self.in_text(value) for key, value in readable.items() if key not in _MEASURED_TAGS}


def _view(value: str) -> str:
    """Return a saved view of MLflow's page without its times, which are those of the search's start."""
    view = read_view(value)
    return json.dumps({"name": view["name"], "state": view["state"]})


def _run_name(run: Run) -> str:
    tags = run.data.tags
    role = tags.get("role", "no role")
    if role == "trial":
        return f"trial {tags.get('trial')}"
    return f"{tags['final_key']} ({role})" if "final_key" in tags else role


def _read_run(client: MlflowClient, uri: str, run: Run, names: _Names) -> State:
    facts: State = {
        "status": run.info.status,
        "lifecycle": run.info.lifecycle_stage,
        "has ended": run.info.end_time is not None,
        "tags": names.in_tags(run.data.tags),
        "params": dict(run.data.params),
        "inputs": [names.in_text(str(one.to_dictionary())) for one in run.inputs.dataset_inputs],
        "outputs": [(names.of(one.model_id), one.step) for one in run.outputs.model_outputs],
        "metrics": {},
    }
    for key in run.data.metrics:
        points = sorted(
            (point.step, None if key in _MEASURED_METRICS else point.value, names.of(point.model_id or ""))
            for point in client.get_metric_history(run.info.run_id, key)
        )
        facts["metrics"][key] = points
    files = get_artifact_repository(run.info.artifact_uri, uri)
    facts["artifacts"] = dict(_read_folder(Path(files.download_artifacts("")), names)) if files.list_artifacts() else {}
    return facts


def _read_model(uri: str, model: LoggedModel, names: _Names) -> State:
    files = get_artifact_repository(model.artifact_location, uri)
    is_empty = not files.list_artifacts()
    return {
        "status": str(LoggedModelStatus(model.status)),
        "name": model.name,
        "type": model.model_type,
        "params": dict(model.params),
        "tags": names.in_tags(model.tags),
        "metrics": sorted(
            (point.key, point.step, None if point.key in _MEASURED_METRICS else point.value, point.dataset_name or "",
             point.dataset_digest or "")
            for point in model.metrics or []
        ),
        "files": {} if is_empty else dict(_read_folder(Path(files.download_artifacts("")), names)),
    }  # fmt: skip


def _read_registry(client: MlflowClient, names: _Names) -> State:
    registry: State = {}
    for model in client.search_registered_models():
        versions = client.search_model_versions(f"name = '{model.name}'")
        registry[model.name] = {
            "aliases": {alias: int(version) for alias, version in model.aliases.items()},
            "tags": dict(model.tags),
            "versions": {
                int(one.version): (names.of(one.run_id), names.in_text(one.source), one.status, names.in_tags(one.tags))
                for one in versions
            },
        }
    return registry


def _read_files(project: Path, names: _Names, known: set[str]) -> State:
    """Return all files of the project folder except those of runs and models that the store knows."""
    found: State = {}
    for path in project.rglob("*"):
        place = path.relative_to(project)
        is_in_store = place.parts[0] == "mlruns" and place.parts[1:2] != (".work",) and known & set(place.parts)
        # MLflow leaves the empty folder of a model that is deleted.
        is_empty = path.is_dir() and not any(one.is_file() for one in path.rglob("*"))
        is_deleted = is_empty and "models" in place.parts and ".work" not in place.parts
        if not is_in_store and not is_deleted and not place.name.startswith("log"):
            found[names.in_text(str(place))] = "a folder" if path.is_dir() else "a file"
    return found


def _read_folder(folder: Path, names: _Names) -> Iterator[tuple[str, Any]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield str(path.relative_to(folder)), _read_file(path, names)


def _read_file(path: Path, names: _Names) -> Any:
    content = path.read_bytes()
    try:
        match path.suffix:
            case ".png":
                pixels = np.asarray(Image.open(path))
                return "a picture" if path.name in _MEASURED_PICTURES else _digest(pixels)
            case ".keras":
                return _read_archive(content)
            case ".h5":
                return _read_weights(content)
            case ".json":
                return _unmeasured(json.loads(names.in_text(content.decode())))
            case ".csv":
                rows = csv.DictReader(io.StringIO(names.in_text(content.decode())))
                return [{key: value for key, value in row.items() if key not in _MEASURED_KEYS} for row in rows]
            case "" if path.name == "MLmodel":
                lines = names.in_text(content.decode()).splitlines()
                return [line for line in lines if line.strip().partition(":")[0] not in _MEASURED_KEYS]
            case _:
                return names.in_text(content.decode())
    except (ValueError, OSError, zipfile.BadZipFile) as err:
        return f"damaged, {len(content)} bytes: {err}"


def _read_archive(content: bytes) -> State:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {
            "weights": _read_weights(archive.read("model.weights.h5")),
            "config": json.loads(archive.read("config.json")),
        }


def _read_weights(content: bytes) -> State:
    arrays: State = {}
    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(
            lambda name, found: arrays.update({name: _digest(found[()])}) if isinstance(found, h5py.Dataset) else None
        )
    return arrays


def _digest(array: Any) -> str:
    plain = np.ascontiguousarray(array)
    return f"{plain.dtype} {plain.shape} {hashlib.sha256(plain.tobytes()).hexdigest()[:16]}"


def _unmeasured(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _unmeasured(value) for key, value in content.items() if key not in _MEASURED_KEYS}
    return [_unmeasured(one) for one in content] if isinstance(content, list) else content


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 300 else f"{text[:300]}..."
