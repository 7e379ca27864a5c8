"""The audit program: planted faults in drawn faces are found, clean sets raise no alarm, the run has all results."""

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from fakeface_lab.assess.inspection import Inspection
from fakeface_lab.audit import main, run_audit
from fakeface_lab.data.demo import generate_demo
from fakeface_lab.data.images import load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import closest_pairs, detail_correlations, perceptual_hashes
from fakeface_lab.evaluation.audit import AuditSettings
from fakeface_lab.settings import AuditProgramSettings
from fakeface_lab.tracking.datasets import find_audit
from fakeface_lab.tracking.store import open_store
from tests import planted_faults
from tests.changes import enlarge
from tests.faults import DEALT_FAULTS, FAULTS, FORENSIC, WRONG_LABELS, Fault
from tests.planted_faults import alarms, try_fault
from tests.plants import change_fakes, copy_to_other_class, deal, load, swap_labels

SIZE_PX = 64
NUM_PER_CLASS = 80


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean set of drawn faces."""
    return generate_demo(tmp_path_factory.mktemp("faces") / "clean", num_per_class=NUM_PER_CLASS, size_px=SIZE_PX)


@pytest.fixture
def copied(faces: Path, tmp_path: Path) -> Path:
    """A copy of them to plant a fault in."""
    shutil.copytree(faces, tmp_path / "planted")
    return tmp_path / "planted"


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
    inspection = inspect(generate_demo(tmp_path / "faces", num_per_class=NUM_PER_CLASS, size_px=SIZE_PX, seed=seed))
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


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["hardly blurred", pytest.param("EXIF content", marks=pytest.mark.slow)])
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


@pytest.mark.real_data
@pytest.mark.usefixtures("project")
def test_no_two_real_images_are_taken_for_the_same(real_images: Path, project: Path) -> None:
    """Aligned faces: many pairs have similar hashes, none has similar details."""
    images = load_images(find_source(str(real_images), None, project, 300), 300)
    pairs = closest_pairs(perceptual_hashes(images.pixels), 10)
    assert len(pairs) > 100
    assert detail_correlations(images.pixels, pairs).max() < 0.8


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", ["tint", "quality", "framing", "watermark"])
def test_saving_again_without_the_fault_raises_no_alarm(name: str, faces: Path) -> None:
    outcome = try_fault(FAULTS[name], faces, SIZE_PX, FAULTS[name].sweep[0])
    assert outcome.finding is None
    assert set(outcome.others) <= {*FORENSIC}  # drawn fakes have the traces of a generator


@pytest.mark.usefixtures("project")
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


@pytest.mark.usefixtures("project")
def test_program_of_planted_faults_ends_with_1_if_one_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planted_faults, "FAULTS", {"tint": replace(FAULTS["tint"], strength=0)})
    monkeypatch.setattr(planted_faults, "DEALT_FAULTS", {})
    assert planted_faults.main(["--per-class", "80", "--seeds", "0"]) == 1
    assert "red +0, blue -0 levels | **no** |" in capsys.readouterr().out


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


def test_program_records_the_run_and_says_that_results_are_void(
    copied: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_fakes(copied, lambda image: enlarge(image, 1.45))
    (copied / "real" / "a $5 [b] ü.jpg").write_bytes((copied / "real" / "real_1.jpg").read_bytes())
    assert main(["--data", str(copied), "--image-size", str(SIZE_PX)]) == 3
    output = capsys.readouterr().out
    assert "A simple model that sees only 16x16 thumbnails is right on" in output
    assert output.index("\nfail") < output.index("verdict")
    store = open_store(None, project, "planted")
    (run,) = store.client.search_runs([store.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.tags["role"] == "audit"
    assert run.data.tags["audit_worst"] == "fail"
    assert "**fail** (probe)" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["probe_thumbnail_auc"] > 0.9
    assert run.data.metrics["probe_thumbnail_accuracy_low"] < run.data.metrics["probe_thumbnail_accuracy"]
    assert run.data.metrics["num_findings_fail"] >= 1
    assert run.data.params["warn_auc"] == "0.7"
    assert {artifact.path for artifact in store.client.list_artifacts(run.info.run_id)} >= {
        "card.md", "card.json", "probes.csv", "properties.csv", "pairs.csv", "split.csv",
        "mean_faces.png", "thumbnail_weights.png", "closest_pairs.png",
    }  # fmt: skip
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, tracking_uri=store.uri))
    card = json.loads((folder / "card.json").read_text())
    assert card["findings"][0]["sentence"] == run.data.tags["audit_verdict"]
    assert card["verdict"].startswith(run.data.tags["audit_verdict"])
    lines = (folder / "probes.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("file,label,fold,majority,thumbnail,")
    assert len(lines) == 1 + 2 * NUM_PER_CLASS + 1
    with Image.open(folder / "closest_pairs.png") as sheet:
        assert sheet.width > 100


def test_clean_set_ends_with_0_and_its_audit_is_found_again(faces: Path, project: Path) -> None:
    result = run_audit(AuditProgramSettings(data=str(faces), image_size=SIZE_PX, min_slice_fraction=0.02))
    assert result.exit_code == 0
    store = open_store(None, project, faces.name)
    digest = load_images(find_source(str(faces), None, project, SIZE_PX), SIZE_PX).digest
    audit = find_audit(store, digest)
    assert audit is not None
    assert audit.run_id == result.run_id
    assert audit.verdict == result.verdict
    assert audit.tags()["audit_run_id"] == result.run_id
    assert find_audit(store, "0" * 64) is None
    card = json.loads(mlflow.artifacts.load_text(f"runs:/{result.run_id}/card.json"))
    assert card["settings"]["min_slice_fraction"] == 0.02  # thresholds are settings of the program


def test_thresholds_have_the_audits_own_defaults() -> None:
    settings = AuditProgramSettings()
    assert {field.name: getattr(settings, field.name) for field in fields(AuditSettings)} == {
        field.name: field.default for field in fields(AuditSettings)
    }


@pytest.mark.usefixtures("project")
def test_mistakes_are_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder; give auto" in capsys.readouterr().err
    assert main(["--warn-auc", "2"]) == 2
    assert "warn_auc = '2': should be less than or equal to 1" in capsys.readouterr().err


@pytest.mark.real_data
@pytest.mark.usefixtures("project")
def test_real_images_are_separated_by_their_framing(real_images: Path) -> None:
    result = run_audit(AuditProgramSettings(data=str(real_images)))
    assert result.exit_code == 3
    assert "16x16 thumbnails" in result.verdict
    assert result.metrics["probe_thumbnail_accuracy"] >= 0.99
