"""Program: a tracked model on its own test split or on any other folder, and under stress.

    python -m fakeface_lab.evaluate "baseline s0 documented" --stress
    python -m fakeface_lab.evaluate models:/fakeface-demo@champion --data other/faces

The model is a run id, a run name, models:/..., NAME@ALIAS or an alias. Results go to a child of the model's run.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fakeface_lab.config import find_project
from fakeface_lab.settings import EvaluateSettings
from fakeface_lab.terminal import run_program

__all__ = ["EvaluationResult", "main", "run_evaluation"]


@dataclass(frozen=True)
class EvaluationResult:
    """The run of an evaluation and its figures.

    Attributes:
        run_id: of the MLflow run, a child of the model's.
        metrics: by name; scores on the images begin with `test_` or `external_`.
        sentences: what they mean.
    """

    run_id: str
    metrics: dict[str, float]
    sentences: tuple[str, ...]


def run_evaluation(settings: EvaluateSettings) -> EvaluationResult:
    """Evaluate a tracked model, track the figures as a child of its run, and return them.

    Raises:
        FakefaceLabError: with one line that says what to do.
    """
    from fakeface_lab.assess.assessment import assess, print_evaluation
    from fakeface_lab.assess.tracked_model import choose_images, load_tracked_model
    from fakeface_lab.backend import set_up_process
    from fakeface_lab.detector.mlflow_run import log_start
    from fakeface_lab.terminal import console, print_places, say
    from fakeface_lab.tracking.datasets import find_audit
    from fakeface_lab.tracking.lookup import find_model, open_for_models
    from fakeface_lab.tracking.runs import TrackedRun
    from fakeface_lab.tracking.writer import PatientWriter

    project = find_project()
    num_threads = set_up_process(settings.threads)
    found = find_model(open_for_models(settings.tracking_uri, project), settings.model)
    model = load_tracked_model(found)
    say("model", f"{found.run.info.run_name} ({found.run.info.run_id}), {found.uri}")
    chosen = choose_images(model, settings.data, settings.positive, project)
    for sentence in chosen.sentences:
        say("images", sentence)

    writer = PatientWriter(settings.tracking_patience_secs, console.print)
    audit = find_audit(found.store, model.data_digest)
    source = chosen.images.source
    tags = {"role": "evaluation", "data_digest": chosen.images.digest, "split": chosen.split_name, "model": found.uri}
    # Only now that model and images are found, so that a mistyped name leaves no failed run behind.
    run = TrackedRun.create(
        found.store,
        writer,
        settings.name or f"evaluation {source.name} {chosen.part}",
        tags | (audit.tags() if audit else {}),
        parent_run_id=found.run.info.run_id,
    )
    with run.ending():
        # Before the images are scored: a killed evaluation may have seen them too.
        seal = chosen.open(run)
        if seal:
            say("seal", seal)
        params = {"data": source.name, "image_size": model.image_size_px, "split": chosen.split_name}
        params |= {"threshold": model.threshold, "num_images": len(chosen.rows), "part": chosen.part}
        log_start(run, params, chosen.images, settings.model_dump(), num_threads)
        result = assess(
            model, chosen.images, chosen.rows, chosen.part, stress=settings.stress,
            show=lambda step: say("", f"{step} ...", "dim"),
        )  # fmt: skip
        metrics, explained = chosen.add_explained_share(result.metrics, result.is_correct)
        sentences = [
            *result.sentences,
            *explained,
            *([seal] if seal else []),
            *([f"Audit of the images it was trained on: {audit.verdict}"] if audit else []),
        ]
        with tempfile.TemporaryDirectory() as folder:
            result.write(Path(folder))
            run.upload(Path(folder))
        run.log_metrics(metrics, 0, time.time_ns() // 1_000_000)
        run.set_tags(result.tags | {"mlflow.note.content": "\n".join(f"- {sentence}" for sentence in sentences)})
    run.remove_files()
    print_evaluation(sentences, result.shown() | chosen.side_by_side(found, metrics))
    print_places(found.store, run.name, run.run_id)
    return EvaluationResult(run.run_id, metrics, tuple(sentences))


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program(EvaluateSettings, "python -m fakeface_lab.evaluate", run_evaluation, argv)


if __name__ == "__main__":
    sys.exit(main())
