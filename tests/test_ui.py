"""MLflow's own page, in a real browser, over what the programs have recorded: can a person compare runs there?

Skipped where there is no Chromium with its driver. `FAKEFACE_SCREENSHOTS` names a folder for pictures of each page.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from fakeface_lab.compare import main as compare
from fakeface_lab.tracking.lookup import children_of, find_run
from fakeface_lab.tracking.store import Store, open_store
from tests.tiny_store import TinyStore, tiny_store

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
SCREENSHOTS = os.environ.get("FAKEFACE_SCREENSHOTS")
PAGE_SECS, SERVER_SECS = 60, 120

pytestmark = pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="no Chromium with its driver here")

BROWSER_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1900,1200",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> TinyStore:
    return tiny_store()


@pytest.fixture(scope="module")
def store(tiny: TinyStore) -> Store:
    return open_store(tiny.uri, tiny.project, "images")


@pytest.fixture(scope="module")
def server(tiny: TinyStore) -> Iterator[str]:
    """The address of `mlflow ui` over the tiny store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--backend-store-uri", tiny.uri],
        cwd=tiny.project,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{port}/"
        _wait_for(address, process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + SERVER_SECS
    while time.monotonic() < deadline:
        assert process.poll() is None, "mlflow ui ended"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"no answer from {address}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = str(BROWSER)
    for flag in (*BROWSER_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


class Page:
    """One page, until it shows what is waited for."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self._browser = browser
        browser.get("about:blank")  # an address that differs behind the # alone would not load anew
        browser.get(address)

    def text(self) -> str:
        return str(self._browser.execute_script("return document.body.innerText"))

    def until(self, condition: Callable[["Page"], object], what: str) -> None:
        waiting = WebDriverWait(self._browser, PAGE_SECS, ignored_exceptions=[StaleElementReferenceException])
        try:
            waiting.until(lambda _: condition(self))
        except TimeoutException:
            raise AssertionError(f"the page does not show {what}:\n{self.text()}") from None

    def until_text(self, *words: str) -> None:
        self.until(lambda page: all(word in page.text() for word in words), ", ".join(words))

    def click(self, xpath: str) -> None:
        self.until(lambda page: page._browser.find_elements(By.XPATH, xpath), xpath)
        self._browser.execute_script("arguments[0].click()", self._browser.find_element(By.XPATH, xpath))

    def type(self, xpath: str, words: str) -> None:
        self.until(lambda page: page._browser.find_elements(By.XPATH, xpath), xpath)
        self._browser.find_element(By.XPATH, xpath).send_keys(words)

    def count(self, selector: str) -> int:
        return len(self._browser.find_elements(By.CSS_SELECTOR, selector))

    def column(self, heading: str) -> list[str]:
        """Return the texts of one column of the table of runs, from its first row."""
        found: list[str] = self._browser.execute_script(
            """
            const header = [...document.querySelectorAll('.ag-header-cell')].find(
                cell => cell.innerText.trim() === arguments[0]);
            const id = header ? header.getAttribute('col-id') : null;
            return [...document.querySelectorAll('.ag-cell')].filter(cell => cell.getAttribute('col-id') === id)
                .map(cell => [Number(cell.closest('.ag-row').getAttribute('row-index')), cell.innerText.trim()])
                .sort((one, other) => one[0] - other[0]).map(([index, text]) => text);
            """,
            heading,
        )
        return found

    def has_drawn_on(self, selector: str) -> bool:
        """Return whether a canvas shows anything."""
        return bool(
            self._browser.execute_script(
                """
                return [...document.querySelectorAll(arguments[0])].some(canvas => canvas.width && canvas.height
                    && canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean));
                """,
                selector,
            )
        )

    def keep_picture(self, name: str) -> None:
        if SCREENSHOTS:
            time.sleep(2)  # charts are drawn after their data has come
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            self._browser.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


def names_of_trials(store: Store, tiny: TinyStore) -> list[str]:
    return [run.info.run_name for run in children_of(store, find_run(store, tiny.search_run_id), "trial")]


def expand(page: Page, name: str, children: list[str]) -> None:
    """Open the runs below one; the page remembers what was open the last time it was looked at."""
    page.until_text(name)
    time.sleep(2)
    if not all(child in page.text() for child in children):
        page.click(f"//a[normalize-space()='{name}']/ancestor::div[contains(@class, 'ag-cell')][1]//button")
    page.until_text(*children)


def test_the_table_has_baselines_and_the_search_with_its_trials_below(
    browser: webdriver.Chrome, server: str, store: Store, tiny: TinyStore
) -> None:
    page = Page(browser, store.runs_link().replace("http://127.0.0.1:5000/", server))
    page.until_text("tiny search", "baseline s0 sealed", "baseline s0 documented")
    trials = names_of_trials(store, tiny)
    assert len(trials) == 3
    assert not any(name in page.text() for name in trials), "they are folded away at first"
    page.keep_picture("runs")
    expand(page, "tiny search", trials)
    page.keep_picture("runs-expanded")


def compare_address(server: str, store: Store, run_ids: list[str]) -> str:
    runs, experiments = quote(json.dumps(run_ids)), quote(json.dumps([store.experiment_id]))
    return f"{server}#/compare-runs?runs={runs}&experiments={experiments}&workflowType=machine_learning"


def test_two_compared_runs_show_parameters_and_metrics(
    browser: webdriver.Chrome, server: str, store: Store, tiny: TinyStore
) -> None:
    best = children_of(store, find_run(store, tiny.search_run_id), "trial")[1]
    page = Page(browser, compare_address(server, store, [tiny.sealed_run_id, best.info.run_id]))
    page.until_text("Comparing 2 Runs", "baseline s0 sealed", best.info.run_name)
    page.until_text("Parameters", "learning_rate", "filters_1", "Metrics", "best_val_loss")
    page.until_text(best.data.params["learning_rate"], "confusion_validation.png")
    page.keep_picture("compare")


def test_parallel_coordinates_draw_the_trials(
    browser: webdriver.Chrome, server: str, store: Store, tiny: TinyStore
) -> None:
    trials = children_of(store, find_run(store, tiny.search_run_id), "trial")
    page = Page(browser, compare_address(server, store, [run.info.run_id for run in trials]))
    page.until_text("Comparing 3 Runs", "Parallel Coordinates Plot")
    page.until(lambda shown: shown.count(".parcoords-line-layers, .parcoords"), "parallel coordinates")
    page.until(lambda shown: "learning_rate" in shown.text().partition("Run details")[0], "the axis learning_rate")
    page.keep_picture("parallel-coordinates")


def test_curves_of_runs_are_drawn_together(
    browser: webdriver.Chrome, server: str, store: Store, tiny: TinyStore
) -> None:
    address = store.runs_link().replace("http://127.0.0.1:5000/", server) + "&compareRunsMode=CHART"
    page = Page(browser, address)
    trials = names_of_trials(store, tiny)
    expand(page, "tiny search", trials)
    page.type("//input[@placeholder='Search metric charts']", "^val_loss$")
    page.until_text(*(f"{name} (val_loss)" for name in trials), "baseline s0 sealed (val_loss)")
    page.until(lambda shown: shown.count(".js-plotly-plot .scatterlayer .trace") >= 4, "a curve for each")
    page.keep_picture("charts")


@pytest.fixture
def printed_links(
    server: str, tiny: TinyStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, str]:
    """The links to the search's saved views as `compare` prints them."""
    monkeypatch.chdir(tiny.project)
    assert compare(["tiny search"]) == 0
    found = dict(re.findall(r"(leaderboard|charts) +(http\S+)", capsys.readouterr().out))
    return {name: link.replace("http://127.0.0.1:5000/", server) for name, link in found.items()}


def test_the_printed_leaderboard_has_the_trials_by_score(
    browser: webdriver.Chrome, printed_links: dict[str, str], store: Store, tiny: TinyStore
) -> None:
    trials = children_of(store, find_run(store, tiny.search_run_id), "trial")
    by_score = sorted(trials, key=lambda run: float(run.data.tags["score"]))
    page = Page(browser, printed_links["leaderboard"])
    page.until_text("Leaderboard: tiny search", "3 matching runs", *(run.info.run_name for run in trials))
    page.until(lambda shown: len(shown.column("learning_rate")) == 3, "the column learning_rate")
    page.keep_picture("leaderboard")
    scores = [float(text) for text in page.column("score")]
    assert scores == pytest.approx([float(run.data.tags["score"]) for run in by_score])
    for name in ("filters_1", "learning_rate"):
        assert page.column(name) == [run.data.params[name] for run in by_score]
    assert "baseline s0 sealed" not in page.text()


def test_the_printed_charts_are_those_of_the_trials(
    browser: webdriver.Chrome, printed_links: dict[str, str], store: Store, tiny: TinyStore
) -> None:
    page = Page(browser, printed_links["charts"])
    page.until_text("Charts: tiny search", "Parallel Coordinates", "filters_1 vs. score", "learning_rate vs. score")
    page.until_text(*(f"{name} (val_loss)" for name in names_of_trials(store, tiny)))
    page.until(lambda shown: shown.count(".parcoords svg .dimension path.domain") == 3, "three axes")
    page.until(lambda shown: shown.has_drawn_on(".parcoords canvas"), "lines between the axes")
    page.until(lambda shown: shown.count(".js-plotly-plot path.js-line") >= 3, "a curve for each trial")
    scatters = ".js-plotly-plot:not(:has(path.js-line)) .scatterlayer .points"
    page.until(lambda shown: shown.count(scatters) == 2, "two scatters")
    page.until(lambda shown: shown.count(f"{scatters} path.point") == 6, "a point for each trial in both scatters")
    page.keep_picture("search-charts")


def test_the_page_of_a_search_tells_its_result(
    browser: webdriver.Chrome, server: str, store: Store, tiny: TinyStore
) -> None:
    page = Page(browser, f"{server}#/experiments/{store.experiment_id}/runs/{tiny.search_run_id}")
    page.until_text("tiny search", "Child runs", *names_of_trials(store, tiny))
    page.until_text(tiny.verdict[:60])
    page.keep_picture("search")
