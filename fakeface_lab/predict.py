"""Program: a tracked model on image files.

    python -m fakeface_lab.predict fakeface-demo@champion face.jpg other.png
    python -m fakeface_lab.predict "baseline s0 documented" *.jpg --json

Unusable files are reported and skipped; exits with 2 if none remain. Reasons not to trust the model (the audit of its
data, its evaluation under stress) go to stderr and into the JSON.
"""

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fakeface_lab.config import find_project
from fakeface_lab.errors import DataError
from fakeface_lab.settings import PredictSettings
from fakeface_lab.terminal import run_program

if TYPE_CHECKING:
    from fakeface_lab.assess.application import Decision

__all__ = ["Predictions", "main", "run_prediction"]


@dataclass(frozen=True)
class Predictions:
    """A model's decisions on some files.

    Attributes:
        model: its MLflow URI.
        run_id: of the run that trained it.
        threshold: probability of the class to detect above which an image is decided positive.
        warnings: reasons not to trust it.
        decisions: one per usable file, in the order given.
        skipped: file to reason.
    """

    model: str
    run_id: str
    threshold: float
    warnings: tuple[str, ...]
    decisions: tuple["Decision", ...]
    skipped: dict[str, str]


def run_prediction(settings: PredictSettings) -> Predictions:
    """Apply a tracked model to image files, preprocessed as in training, and print its decisions.

    Raises:
        FakefaceLabError: there is no such model, or no usable file.
    """
    from fakeface_lab.assess.application import classify_files, print_decisions, reliability_warnings
    from fakeface_lab.assess.tracked_model import load_tracked_model
    from fakeface_lab.backend import set_up_process
    from fakeface_lab.tracking.lookup import find_model, open_for_models

    set_up_process(settings.threads)
    found = find_model(open_for_models(settings.tracking_uri, find_project()), settings.model)
    warnings = reliability_warnings(found)
    # Before any probability, and on stderr, so that the JSON on stdout stays valid.
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    model = load_tracked_model(found)
    decisions, skipped = classify_files(model, settings.files)
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if not decisions:
        raise DataError(
            f"none of the {len(settings.files)} files can be used; give image files with 8 bits per channel"
        )
    result = Predictions(found.uri, found.run.info.run_id, model.threshold, tuple(warnings), decisions, skipped)
    if settings.as_json:
        print(json.dumps(asdict(result), indent=2))
    else:
        print_decisions(decisions, model.class_names)
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program(PredictSettings, "python -m fakeface_lab.predict", run_prediction, argv)


if __name__ == "__main__":
    sys.exit(main())
