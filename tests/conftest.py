"""Fixtures that many tests share: a project folder of its own for each test, tiny image folders, real stores."""

import gc
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import event
from sqlalchemy.engine import Engine

from fakeface_lab.tracking.store import Store, open_store
from tests.made_once import empty_store
from tests.mlflow_server import Server
from tests.tracked_model_store import TrackedProject, copy_tracked_project

# Set before any test imports TensorFlow or MLflow. On small arrays threads of BLAS and OpenMP only wait for each
# other, the more so where tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# A shell without job control starts its background jobs with Ctrl-C ignored, and children inherit that: the tests that
# press Ctrl-C would test the shell.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@event.listens_for(Engine, "connect")
def _without_waiting_for_the_disk(connection: object, record: object) -> None:
    """Tests kill processes, not machines: what sqlite has handed to the system survives that."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run one process more than there are cores, unless the tests are slow ones.

    Some wait for a server, a browser or a heartbeat. Slow ones start several processes each.
    """
    return (os.cpu_count() or 1) + ("not slow" in config.option.markexpr)


def pytest_runtest_setup() -> None:
    """Leave what earlier tests have left out of garbage collections.

    Keras asks for one after each training, and it looks at all that is alive: late in a process a test of 1.4 s took
    16 s.
    """
    gc.freeze()


# Files that take more than half a minute begin first: one of them begun last keeps one process busy alone.
SLOWEST_FIRST = (
    "assess/test_inspection.py", "test_planted_faults.py", "training/test_recorder.py", "keras_tuner/test_tuner.py",
    "test_tune.py", "keras_tuner/test_hypermodel_work.py", "search/run/test_local_engine.py", "test_compare.py",
    "test_cut_at_every_write.py", "search/run/test_engine_contract.py", "detector/test_finals.py",
    "deploy/test_writes.py", "test_serving.py",
)  # fmt: skip


SERVICES = {"server", "served", "browser", "postgres", "s3"}


@pytest.hookimpl(tryfirst=True)  # before tests are deselected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of services by their fixtures, and put the slowest files first: xdist keeps this order."""
    for item in items:
        if isinstance(item, pytest.Function) and SERVICES.intersection(item.fixturenames):
            item.add_marker("services")
    rank = {name: number for number, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(Path(__file__).parent).as_posix(), len(rank)))


MakeImages = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's own settings out, but leave the folder of the real images to the tests that need it."""
    for name in list(os.environ):
        if name.startswith(("FAKEFACE_", "MLFLOW_TRACKING", "MLFLOW_RUN", "MLFLOW_EXPERIMENT")):
            monkeypatch.delenv(name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder that is the current one, with a cache of its own."""
    root = tmp_path / "project"
    (root / "experiments").mkdir(parents=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("FAKEFACE_CACHE", str(tmp_path / "cache"))
    return root


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """Return a function that draws a small data set: class 0 is brighter in its upper half."""

    def make(num_per_class: int = 20, size_px: int = 24, names: tuple[str, str] = ("fake", "real")) -> Path:
        root = tmp_path / "images"
        rng = np.random.default_rng(0)
        for label, name in enumerate(names):
            folder = root / name
            folder.mkdir(parents=True)
            for number in range(num_per_class):
                pixels = rng.integers(0, 200, (size_px, size_px, 3), dtype=np.uint8)
                if label == 0:
                    pixels[: size_px // 2] += 50
                Image.fromarray(pixels).save(folder / f"{name}_{number}.png")
        return root

    return make


@pytest.fixture(scope="module")
def deterministic() -> None:
    """Train as the programs do, whether or not an earlier test has called `set_up_process`."""
    from fakeface_lab.backend import tf

    tf.config.experimental.enable_op_determinism()


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Train without graphs: tracing one takes most of so short a training."""
    from fakeface_lab.backend import tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean set of drawn faces."""
    from tests.plants import draw_faces  # loads SciPy and scikit-learn, which few tests need

    return draw_faces(tmp_path_factory.mktemp("faces") / "clean")


@pytest.fixture
def copied(faces: Path, tmp_path: Path) -> Path:
    """A copy of them to plant a fault in."""
    shutil.copytree(faces, tmp_path / "planted")
    return tmp_path / "planted"


@pytest.fixture(scope="session")
def empty_project() -> Path:
    """A project folder whose store has its tables and no run."""
    return empty_store().parent


@pytest.fixture
def project_with_tables(project: Path, empty_project: Path) -> Path:
    """The current project folder, whose store has its tables already: making them takes seconds."""
    shutil.copy(empty_project / "mlflow.db", project / "mlflow.db")
    return project


@pytest.fixture
def local_store(project_with_tables: Path) -> Store:
    """A store of its own in the current project folder."""
    return open_store(None, project_with_tables, "faces")


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.services)])
def store(request: pytest.FixtureRequest, project: Path) -> Store:
    """The same test on a file and through a server."""
    if request.param == "sqlite":
        local: Store = request.getfixturevalue("local_store")
        return local
    server: Server = request.getfixturevalue("server")
    return open_store(server.uri, project, f"faces {request.node.name}")


@pytest.fixture
def new_project(tmp_path: Path, empty_project: Path) -> Callable[[str], Path]:
    """Return a function that makes a project folder whose store has its tables and no run."""

    def make(name: str) -> Path:
        root = tmp_path / name
        (root / "experiments").mkdir(parents=True)
        shutil.copy(empty_project / "mlflow.db", root / "mlflow.db")
        return root

    return make


@pytest.fixture
def new_store(new_project: Callable[[str], Path]) -> Callable[[str], Store]:
    """Return a function that makes a store in a project folder of its own."""
    return lambda name: open_store(None, new_project(name), name)


@pytest.fixture(scope="module")
def tracked_project(tmp_path_factory: pytest.TempPathFactory) -> TrackedProject:
    """A project with one tiny tracked model, copied for each file: its tests write to the store."""
    return copy_tracked_project(tmp_path_factory.mktemp("tracked"))


@pytest.fixture
def tracked(tracked_project: TrackedProject, monkeypatch: pytest.MonkeyPatch) -> TrackedProject:
    """The same as the current project."""
    tracked_project.enter(monkeypatch)
    return tracked_project


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder of the documented images; tests that need it are skipped where it is absent."""
    folder = _REAL_IMAGES or Path(__file__).parents[1] / "data" / "hardfakevsrealfaces"
    if not folder.is_dir():
        pytest.skip("the real images are not here; FAKEFACE_DATA names their folder")
    return folder


_REAL_IMAGES = Path(os.environ["FAKEFACE_DATA"]) if os.environ.get("FAKEFACE_DATA") else None


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running MLflow server; a test that kills it starts it again."""
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        yield server
    finally:
        server.kill()
