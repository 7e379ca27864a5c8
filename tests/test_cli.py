"""Each way a program can end has its exit code and its words."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fakeface_lab.errors import AllTrialsFailedError, DataError, FakefaceLabError, TrackingError
from fakeface_lab.settings import RunSettings
from fakeface_lab.terminal import run_program

PROG = "python -m fakeface_lab.test"


@pytest.fixture(autouse=True)
def _in_project(project: Path) -> None:
    """Keep any file of the current folder out."""


def _run(body: object, *argv: str) -> int:
    return run_program(RunSettings, PROG, body, list(argv))  # type: ignore[arg-type]


def _raising(error: BaseException) -> object:
    def body(settings: RunSettings) -> None:
        raise error

    return body


def test_done_is_0_and_an_int_is_the_exit_code() -> None:
    assert _run(lambda settings: None) == 0
    assert _run(lambda settings: "a result") == 0
    assert _run(lambda settings: 3) == 3
    assert _run(lambda settings: settings.seed, "--seed", "7") == 7


def test_an_exit_with_a_text_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_raising(SystemExit("a library gives up"))) == 1
    assert capsys.readouterr().err == "a library gives up\n"


def test_help_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_raising(AssertionError("must not run")), "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: {PROG}")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("no folder; make one"), 2),
        (TrackingError("server away"), 1),
        (AllTrialsFailedError("none has a score"), 4),
        (FakefaceLabError("anything"), 2),
    ],
)
def test_known_error_is_one_line(capsys: pytest.CaptureFixture[str], error: FakefaceLabError, code: int) -> None:
    assert _run(_raising(error)) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_wrong_setting_is_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_raising(AssertionError("must not run")), "--sed", "3") == 2
    assert capsys.readouterr().err == "error: --sed: unknown argument; did you mean --seed?\n"


@pytest.mark.parametrize("how", ["flag", "environment", "file"])
def test_debug_shows_the_trace_of_a_known_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    argv = ["--debug"] if how == "flag" else []
    if how == "environment":
        monkeypatch.setenv("FAKEFACE_DEBUG", "true")
    if how == "file":
        Path("debug.toml").write_text("debug = true\n")
        argv = ["--config", "debug.toml"]
    assert _run(_raising(DataError("no folder")), *argv) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last)")
    assert printed.endswith("error: no folder\n")


def test_debug_shows_the_trace_of_a_wrong_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_raising(AssertionError("must not run")), "--debug", "--seed", "x") == 2
    assert "Traceback" in capsys.readouterr().err


def test_our_own_fault_is_1_with_a_trace(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_raising(ZeroDivisionError("oops"))) == 1
    printed = capsys.readouterr().err
    assert "ZeroDivisionError: oops" in printed
    assert printed.endswith("internal error; please report it with the traceback above\n")


def test_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(_raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "stopped; finished work is kept\n"


def test_handler_of_the_caller_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside = []
    assert _run(lambda settings: inside.append(signal.getsignal(signal.SIGTERM))) == 0
    assert inside[0] is not before
    assert signal.getsignal(signal.SIGTERM) is before


WAITING = """
import sys, time
from fakeface_lab.terminal import run_program
from fakeface_lab.settings import RunSettings
def body(settings):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("unwound", flush=True)
sys.exit(run_program(RunSettings, "waiting", body, []))
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_unwinds_the_stack_and_sets_the_exit_code(number: signal.Signals, code: int) -> None:
    process = _start(["-c", WAITING])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (code, "unwound\n")
    assert errors == "stopped; finished work is kept\n"


def test_name_that_is_no_text_is_shown_escaped() -> None:
    code = (
        "import sys\n"
        "from fakeface_lab.terminal import run_program\n"
        "from fakeface_lab.settings import RunSettings\n"
        "sys.exit(run_program(RunSettings, 'p', lambda settings: print(settings.data), sys.argv[1:]))\n"
    )
    process = _start(["-c", code, "--data", os.fsdecode(b"caf\xe9")])
    assert process.communicate(timeout=30) == ("caf\\udce9\n", "")


def _start(command: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
