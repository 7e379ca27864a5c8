"""What the doctor says about disk, devices, and the versions on the nodes of a cluster."""

import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

from fakeface_lab.assess.health import Finding
from fakeface_lab.assess.machines import (
    BASELINE_BYTES,
    Place,
    check_cluster,
    check_devices,
    check_disk,
    compare_versions,
    places_of,
)
from fakeface_lab.detector.space import num_parameters
from fakeface_lab.settings import Hyperparameters
from fakeface_lab.tracking.store import Store


def test_what_a_baseline_needs() -> None:
    parameters = num_parameters(Hyperparameters(), 300)
    assert 0.98 < 4 * parameters / BASELINE_BYTES["models"] < 1.02
    assert 0.98 < 16 * parameters / BASELINE_BYTES["checkpoints"] < 1.02
    assert 0.98 < 1289 * 300**2 * 3 / BASELINE_BYTES["pixels"] < 1.02


def test_places_on_one_disk_are_added_up(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    halves = [Place("models", tmp_path, 0.51 * free), Place("pixels", tmp_path / "not" / "there yet", 0.51 * free)]
    (finding,) = check_disk(halves, "the search")
    assert (finding.check, finding.state) == ("disk", "problem")
    half = f"{0.51 * free / 1e9:.1f} GB"
    assert f"free in {tmp_path}; the search needs about {1.02 * free / 1e9:.1f} GB (models {half}, pixels {half})" in (
        finding.found
    )
    assert finding.advice == (
        "make room, keep fewer models (--keep-models), or move the folders (FAKEFACE_CACHE; the project)"
    )
    (close,) = check_disk([Place("models", tmp_path, 0.8 * free)], "the search")
    assert close.state == "note"
    (enough,) = check_disk([Place("models", tmp_path, 1e6)], "the search")
    assert (enough.state, enough.advice) == ("ok", "")


def test_models_need_no_room_here_if_a_server_keeps_them(local_store: Store) -> None:
    project = local_store.project
    for store in (local_store, None):
        folders = {place.what: place.folder for place in places_of(BASELINE_BYTES, project, store)}
        assert folders["models"] == project / "mlruns"
        assert folders["checkpoints"] == project / "mlruns" / ".work"
    number = local_store.client.create_experiment("away", artifact_location="s3://runs/1")
    # As a server's store: artifacts of a local one are in the project.
    away = replace(local_store, uri="http://tracking.example", experiment_id=number)
    assert [place.what for place in places_of(BASELINE_BYTES, project, away)] == ["checkpoints", "pixels"]


def test_this_machine() -> None:
    cores, memory, gpu = check_devices()
    assert cores.check == "cores"
    assert memory.found.endswith(" available")
    assert gpu.state in ("ok", "note")
    assert f"of {os.cpu_count()} usable" in cores.found or cores.advice.startswith("set --threads ")


def test_versions_on_a_node() -> None:
    here = {"python": "3.11.7", "keras": "3.15.1", "ray": "2.60.0"}
    assert compare_versions("b", here, dict(here)) == []
    lacks, other = compare_versions("b", here, {"python": "3.11.9", "ray": "2.60.0"})
    assert lacks == Finding("ray", "problem", "node b lacks keras 3.15.1", "install on it what is installed here")
    assert (other.state, other.found) == ("note", "node b has python 3.11.9 instead of 3.11.7")
    assert other.advice == "install the same versions, or equal trials may end with different numbers"
    (silent,) = compare_versions("b", here, None)
    assert (silent.state, silent.found) == ("problem", "node b did not run a task within 60 s")


def test_no_cluster() -> None:
    (unnamed,) = check_cluster(None)
    assert unnamed.state == "ok"
    assert unnamed.found.endswith("; no cluster is named (--ray-address, RAY_ADDRESS)")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        (away,) = check_cluster(address)
        assert (away.state, away.found) == ("problem", f"cluster {address}: [Errno 111] Connection refused")
        assert away.advice.startswith("is it running, with Ray ")
    (wrong,) = check_cluster("nowhere")
    assert wrong.found == "cluster nowhere: Invalid address format: nowhere"
