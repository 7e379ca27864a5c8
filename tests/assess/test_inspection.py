"""Faults planted in drawn faces and photographs are found by the check meant for them; clean sets raise no alarm."""

import json
from pathlib import Path

import pytest
from PIL import Image

from fakeface_lab.assess.inspection import Inspection
from fakeface_lab.data.demo import generate_demo
from tests import planted_faults
from tests.faults import DEALT_FAULTS, FAULTS, FORENSIC, WRONG_LABELS, Fault
from tests.planted_faults import alarms, try_fault
from tests.plants import NUM_PER_CLASS, SIZE_PX, copy_to_other_class, deal, draw_faces, load, swap_labels


def inspect(root: Path) -> Inspection:
    return planted_faults.inspect(root, SIZE_PX)


def found(inspection: Inspection, check: str, word: str) -> list[str]:
    """Severities of the findings of one check whose sentence or evidence contains a word."""
    return [
        finding.severity
        for finding in inspection.card.findings
        if finding.check == check and word in finding.sentence + json.dumps(finding.evidence)
    ]


@pytest.mark.usefixtures("project")
def test_clean_faces_raise_no_alarm(faces: Path) -> None:
    inspection = inspect(faces)
    assert alarms(inspection) == []
    assert inspection.metrics()["num_findings_fail"] == 0
    assert inspection.metrics()["num_fake"] == NUM_PER_CLASS


@pytest.mark.slow
@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("seed", range(20))
def test_no_alarm_over_many_clean_sets(seed: int, tmp_path: Path) -> None:
    inspection = inspect(draw_faces(tmp_path / "faces", seed))
    assert alarms(inspection) == []


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_planted_fault_is_found_by_the_check_meant_for_it(fault: Fault, faces: Path) -> None:
    assert try_fault(fault, faces, SIZE_PX, fault.strength).finding is not None


@pytest.fixture(scope="module")
def dealt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn real faces dealt to two classes at random."""
    folder = tmp_path_factory.mktemp("dealt")
    return deal(generate_demo(folder / "source", 600, SIZE_PX, seed=1) / "real", folder / "dealt", seed=0)


@pytest.mark.slow
@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("fault", DEALT_FAULTS.values(), ids=DEALT_FAULTS)
def test_fault_is_found_in_drawn_faces_of_one_source(fault: Fault, dealt: Path) -> None:
    assert try_fault(fault, dealt, SIZE_PX, fault.strength).finding is not None


@pytest.mark.slow
@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["hardly blurred", "EXIF content"])
def test_dealt_faults_are_found_and_the_clean_deal_is_not(name: str, dealt: Path) -> None:
    fault = DEALT_FAULTS[name]
    outcome = try_fault(fault, dealt, SIZE_PX, fault.strength)
    assert outcome.finding is not None
    assert outcome.finding.sentence in outcome.verdict  # the first alarm, or the trace
    assert planted_faults.differences(inspect(dealt)) == []


@pytest.mark.usefixtures("project")
def test_wrong_labels_are_ranked_and_shown(copied: Path, tmp_path: Path) -> None:
    planted = {name for (name,) in swap_labels(copied, 0.05)}
    inspection = inspect(copied)
    (finding,) = [finding for finding in inspection.card.findings if finding.check == "labels"]
    named = set(finding.evidence["files"])
    assert len(named & planted) >= len(planted) / 2
    assert len(named - planted) <= 1
    images, _ = load(copied, SIZE_PX)
    inspection.write(images, tmp_path)
    with Image.open(tmp_path / "suspects.png") as sheet:
        assert sheet.width > 100


@pytest.fixture(scope="session")
def dealt_photographs(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deal(real_images / "real", tmp_path_factory.mktemp("photographs") / "dealt", seed=0)


@pytest.mark.real_data
@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("fault", DEALT_FAULTS.values(), ids=DEALT_FAULTS)
def test_fault_is_found_in_photographs_of_one_source(fault: Fault, dealt_photographs: Path) -> None:
    assert try_fault(fault, dealt_photographs, 300, fault.strength).finding is not None


@pytest.mark.real_data
@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_found_in_photographs_dealt_at_random(seed: int, real_images: Path, tmp_path: Path) -> None:
    inspection = planted_faults.inspect(deal(real_images / "real", tmp_path / "dealt", seed), 300)
    assert alarms(inspection) == planted_faults.differences(inspection) == []


@pytest.mark.real_data
@pytest.mark.usefixtures("project")
def test_wrong_labels_are_found_in_the_real_images(real_images: Path) -> None:
    assert try_fault(WRONG_LABELS, real_images, 300, WRONG_LABELS.strength).finding is not None


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    "name", ["tint", "quality", *(pytest.param(name, marks=pytest.mark.slow) for name in ("framing", "watermark"))]
)
def test_saving_again_without_the_fault_raises_no_alarm(name: str, faces: Path) -> None:
    outcome = try_fault(FAULTS[name], faces, SIZE_PX, FAULTS[name].sweep[0])
    assert outcome.finding is None
    assert set(outcome.others) <= {*FORENSIC}  # drawn fakes have the traces of a generator


@pytest.mark.usefixtures("project")
def test_same_file_with_both_labels_is_found_and_left_out(copied: Path) -> None:
    copy_to_other_class(copied)
    inspection = inspect(copied)
    assert found(inspection, "two labels", "the same file lies in both classes") == ["warn"]
    (finding,) = [finding for finding in inspection.card.findings if finding.check == "two labels"]
    assert "fake/fake_1.jpg" in finding.evidence["files"]
    assert len(finding.evidence["files"]) == 10
    assert sum(inspection.card.counts.values()) == 2 * NUM_PER_CLASS - 5


@pytest.mark.usefixtures("project")
def test_same_picture_saved_again_with_both_labels_makes_results_void(copied: Path) -> None:
    for number in range(1, 6):
        with Image.open(copied / "fake" / f"fake_{number}.jpg") as image:
            image.save(copied / "real" / f"other_{number}.png")
    assert found(inspect(copied), "two labels", "pixels") == ["fail"]


@pytest.mark.usefixtures("project")
def test_skipped_files_are_mentioned(copied: Path) -> None:
    (copied / "real" / "broken.jpg").write_bytes(b"no picture")
    (copied / "real" / "broken too.jpg").write_bytes(b"no picture either")
    assert found(inspect(copied), "skipped", "2 files are left out of everything: not an image.") == ["info"]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("num_jpegs", [0, 1])
def test_set_without_jpegs_is_audited(num_jpegs: int, copied: Path) -> None:
    for path in sorted(copied.rglob("*.jpg"))[num_jpegs:]:
        with Image.open(path) as image:
            image.save(path.with_suffix(".png"))
        path.unlink()
    probes = {probe.name for probe in inspect(copied).card.probes}
    assert {"file", "colour", "thumbnail"} <= probes
