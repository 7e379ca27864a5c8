"""A registered model behind `mlflow models serve`, asked over HTTP, and by its name in the programs."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
from packaging.requirements import Requirement
from PIL import Image

from fakeface_lab.audit import run_audit
from fakeface_lab.evaluate import main as evaluate
from fakeface_lab.predict import main as predict
from fakeface_lab.settings import AuditProgramSettings
from fakeface_lab.tracking.lookup import find_model, get_run, open_for_models
from fakeface_lab.tracking.registry import create_registered_model, register_version, set_alias
from fakeface_lab.tracking.runs import StoredRun
from fakeface_lab.tracking.writer import PatientWriter
from tests.tracked_model_store import SIZE_PX, TrackedProject

PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def registered(tracked_project: TrackedProject) -> TrackedProject:
    """The tiny model registered as `faces@champion`."""
    with pytest.MonkeyPatch.context() as patch:
        tracked_project.enter(patch)
        store = open_for_models(None, tracked_project.project)
        run = get_run(store, tracked_project.run_id)
        create_registered_model(store, "faces")
        found = find_model(store, tracked_project.run_id)
        assert register_version(StoredRun(found.store, PatientWriter(10), run), "faces") == 1
        set_alias(store, "faces", "champion", 1)
    return tracked_project


@dataclass(frozen=True)
class Served:
    """Where the model answers."""

    url: str

    def post(self, body: object, content_type: str = "application/json") -> requests.Response:
        data = body if isinstance(body, str) else json.dumps(body)
        return requests.post(f"{self.url}/invocations", data=data, headers={"Content-Type": content_type}, timeout=60)


@pytest.fixture(scope="module")
def served(registered: TrackedProject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the command of the README, on a port of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    # A broken package where Python looks before it looks at what is installed: the model brings its own.
    other = tmp_path_factory.mktemp("other")
    (other / "fakeface_lab").mkdir()
    (other / "fakeface_lab" / "__init__.py").write_text("raise ImportError('not the code of the model')\n")
    settings = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(other),
        "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
    }
    words = ["mlflow", "models", "serve", "-m", "models:/faces@champion", "--env-manager", "local", "--port", str(port)]
    log = other / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, cwd=registered.project, env=settings, stdout=output, stderr=output, start_new_session=True
        )
    try:
        server = Served(f"http://127.0.0.1:{port}")
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if requests.get(f"{server.url}/ping", timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(0.2)
        else:
            raise TimeoutError(log.read_text()[-3000:])
        yield server
        assert "Traceback" not in log.read_text()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def png(picture: Image.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def noise(shape: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_it_answers_as_predict_does(
    served: Served,
    registered: TrackedProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registered.enter(monkeypatch)
    noise((3 * SIZE_PX, 2 * SIZE_PX, 3)).save(tmp_path / "other size.jpg")
    noise((SIZE_PX, SIZE_PX, 4)).save(tmp_path / "alpha.png")
    files = [str(tmp_path / "other size.jpg"), str(tmp_path / "alpha.png")]
    files += [str(path) for path in sorted((registered.images / "fake").glob("*_1*.png"))]
    assert predict(["faces@champion", *files, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    rows = [{"image": encoded(Path(name).read_bytes()), "file": name} for name in files]
    response = served.post({"dataframe_records": rows})
    assert response.status_code == 200, response.text
    answer = response.json()["predictions"]
    assert set(answer) == {"model", "run_id", "threshold", "warnings", "decisions"}
    assert [answer[key] for key in ("run_id", "threshold")] == [registered.run_id, 0.5]
    assert answer["warnings"] == expected["warnings"] != []
    assert [decision["file"] for decision in answer["decisions"]] == files
    for here, there in zip(answer["decisions"], expected["decisions"], strict=True):
        assert here["decided"] == there["decided"]
        assert here["probabilities"] == pytest.approx(there["probabilities"], abs=1e-6)


def test_an_image_without_a_name_has_its_number(served: Served) -> None:
    image = encoded(png(noise((SIZE_PX, SIZE_PX, 3))))
    bodies: list[Any] = [
        {"dataframe_records": [{"image": image, "file": "a.png"}, {"image": image}]},
        {"dataframe_split": {"columns": ["image", "file"], "data": [[image, "a.png"], [image, None]]}},
        {"inputs": {"image": [image, image], "file": ["a.png", "1"]}},
    ]
    for body in bodies:
        decisions = served.post(body).json()["predictions"]["decisions"]
        assert [decision["file"] for decision in decisions] == ["a.png", "1"]
    table = served.post(f"image\n{image}\n", "text/csv").json()["predictions"]["decisions"]
    assert [decision["file"] for decision in table] == ["0"]


GOOD = encoded(png(noise((SIZE_PX, SIZE_PX, 3))))
BAD = {
    "not base64": "it's a face!",
    "not an image": encoded(b"no picture"),
    "empty file": "",
    "truncated or damaged": encoded(png(noise((99, 99, 3)))[:500]),
    "more than 8 bits per channel: convert it to 8 bits first": encoded(
        png(Image.fromarray(np.zeros((9, 9), np.uint16)))
    ),
    "too many pixels (Pillow's limit against decompression bombs)": encoded(png(Image.new("1", (20_000, 20_000)))),
}


@pytest.mark.parametrize("reason", BAD)
def test_an_unusable_image_is_named_with_the_reason(served: Served, reason: str) -> None:
    response = served.post({"dataframe_records": [{"image": GOOD}, {"image": BAD[reason]}]})
    assert response.status_code == 400
    assert response.json() == {
        "error_code": "INVALID_PARAMETER_VALUE",
        "message": f"1 of 2 images cannot be used: image 1: {reason}; send image files with 8 bits per channel, in "
        f"base64",
    }


def test_of_many_unusable_images_five_are_named(served: Served) -> None:
    response = served.post({"dataframe_records": 7 * [{"image": None, "file": "a.png"}]})
    assert response.status_code == 400
    assert response.json()["message"] == (
        f"7 of 7 images cannot be used: {'; '.join(5 * ['image a.png: not base64'])}; and 2 more; send image files "
        f"with 8 bits per channel, in base64"
    )


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"dataframe_split": {"columns": ["image"], "data": []}}, "the request has no images; send at least one row"),
        ({"inputs": {"image": []}}, "the request has no images; send at least one row with a column `image`"),
        ({"dataframe_records": []}, "Model is missing inputs ['image']"),
        (
            {"dataframe_records": [{"picture": GOOD}]},
            "Model is missing inputs ['image']. Note that there were extra inputs: ['picture']",
        ),
        ({"images": [GOOD]}, "The input must be a JSON dictionary with exactly one of the input fields"),
        ("{", "Ensure that input is a valid JSON formatted string"),
    ],
)
def test_a_request_without_images_is_refused(served: Served, body: object, says: str) -> None:
    response = served.post(body)
    assert response.status_code == 400
    assert says in response.json()["message"]
    assert "stack_trace" not in response.json()


def test_its_name_is_understood_by_the_programs(
    registered: TrackedProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registered.enter(monkeypatch)
    store = open_for_models(None, registered.project)
    address = find_model(store, registered.run_id).uri
    # As versions were registered before there was a served form.
    version = store.client.create_model_version("faces", address, registered.run_id).version
    assert version == 2
    for word in ("faces@champion", "models:/faces/1", "models:/faces/2", "tiny"):
        found = find_model(store, word)
        assert (found.network_uri.rpartition("/")[2] == address.rpartition("/")[2]) == (word != "models:/faces/2")
        assert found.run.info.run_id == registered.run_id
        assert found.network().count_params() > 0
    assert evaluate(["faces@champion"]) == 0
    assert "test images" in capsys.readouterr().out


def test_the_network_is_stored_once(registered: TrackedProject, monkeypatch: pytest.MonkeyPatch) -> None:
    registered.enter(monkeypatch)
    networks = list((registered.project / "mlruns").rglob("*.keras"))
    assert len(networks) == 1
    (served,) = (registered.project / "mlruns").glob("*/models/*/artifacts/served_model.py")
    store = open_for_models(None, registered.project)
    outputs = get_run(store, registered.run_id).outputs.model_outputs
    assert len(outputs) == 1, "a finished run stays as it was"
    assert sum(path.stat().st_size for path in served.parent.rglob("*")) < 2_000_000
    assert str(PROJECT) not in served.with_name("MLmodel").read_text()
    assert not [path for path in served.parent.rglob("*") if path.suffix in {".pkl", ".pickle"}]


def test_warnings_are_those_of_the_moment_when_it_is_loaded(
    registered: TrackedProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered.enter(monkeypatch)
    run_audit(AuditProgramSettings(data=str(registered.images), image_size=SIZE_PX))
    open_for_models(None, registered.project)
    model = mlflow.pyfunc.load_model("models:/faces@champion")
    answer = model.predict(pd.DataFrame({"image": [GOOD]}))
    assert answer["warnings"][0].startswith("the audit of this model's data says that it must not be trusted: ")
    example = model.predict(model.input_example)
    assert example["decisions"][0]["file"] == "gray.png"


@pytest.mark.slow
def test_its_requirements_are_what_its_code_imports(registered: TrackedProject) -> None:
    code = "import sys, fakeface_lab.assess.served_model\nprint(*{name.partition('.')[0] for name in sys.modules})"
    settings = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    distributions = packages_distributions()
    imported = {one.lower() for name in done.stdout.split() for one in distributions.get(name, ())}
    declared = {Requirement(line).name.lower() for line in requires("fakeface-lab") or () if "extra ==" not in line}
    (served,) = (registered.project / "mlruns").glob("*/models/*/artifacts/served_model.py")
    listed = served.with_name("requirements.txt").read_text().split()
    assert {line.partition("==")[0].lower() for line in listed} == imported & declared
