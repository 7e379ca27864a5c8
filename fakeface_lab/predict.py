"""Program: a tracked model on image files.

    python -m fakeface_lab.predict fakeface-demo@champion face.jpg other.png
    python -m fakeface_lab.predict "baseline s0 documented" *.jpg --json

Files that cannot be read are told and skipped; exit code 2 where none is left. What speaks against the model (the
audit of its data, its fall under stress) is said on stderr, and is part of the JSON.
"""

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic import Field, field_validator
from pydantic_settings import CliPositionalArg

from fakeface_lab.config import Settings, find_project
from fakeface_lab.errors import DataError
from fakeface_lab.terminal import run_program

if TYPE_CHECKING:
    from fakeface_lab.assess.application import Decision

__all__ = ["PredictSettings", "Predictions", "main", "run_prediction"]

# pydantic-settings takes a word with one of these for a list or an object; a file's name may hold them. While the
# command line is read they are stood in for by characters that no name has.
_SPECIAL = ",[]{}\"'\\"
_STAND_INS = {character: chr(0xE000 + index) for index, character in enumerate(_SPECIAL)}
_TO_STAND_INS = str.maketrans(_STAND_INS)
_FROM_STAND_INS = str.maketrans({stand_in: character for character, stand_in in _STAND_INS.items()})


class PredictSettings(Settings):
    """Settings of `python -m fakeface_lab.predict`."""

    model: CliPositionalArg[str] = Field(description="run id, run name, models:/..., NAME@ALIAS or alias")
    files: CliPositionalArg[list[str]] = Field(min_length=1, description="image files")
    as_json: bool = Field(False, alias="json", description="print JSON instead of a table")
    threads: int = Field(0, ge=0, le=1024, description="threads of the model; 0: all cores")

    @field_validator("model", "files", "tracking_uri", mode="after")
    @classmethod
    def _names_as_given(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list):
            return [name.translate(_FROM_STAND_INS) for name in value]
        return value.translate(_FROM_STAND_INS) if value else value


@dataclass(frozen=True)
class Predictions:
    """What a model says of some files.

    Attributes:
        model: MLflow's address of it.
        run_id: the run that trained it.
        threshold: probability of the class to detect above which it is decided.
        warnings: what speaks against believing it.
        decisions: one for each usable file, in the order given.
        skipped: file to reason.
    """

    model: str
    run_id: str
    threshold: float
    warnings: tuple[str, ...]
    decisions: tuple["Decision", ...]
    skipped: dict[str, str]


def run_prediction(settings: PredictSettings) -> Predictions:
    """Apply a tracked model to image files, preprocessed as in training, and print what it says.

    Raises:
        FakefaceLabError: no such model, or no file that can be used.
    """
    from fakeface_lab.assess.application import classify_files, doubts, print_decisions
    from fakeface_lab.assess.tracked_model import load_model
    from fakeface_lab.backend import set_up_process
    from fakeface_lab.tracking.lookup import find_model, open_for_models

    set_up_process(settings.threads)
    found = find_model(open_for_models(settings.tracking_uri, find_project()), settings.model)
    warnings = doubts(found)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    model = load_model(found)
    decisions, skipped = classify_files(model, settings.files)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if not decisions:
        raise DataError(f"none of the {len(settings.files)} files can be used; give image files with 8 bits a channel")
    result = Predictions(found.uri, found.run.info.run_id, model.threshold, tuple(warnings), decisions, skipped)
    if settings.as_json:
        print(json.dumps(asdict(result), indent=2))
    else:
        print_decisions(decisions, model.class_names)
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    shielded = [
        word if word.startswith("--") or before == "--config" else word.translate(_TO_STAND_INS)
        for before, word in zip(["", *words], words, strict=False)
    ]
    return run_program(PredictSettings, "python -m fakeface_lab.predict", run_prediction, shielded)


if __name__ == "__main__":
    sys.exit(main())
