"""A tracked model on files: preprocessing as in training, unusable files, reliability warnings."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from PIL import Image

from fakeface_lab.audit import run_audit
from fakeface_lab.predict import main, run_prediction
from fakeface_lab.settings import AuditProgramSettings, PredictSettings
from fakeface_lab.tracking.lookup import find_model, open_for_models
from fakeface_lab.tracking.runs import TrackedRun
from fakeface_lab.tracking.writer import PatientWriter
from tests.tracked_model_store import SIZE_PX, TrackedProject

pytestmark = pytest.mark.usefixtures("tracked")


def as_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # nothing but JSON on stdout


def test_scores_are_those_of_the_training(tracked: TrackedProject) -> None:
    """Every validation image gets the score that its run has logged."""
    lines = mlflow.artifacts.load_text(f"runs:/{find_run_id(tracked)}/scores.csv").splitlines()
    logged = {line.split(",")[0]: float(line.split(",")[4]) for line in lines[1:]}
    files = [str(tracked.images / name) for name in logged]
    result = run_prediction(PredictSettings(model="tiny", files=files))
    assert [decision.file for decision in result.decisions] == files
    scores = [decision.probabilities["fake"] for decision in result.decisions]
    np.testing.assert_allclose(scores, list(logged.values()), atol=1e-6)
    for decision in result.decisions:
        assert decision.decided == ("fake" if decision.probabilities["fake"] > 0.5 else "real")
        assert decision.probability == decision.probabilities[decision.decided] >= 0.5
        assert sum(decision.probabilities.values()) == pytest.approx(1.0)


def find_run_id(tracked: TrackedProject) -> str:
    return str(find_model(open_for_models(None, tracked.project), "tiny").run.info.run_id)


def test_picture_of_another_size_is_resized_as_in_training(tracked: TrackedProject, tmp_path: Path) -> None:
    """Noise, for which every other resampling gives a different picture."""
    noise = np.random.default_rng(0).choice(np.array([0, 255], dtype=np.uint8), (3 * SIZE_PX + 5, 2 * SIZE_PX + 3, 3))
    noise[: noise.shape[0] // 2] |= 128
    picture = Image.fromarray(noise)
    picture.save(tmp_path / "large.png")
    (decision,) = run_prediction(PredictSettings(model="tiny", files=[str(tmp_path / "large.png")])).decisions
    network = mlflow.pyfunc.load_model(find_model(open_for_models(None, tracked.project), "tiny").uri)

    def score(resampling: Image.Resampling) -> float:
        pixels = np.asarray(picture.resize((SIZE_PX, SIZE_PX), resampling))
        return float(np.asarray(network.predict((pixels[None] / 255).astype(np.float32)))[0, 0])

    assert decision.probabilities["fake"] == pytest.approx(score(Image.Resampling.NEAREST), abs=1e-6)
    for other in (Image.Resampling.BILINEAR, Image.Resampling.BOX, Image.Resampling.BICUBIC):
        assert abs(score(other) - decision.probabilities["fake"]) > 1e-3


def test_unusable_files_are_reported_and_skipped(
    tracked: TrackedProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = str(tracked.images / "real" / "real_1.png")
    text, empty, missing = tmp_path / "text.jpg", tmp_path / "empty.jpg", tmp_path / "missing.jpg"
    text.write_text("no picture")
    empty.touch()
    assert main(["tiny", str(text), good, str(empty), str(missing), str(tmp_path)]) == 0
    output, errors = capsys.readouterr()
    assert f"skipped {text}: not an image" in errors
    assert f"skipped {empty}: empty file" in errors
    assert f"skipped {missing}: No such file or directory" in errors
    assert f"skipped {tmp_path}: Is a directory" in errors
    assert good in output
    assert "P(fake)" in output
    assert str(text) not in output


def test_without_a_usable_file_it_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    assert main(["tiny", str(tmp_path / "text.jpg"), "missing.jpg"]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.endswith("error: none of the 2 files can be used; give image files with 8 bits per channel\n")


@pytest.mark.parametrize(
    "name",
    [
        "a, b.png",
        "[1].png",
        "{x}.png",
        'q"uote.png',
        "it's.png",
        "123",
        "back\\slash.png",
        "ünï cödé.png",
        "1,2",
        os.fsdecode(b"caf\xff.png"),
    ],
)
def test_names_are_used_verbatim(
    name: str, tracked: TrackedProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(tracked.images / "fake" / "fake_2.png", tmp_path / name)
    content = as_json(["tiny", str(tmp_path / name), str(tracked.images / "real" / "real_1.png")], capsys)
    assert [decision["file"] for decision in content["decisions"]] == [
        str(tmp_path / name),
        str(tracked.images / "real" / "real_1.png"),
    ]


def test_config_file_with_a_comma_is_read(
    tracked: TrackedProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "my, own.toml"
    config.write_text("tracking_patience_secs = 5\n")
    picture = str(tracked.images / "fake" / "fake_2.png")
    assert main(["tiny", picture, "--config", str(config)]) == 0
    assert picture in capsys.readouterr().out


def test_json_holds_everything(tracked: TrackedProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = as_json(["tiny", str(tracked.images / "fake" / "fake_2.png"), str(tmp_path / "missing.png")], capsys)
    assert content["run_id"] == tracked.run_id
    assert content["threshold"] == 0.5
    assert content["skipped"] == {str(tmp_path / "missing.png"): "No such file or directory"}
    (decision,) = content["decisions"]
    assert set(decision) == {"file", "decided", "probability", "probabilities"}


def test_reliability_warnings_are_printed(tracked: TrackedProject, capsys: pytest.CaptureFixture[str]) -> None:
    picture = str(tracked.images / "fake" / "fake_2.png")
    content = as_json(["tiny", picture], capsys)
    assert "never audited" in content["warnings"][0]

    # One class is brighter in its upper half: a thumbnail gives the label away.
    audit = run_audit(AuditProgramSettings(data=str(tracked.images), image_size=SIZE_PX))
    assert audit.exit_code == 3
    capsys.readouterr()
    assert main(["tiny", picture]) == 0
    errors = capsys.readouterr().err
    says = "warning: the audit of this model's data says that it must not be trusted: A simple model that sees only"
    assert says in errors
    assert "findings below" not in errors
    assert "under stress" not in errors

    store = open_for_models(None, tracked.project)
    for collapse, sentence in (("true", "Cropped, it is lost."), ("false", "Nothing hurts.")):
        tags = {"role": "evaluation", "stress_collapse": collapse, "stress_sentence": sentence}
        run = TrackedRun.create(store, PatientWriter(10), "evaluation", tags, parent_run_id=tracked.run_id)
        run.end("FINISHED")
        assert main(["tiny", picture]) == 0
        errors = capsys.readouterr().err
        assert ("under stress this model fails: Cropped, it is lost." in errors) == (collapse == "true")


def test_mistakes_are_reported_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["tiny"], "the following arguments are required: FILES"),
        (["nobody", "a.png"], "nobody: no run, model or alias of that name in sqlite:"),
        (["tiny", "a.png", "--thread", "1"], "--thread: unknown argument; did you mean --threads?"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["-x.png", "--json", "None", "null", "a,b"])
def test_relative_names_are_used_verbatim_after_two_dashes(
    name: str,
    tracked: TrackedProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(tracked.images / "fake" / "fake_2.png", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    store = f"sqlite:///{tracked.project / 'mlflow.db'}"
    assert main(["--json", "--tracking-uri", store, "tiny", "--", name]) == 0
    (decision,) = json.loads(capsys.readouterr().out)["decisions"]
    assert decision["file"] == name
