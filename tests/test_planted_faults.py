"""The program of planted faults prints tables, and ends with 1 if one is missed or a clean set raises an alarm."""

from dataclasses import replace
from pathlib import Path

import pytest

from fakeface_lab.data.demo import generate_demo
from tests import planted_faults
from tests.faults import DEALT_FAULTS, FAULTS
from tests.plants import copy_to_other_class


@pytest.mark.usefixtures("project")
@pytest.mark.slow
def test_program_of_planted_faults_prints_tables_and_ends_with_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planted_faults, "FAULTS", {name: FAULTS[name] for name in ("quality", "exact copies")})
    monkeypatch.setattr(planted_faults, "DEALT_FAULTS", {"EXIF": DEALT_FAULTS["EXIF"]})
    assert planted_faults.main(["--per-class", "80", "--seeds", "1", "--sweep"]) == 0
    tables = capsys.readouterr().out.strip().split("\n\n")
    (quality, copies, exif, labels), (swept, _), (clean_sets,) = (
        [row.split(" | ") for row in table.splitlines()[2:]] for table in tables
    )
    assert quality[:3] == ["| one class saved at JPEG quality 75 instead of 95", "fail", "slice: jpeg_quality"]
    assert quality[3].startswith("pure 80/80, 80/80, p ")
    assert copies[1:4] == ["fail", "straddle: file", "20/20 pairs"]
    assert exif[1:3] == ["fail", "slice: metadata"]
    assert labels[1:3] == ["info", "labels: suspect labels"]
    assert swept[1].startswith("95: no; 94: fail")
    assert clean_sets[:2] == ["| 1", "0"]


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_program_of_planted_faults_ends_with_1_if_one_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planted_faults, "FAULTS", {"tint": replace(FAULTS["tint"], strength=0)})
    monkeypatch.setattr(planted_faults, "DEALT_FAULTS", {})
    assert planted_faults.main(["--per-class", "80", "--seeds", "0"]) == 1
    assert "red +0, blue -0 levels | **no** |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_program_of_planted_faults_ends_with_1_if_a_clean_set_raises_an_alarm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw_with_a_fault(root: Path, seed: int, num_per_class: int, size_px: int) -> Path:
        copy_to_other_class(generate_demo(root, num_per_class, size_px, seed))
        return root

    monkeypatch.setattr(planted_faults, "FAULTS", {})
    monkeypatch.setattr(planted_faults, "DEALT_FAULTS", {})
    monkeypatch.setattr(planted_faults, "_draw", draw_with_a_fault)
    assert planted_faults.main(["--per-class", "80", "--seeds", "1"]) == 1
    assert "\n| 1 | 1 | " in capsys.readouterr().out


def test_program_of_planted_faults_needs_enough_faces(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        planted_faults.main(["--per-class", "79"])
    assert "--per-class 79: too few to plant every fault; give 80 or more" in capsys.readouterr().err
