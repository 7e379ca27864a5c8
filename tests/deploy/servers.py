"""What `deploy/` starts, for real: PostgreSQL, an S3 server, and the tracking server on both."""

import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import requests

from tests.mlflow_server import Server
from tests.service import Service

__all__ = ["S3", "PostgreSQL", "TrackingServer", "deployed", "find_postgresql"]

PROJECT = Path(__file__).resolve().parents[2]
_CLEAN = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}


def find_postgresql() -> Path | None:
    """Return the folder with PostgreSQL's programs, of the newest version; None if it is not installed."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")  # Debian does not put it on the path
    found = sorted(versions, key=lambda path: int(path.parts[-3])) or [Path(shutil.which("initdb") or "")]
    return found[-1].resolve().parent if found[-1].is_file() else None


def _succeeds(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


class PostgreSQL(Service):
    """A cluster of its own, whose only user has a password."""

    def __init__(self, folder: Path, programs: Path) -> None:
        super().__init__(folder)
        self._programs = programs
        self.password = secrets.token_urlsafe(24)
        # It refuses to run as root.
        self.user = "postgres" if os.geteuid() == 0 else None
        if self.user is not None:
            os.chown(folder, pwd.getpwnam(self.user).pw_uid, -1)

    def make(self) -> None:
        """Create the cluster."""
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        try:
            subprocess.run(
                [self._programs / "initdb", "--pgdata", self.folder / "data", "--username", "mlflow",
                 "--auth", "scram-sha-256", "--pwfile", password_file, "--no-sync"],
                env=_CLEAN, user=self.user, cwd=self.folder, check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            password_file.unlink()

    def command(self) -> list[str]:
        # Tests kill processes, not machines: nothing waits for the disk. No socket: its path may be too long.
        return [str(self._programs / "postgres"), "-D", str(self.folder / "data"), "-h", "127.0.0.1",
                "-p", str(self.port), "-c", "unix_socket_directories=", "-c", "fsync=off"]  # fmt: skip

    def variables(self) -> dict[str, str]:
        return _CLEAN

    def answers(self) -> bool:
        try:
            psycopg.connect(
                host="127.0.0.1", port=self.port, dbname="postgres", user="mlflow", password=self.password
            ).close()
        except psycopg.OperationalError:
            return False
        return True

    @property
    def address(self) -> dict[str, str]:
        """What its clients need, as the variables of PostgreSQL's own programs."""
        return {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGDATABASE": "postgres", "PGUSER": "mlflow",
                "PGPASSWORD": self.password}  # fmt: skip

    def dump(self) -> str:
        """Return all tables as SQL, except those of the users and their passwords' hashes."""
        return subprocess.run(
            [self._programs / "pg_dump", "--data-only", "--exclude-table", "users"],
            env=_CLEAN | self.address, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip


class S3(Service):
    """An S3 server with one bucket; it keeps its objects in files as long as it runs.

    Attributes:
        secret: its secret key.
        disk: folder of the files.
        is_small: whether the folder is a small file system of its own, which takes root to mount.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.secret = secrets.token_urlsafe(24)
        self.disk = folder / "disk"
        self.disk.mkdir()
        self.is_small = os.geteuid() == 0 and _succeeds("mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", self.disk)

    def close(self) -> None:
        """End it and give its disk back."""
        self.kill()
        if self.is_small:
            _succeeds("umount", self.disk)

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Fill the disk to the last byte."""
        filler = self.disk / "filler"
        try:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1 << 12))
            yield
        finally:
            filler.unlink()

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def variables(self) -> dict[str, str]:
        return _CLEAN | {"TMPDIR": str(self.disk), "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "1"}

    def answers(self) -> bool:
        return requests.put(f"http://127.0.0.1:{self.port}/artifacts", timeout=5).ok

    @property
    def address(self) -> dict[str, str]:
        """What its clients need, as the variables of boto3 and MLflow."""
        return {
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://artifacts/mlflow",
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def client_variables(self) -> dict[str, str]:
        """What a program needs that uses it directly, without a tracking server."""
        own = {name: value for name, value in self.address.items() if name.startswith("AWS_")}
        return own | {"AWS_ENDPOINT_URL": self.address["MLFLOW_S3_ENDPOINT_URL"]}


class TrackingServer(Server):
    """The server of `deploy/server.sh`."""

    def __init__(self, folder: Path, postgres: PostgreSQL, s3: S3, num_workers: int = 1) -> None:
        super().__init__(folder)
        self.postgres, self.s3, self._num_workers = postgres, s3, num_workers
        self.password, self._admin_password, self._key = (secrets.token_urlsafe(24) for _ in range(3))

    def command(self) -> list[str]:
        return [str(PROJECT / "deploy" / "server.sh")]

    def variables(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{_CLEAN['PATH']}"
        return _CLEAN | self.postgres.address | self.s3.address | {
            "PATH": path,
            "MLFLOW_PORT": str(self.port),
            "MLFLOW_WORKERS": str(self._num_workers),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self._admin_password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self._key,
        }  # fmt: skip

    def add_user(self, name: str = "ana") -> None:
        """Create a user who is no administrator; `ana` is the one whose `address` it is."""
        answer = requests.post(
            f"{self.uri}/api/2.0/mlflow/users/create", timeout=10, auth=("admin", self._admin_password),
            json={"username": name, "password": self.password},
        )  # fmt: skip
        answer.raise_for_status()

    @property
    def address(self) -> dict[str, str]:
        """What its clients need, as the variables of MLflow."""
        return {"MLFLOW_TRACKING_URI": self.uri, "MLFLOW_TRACKING_USERNAME": "ana",
                "MLFLOW_TRACKING_PASSWORD": self.password}  # fmt: skip

    @property
    def secrets(self) -> list[str]:
        """What must be found nowhere, also as the header of a request."""
        passwords = {"ana": self.password, "admin": self._admin_password}
        headers = [b64encode(f"{user}:{password}".encode()).decode() for user, password in passwords.items()]
        return [*passwords.values(), *headers, self._key, self.postgres.password, self.s3.secret]


@contextmanager
def deployed(folder: Path, num_workers: int = 1) -> Iterator[TrackingServer]:
    """Start all of it for a program, with the user `ana`; the databases' files are elsewhere and deleted."""
    programs = find_postgresql()
    assert programs is not None, "PostgreSQL is not installed; with Debian: apt-get install postgresql"
    places = {name: folder / name for name in ("s3", "tracking")}
    for place in places.values():
        place.mkdir(parents=True)
    # The user that PostgreSQL runs as must reach it.
    elsewhere = Path(tempfile.mkdtemp(prefix="postgres-"))
    postgres, s3 = PostgreSQL(elsewhere, programs), S3(places["s3"])
    tracking = TrackingServer(places["tracking"], postgres, s3, num_workers)
    try:
        postgres.make()
        for service in (postgres, s3, tracking):
            service.start()
        tracking.add_user()
        yield tracking
    finally:
        tracking.kill()
        s3.close()
        postgres.kill()
        shutil.rmtree(elsewhere)
