"""A real MLflow server for tests, on this machine only."""

import os
import sys
from pathlib import Path

import requests

from tests.service import Service

__all__ = ["Server"]


class Server(Service):
    """An MLflow server on sqlite and a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.artifacts = folder / "artifacts"
        self.uri = f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"),
            *("--artifacts-destination", str(self.artifacts)),
        ]

    def variables(self) -> dict[str, str]:
        return os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}

    def answers(self) -> bool:
        return requests.get(f"{self.uri}/health", timeout=5).ok
