"""The audit as a program: planted faults in drawn faces are found, clean sets stay quiet, the run says all of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image, ImageOps

from fakeface_lab.audit import AuditProgramSettings, main, run_audit
from fakeface_lab.data.demo import generate_demo
from fakeface_lab.data.images import load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.data.splits import make_split
from fakeface_lab.evaluation.audit import AuditSettings
from fakeface_lab.inspection import Inspection, inspect_images
from fakeface_lab.tracking.lookup import find_audit
from fakeface_lab.tracking.store import open_store

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
    images = load_images(find_source(str(root), None, root, SIZE_PX), SIZE_PX)
    return inspect_images(images, make_split(images, "documented", 0), AuditSettings(), seed=0)


def found(inspection: Inspection, check: str, word: str) -> list[str]:
    """Severities of the findings of one check whose sentence or evidence has a word."""
    return [
        finding.severity
        for finding in inspection.card.findings
        if finding.check == check and word in finding.sentence + json.dumps(finding.evidence)
    ]


def change_fakes(root: Path, change: Callable[[Image.Image], Image.Image], quality: int = 95) -> None:
    for path in sorted((root / "fake").iterdir()):
        with Image.open(path) as image:
            changed = change(image.convert("RGB"))
        changed.save(path, "JPEG", quality=quality)


def tint(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.int16) + np.array([25, 0, -25])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def enlarge(image: Image.Image) -> Image.Image:
    return image.resize(image.size, Image.Resampling.BILINEAR, box=(10, 10, SIZE_PX - 10, SIZE_PX - 10))


def watermark(image: Image.Image) -> Image.Image:
    marked = image.copy()
    marked.paste((255, 255, 255), (SIZE_PX - 5, SIZE_PX - 5, SIZE_PX - 1, SIZE_PX - 1))
    return marked


@pytest.mark.usefixtures("project")
def test_clean_faces_raise_no_alarm(faces: Path) -> None:
    inspection = inspect(faces)
    assert [finding.sentence for finding in inspection.card.findings if finding.severity != "info"] == []
    assert inspection.metrics()["num_findings_fail"] == 0
    assert inspection.metrics()["num_fake"] == NUM_PER_CLASS


@pytest.mark.slow
@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("seed", range(20))
def test_no_alarm_over_many_clean_sets(seed: int, tmp_path: Path) -> None:
    inspection = inspect(generate_demo(tmp_path / "faces", num_per_class=NUM_PER_CLASS, size_px=SIZE_PX, seed=seed))
    assert [finding.sentence for finding in inspection.card.findings if finding.severity != "info"] == []


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("change", "quality", "check", "word"),
    [
        (tint, 95, "probe", '"histogram"'),
        (tint, 95, "probe", '"colour"'),
        (lambda image: image, 40, "slice", "jpeg_quality"),
        (enlarge, 95, "probe", '"thumbnail"'),
        (watermark, 95, "probe", '"corners"'),
    ],
    ids=["tint by histogram", "tint by colour figures", "lower quality", "framed larger", "watermark in a corner"],
)
def test_fault_in_one_class_is_found(
    change: Callable[[Image.Image], Image.Image], quality: int, check: str, word: str, copied: Path
) -> None:
    change_fakes(copied, change, quality)
    inspection = inspect(copied)
    assert set(found(inspection, check, word)) & {"fail", "warn"}
    assert inspection.card.worst == "fail"


@pytest.mark.usefixtures("project")
def test_exact_duplicates_across_the_split_are_found(copied: Path) -> None:
    for number in range(1, 21):
        shutil.copy(copied / "real" / f"real_{number}.jpg", copied / "real" / f"zz_{number}.jpg")
    inspection = inspect(copied)
    assert found(inspection, "straddle", '"file"') == ["fail"]
    assert len(inspection.pairs[inspection.pairs["phash_bits"] == 0]) >= 20


@pytest.mark.usefixtures("project")
def test_slightly_changed_duplicates_are_found(copied: Path) -> None:
    for number in range(1, 21):
        with Image.open(copied / "real" / f"real_{number}.jpg") as image:
            ImageOps.mirror(image).save(copied / "real" / f"zz_{number}.jpg", quality=80)
    assert "fail" in found(inspect(copied), "straddle", '"near"')


@pytest.mark.usefixtures("project")
def test_same_file_under_both_labels_is_found_and_left_out(copied: Path) -> None:
    for number in range(1, 6):
        shutil.copy(copied / "fake" / f"fake_{number}.jpg", copied / "real" / f"other_{number}.jpg")
    inspection = inspect(copied)
    assert found(inspection, "two labels", "the same file lies in both classes") == ["warn"]
    (finding,) = [finding for finding in inspection.card.findings if finding.check == "two labels"]
    assert "fake/fake_3.jpg" in finding.evidence["files"]
    assert len(finding.evidence["files"]) == 10
    assert sum(inspection.card.counts.values()) == 2 * NUM_PER_CLASS - 5


@pytest.mark.usefixtures("project")
def test_same_picture_saved_anew_under_both_labels_makes_results_void(copied: Path) -> None:
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
    change_fakes(copied, enlarge)
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
def test_mistakes_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder; give auto" in capsys.readouterr().err
    assert main(["--warn-auc", "2"]) == 2
    assert "warn_auc = '2': should be less than or equal to 1" in capsys.readouterr().err


@pytest.mark.real_data
@pytest.mark.usefixtures("project")
def test_real_images_are_told_apart_by_their_framing(real_images: Path) -> None:
    result = run_audit(AuditProgramSettings(data=str(real_images)))
    assert result.exit_code == 3
    assert "16x16 thumbnails" in result.verdict
    assert result.metrics["probe_thumbnail_accuracy"] >= 0.99
