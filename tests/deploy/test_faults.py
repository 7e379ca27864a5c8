"""Searches on the deployed server through its faults: each ends as one that nothing has disturbed."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.deploy.faults import FAULTS, befall
from tests.deploy.searches import Searches
from tests.deploy.servers import TrackingServer
from tests.search_state import State, differences

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

AWAY_SECS = 60


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_server_changes_nothing(
    fault: str, searches: Searches, undisturbed: State, tracking_server: TrackingServer
) -> None:
    process = searches.start(fault)
    searches.wait_for_trial(fault, 1)
    with befall(tracking_server, fault):
        time.sleep(AWAY_SECS)
        assert process.poll() is None, "it cannot have ended meanwhile"
    assert differences(undisturbed, searches.finish(fault, process)) == []


@pytest.mark.parametrize("begins", ["at once", "later"])
def test_two_drivers_started_by_mistake_are_one(begins: str, searches: Searches, undisturbed: State) -> None:
    name = f"two drivers {begins}"
    machines = ("", " elsewhere")
    first = searches.start(name, machines[0])
    if begins == "later":
        searches.wait_for_trial(name, 1)
    second = searches.start(name, machines[1])
    codes = [process.wait(600) for process in (first, second)]
    logs = [searches.log(name, machine) for machine in machines]
    assert 0 in codes, logs
    for code, log in zip(codes, logs, strict=True):
        # One that has only watched the other until its end shows the result, as after any finished search.
        refusals = ("; wait for that process, or stop it first", "has taken it over", "begun at the same time")
        assert code == 0 or any(refusal in log for refusal in refusals), log
    assert sum("trial 1/3 (" in log for log in logs) == 1, logs  # one has trained
    assert differences(undisturbed, searches.state(name, machines[codes.index(0)])) == [], logs


def test_a_clock_set_back_changes_nothing(searches: Searches, undisturbed: State, tmp_path: Path) -> None:
    libraries = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        pytest.skip("libfaketime is not installed; with Debian: apt-get install faketime")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    variables = {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # nor does a machine's monotonic clock change when it is set back
    }
    process = searches.start("clock", **variables)
    searches.wait_for_trial("clock", 1)
    clock.write_text("-1d")
    # The clock must really have gone back in the search's process.
    shown = subprocess.run(["date", "+%s"], env=os.environ | variables, capture_output=True, text=True, check=True)
    assert int(shown.stdout) < time.time() - 80_000
    assert differences(undisturbed, searches.finish("clock", process)) == []
