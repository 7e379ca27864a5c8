"""Defaults are the documented recipe and the audit's own, no flag goes, and wrong values are refused."""

from dataclasses import fields
from typing import Any

import pytest
from pydantic import ValidationError

from fakeface_lab.config import Settings, load_settings
from fakeface_lab.evaluation.audit.audit import AuditSettings
from fakeface_lab.settings import AuditProgramSettings, BaselineSettings, DataSettings, Range, TuneSettings

PROG = "python -m fakeface_lab.baseline"

SETTINGS_FLAGS = {"--config", "--tracking-uri", "--tracking-patience-secs", "--debug"}
RUN_FLAGS = SETTINGS_FLAGS | {"--data", "--positive", "--image-size", "--split", "--seed", "--name"}
TRAINING_FLAGS = RUN_FLAGS | {"--epochs", "--threads"}
HYPERPARAMETERS = {
    "filters-1", "filters-2", "dense-units", "conv-dropout", "dense-dropout", "learning-rate", "batch-size",
    "augmentation", "precision",
}  # fmt: skip

# Others build on these: a flag may be added, none may go or change its name.
FROZEN_FLAGS: dict[type[Settings], set[str]] = {
    DataSettings: RUN_FLAGS | {"--clear-cache"},
    BaselineSettings: TRAINING_FLAGS | {"--resume"} | {f"--hyperparameters.{name}" for name in HYPERPARAMETERS},
    TuneSettings: TRAINING_FLAGS
    | {"--trials", "--hours", "--algorithm", "--objective", "--workers", "--final-seeds", "--engine"}
    | {"--restart", "--dry-run"},
}


@pytest.mark.usefixtures("project")
def test_defaults_are_the_documented_recipe() -> None:
    settings = load_settings(BaselineSettings, [], PROG)
    assert settings.model_dump() == {
        "config": None, "tracking_uri": None, "tracking_patience_secs": 600, "debug": False, "data": "auto",
        "positive": None, "image_size": 300, "split": "documented", "seed": 0, "name": None, "epochs": 10,
        "threads": 0, "step": "plain", "resume": False,
        "hyperparameters": {
            "filters_1": 32, "filters_2": 64, "dense_units": 128, "conv_dropout": 0.25, "dense_dropout": 0.5,
            "learning_rate": 1e-4, "batch_size": 32, "augmentation": 0.0, "precision": "float32",
        },
    }  # fmt: skip


@pytest.mark.usefixtures("project")
def test_dumped_settings_hold_no_password() -> None:
    places = ["--tracking-uri", "http://ann:pass1@host:5000", "--checkpoint-storage", "ftp://ann:pass2@host/folder"]
    dumped = load_settings(TuneSettings, places, "python -m fakeface_lab.tune").model_dump(mode="json")
    assert dumped["tracking_uri"] == "http://***@host:5000"
    assert dumped["checkpoint_storage"] == "ftp://***@host/folder"


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("settings_class", FROZEN_FLAGS)
def test_flags_that_others_build_on_are_still_there(
    settings_class: type[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as info:
        load_settings(settings_class, ["--help"], PROG)
    assert info.value.code == 0
    words = set(capsys.readouterr().out.replace("[", " ").replace("]", " ").split())
    assert FROZEN_FLAGS[settings_class] <= words


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"values": [1, 1]}, "lists a value twice"),
        ({"min": 1}, "min and max are both required"),
        ({"min": 0, "max": 1, "sampling": "log"}, "log sampling needs a min above 0"),
        ({"min": 1, "max": 2, "values": [1, 2]}, "either values, or min and max"),
        ({"min": 1, "max": 4, "step": 1, "sampling": "log"}, "log sampling takes no step"),
    ],
)
def test_a_wrong_range_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Range(**given)


def test_settings_take_known_objectives_and_model_policies_only() -> None:
    assert TuneSettings(keep_models="top-3", objective="val_accuracy").keep_models == "top-3"
    for wrong in ({"keep_models": "top-0"}, {"objective": "val_los"}, {"initial_points": 0}):
        with pytest.raises(ValidationError):
            TuneSettings(**wrong)


def test_thresholds_have_the_audits_own_defaults() -> None:
    settings = AuditProgramSettings()
    assert {field.name: getattr(settings, field.name) for field in fields(AuditSettings)} == {
        field.name: field.default for field in fields(AuditSettings)
    }
