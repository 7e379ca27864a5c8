"""A model that would run somebody's code when it is read is refused, and its code is not run."""

import pickle
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from fakeface_lab import evaluate, predict
from fakeface_lab.backend import keras
from fakeface_lab.tracking.lookup import FoundModel, find_model, open_for_models
from fakeface_lab.tracking.models import log_model, package_model
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.writer import PatientWriter
from tests.tracked_model_store import SIZE_PX, TrackedProject

pytestmark = pytest.mark.usefixtures("tracked")

MARKER = Path("code was run")  # in the project folder, which is the current one


class Payload:
    """Leaves the marker when it is read from a pickle."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (MARKER,)


class PickledModel(mlflow.pyfunc.PythonModel):
    """Leaves the marker too."""

    def __init__(self) -> None:
        self.payload = Payload()

    def predict(self, context: object, model_input: object) -> object:
        return model_input


def leave_marker(x: object) -> object:
    MARKER.touch()
    return x


def with_lambda(folder: Path, found: FoundModel) -> None:
    layers = [keras.layers.Lambda(lambda x: leave_marker(x)), keras.layers.Flatten(), keras.layers.Dense(2)]
    package_model(keras.Sequential([keras.Input((SIZE_PX, SIZE_PX, 3)), *layers]), folder, None, found.metadata)


def with_pickled_file(folder: Path, found: FoundModel) -> None:
    package_model(found.network(), folder, None, found.metadata)
    (folder / "data" / "model.keras").write_bytes(pickle.dumps(Payload()))


def with_pickled_flavor(folder: Path, found: FoundModel) -> None:
    mlflow.pyfunc.save_model(
        folder, python_model=PickledModel(), metadata=dict(found.metadata), pip_requirements=["mlflow"]
    )


@pytest.mark.parametrize("main", [predict.main, evaluate.main], ids=["predict", "evaluate"])
@pytest.mark.parametrize(
    ("package", "reason"),
    [
        (with_lambda, "refused, it holds Python code (a Lambda layer) that would run on this machine; make a layer"),
        (with_pickled_file, "cannot be loaded ("),
        (with_pickled_flavor, "holds python_function, no Keras model; only models logged by this package can be"),
    ],
)
def test_a_model_with_code_is_refused(
    main: Callable[[list[str]], int],
    package: Callable[[Path, FoundModel], None],
    reason: str,
    tracked: TrackedProject,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = find_model(open_for_models(None, tracked.project), "tiny")
    run = TrackedRun.create(found.store, PatientWriter(10), "stranger", {"role": "baseline"})
    with run.ending():
        package(run.folder / "model", found)
        log_model(run, run.folder / "model", params={}, metrics={}, step=1, timestamp_ms=1, dataset=("faces", "d"))
    run.remove_files()
    MARKER.unlink(missing_ok=True)  # the layer was called when its model was made
    capsys.readouterr()
    files = [str(tracked.images / "fake" / "fake_2.png")] if main is predict.main else []
    assert main([run.run_id, *files]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: models:/m-")
    assert reason in last
    assert not MARKER.exists()


def test_code_that_runs_would_be_noticed() -> None:
    pickle.loads(pickle.dumps(Payload()))
    assert MARKER.exists()
