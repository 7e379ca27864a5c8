"""`python -m fakeface_lab.data` prints which files are used, which are skipped and why, and clears the pixel cache."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fakeface_lab.data.__main__ import main

MakeImages = Callable[..., Path]


def test_card_says_what_is_used_and_what_is_not(
    make_images: MakeImages, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images(num_per_class=15)
    (root / "real" / "notes.txt").write_text("no image")
    (root / "fake" / "copy.png").write_bytes((root / "fake" / "fake_0.png").read_bytes())
    assert main(["--data", str(root), "--image-size", "24", "--split", "sealed", "--seed", "3"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "data images: 31 images (16 fake, 15 real), 24 px"
    assert "skipped 1: not an image (real/notes.txt)" in lines
    assert "used 1: copy of another file of the same class" in lines
    assert lines[-1].startswith("split sealed, seed 3: ")


@pytest.mark.slow
def test_drawn_faces_come_with_their_notice(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kagglehub"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert main(["--image-size", "32"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("DEMO DATA")
    assert "data      demo: " in printed


def test_wrong_folder_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", "nowhere"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: --data nowhere: no such folder;")
    assert captured.err.count("\n") == 1


def test_clear_cache_says_how_many_bytes(
    make_images: MakeImages, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_images(num_per_class=15)
    assert main(["--data", str(root), "--image-size", "24"]) == 0
    capsys.readouterr()
    pixels = next(Path(os.environ["FAKEFACE_CACHE"]).rglob("pixels.npy"))
    num_bytes = sum(path.stat().st_size for path in pixels.parent.iterdir())
    assert num_bytes > 30 * 24 * 24 * 3
    assert main(["--clear-cache"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{num_bytes:,} bytes of cached pixels deleted from {os.environ['FAKEFACE_CACHE']}\n"
    assert not pixels.exists()


def test_module_runs_as_a_program(project: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "fakeface_lab.data", "--clear-cache"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.startswith("0 bytes of cached pixels deleted from ")
    assert output.stderr == ""
