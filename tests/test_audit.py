"""The audit as a program: what it prints and records, its exit codes, and its mistakes in one line."""

import json
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from fakeface_lab.audit import main, run_audit
from fakeface_lab.data.images import load_images
from fakeface_lab.data.sources import find_source
from fakeface_lab.settings import AuditProgramSettings
from fakeface_lab.tracking.datasets import find_audit
from fakeface_lab.tracking.store import open_store
from tests.changes import enlarge
from tests.plants import NUM_PER_CLASS, SIZE_PX, change_fakes


def test_program_records_the_run_and_says_that_results_are_void(
    copied: Path, project_with_tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_fakes(copied, lambda image: enlarge(image, 1.45))
    (copied / "real" / "a $5 [b] ü.jpg").write_bytes((copied / "real" / "real_1.jpg").read_bytes())
    assert main(["--data", str(copied), "--image-size", str(SIZE_PX)]) == 3
    output = capsys.readouterr().out
    assert "A simple model that sees only 16x16 thumbnails is right on" in output
    assert output.index("\nfail") < output.index("verdict")
    store = open_store(None, project_with_tables, "planted")
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


def test_clean_set_ends_with_0_and_its_audit_is_found_again(faces: Path, project_with_tables: Path) -> None:
    project = project_with_tables
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
