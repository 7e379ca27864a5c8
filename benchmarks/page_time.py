"""How long MLflow's page takes to show the saved view of a search, in a headless Chromium."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from results import side_environment

from fakeface_lab.tracking.lookup import find_run, open_for_reading
from fakeface_lab.tracking.views import view_links

__all__ = ["time_page"]

_START_SECS, _PAGE_SECS = 180, 600
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1900,1200",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def time_page(project: Path, database: Path, search: str, num_times: int) -> list[float] | None:
    """Return the seconds from the request to the first rows, each with an empty cache; None without Chromium."""
    browser, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if browser is None or driver is None:
        return None
    uri = f"sqlite:///{database}"
    store = open_for_reading(uri, project)
    link = view_links(store, find_run(store, search))["leaderboard"]
    with _served(project, uri) as address:
        address = link.replace("http://127.0.0.1:5000/", address)
        return [_time_once(browser, driver, address) for _ in range(num_times)]


def _time_once(browser: str, driver: str, address: str) -> float:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = Options()
    options.binary_location = browser
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*_FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        page = webdriver.Chrome(options=options, service=Service(driver))
        try:
            began = time.monotonic()
            page.get(address)
            rows = (By.CSS_SELECTOR, ".ag-center-cols-container .ag-row .ag-cell")
            WebDriverWait(page, _PAGE_SECS, poll_frequency=0.1).until(lambda shown: shown.find_elements(*rows))
            return time.monotonic() - began
        finally:
            page.quit()


@contextmanager
def _served(project: Path, uri: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["ui", "--workers", "1", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", uri]
    environment = side_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with (project / "ui.log").open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], cwd=project, env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}/"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _wait_for(address: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _START_SECS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    sys.exit(f"mlflow ui does not answer at {address}")
