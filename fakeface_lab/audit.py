"""Program: can this data set be solved for the wrong reason? A tracked audit; no network is trained.

    python -m fakeface_lab.audit --data my/faces

Takes less than a minute for 1,289 images of 300 px (docs/truth.md). Exits with 3 if a finding makes results on these
images void.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fakeface_lab.config import find_project
from fakeface_lab.settings import AuditProgramSettings
from fakeface_lab.terminal import run_program

__all__ = ["AuditResult", "main", "run_audit"]

# Not 2, which is a user error: a job that guards a data set must be able to tell them apart.
EXIT_VOID = 3


@dataclass(frozen=True)
class AuditResult:
    """The run of an audit and its outcome.

    Attributes:
        run_id: of the MLflow run.
        worst: severity of the worst finding, "fail", "warn" or "info"; None without any.
        verdict: the audit in words.
        metrics: figures of every probe, counts of findings.
    """

    run_id: str
    worst: str | None
    verdict: str
    metrics: dict[str, float]

    @property
    def exit_code(self) -> int:
        """3 if results on these images are void, else 0."""
        return EXIT_VOID if self.worst == "fail" else 0


def run_audit(settings: AuditProgramSettings) -> AuditResult:
    """Audit a data set, track the audit as a run next to the trainings on the same data, and return the findings.

    Raises:
        FakefaceLabError: with one line that says what to do.
    """
    from fakeface_lab.assess.inspection import audit_note, headline, inspect_images, print_card
    from fakeface_lab.data.images import load_images
    from fakeface_lab.data.sources import find_source
    from fakeface_lab.data.splits import make_split, write_split
    from fakeface_lab.detector.mlflow_run import log_start
    from fakeface_lab.detector.printing import print_data_card
    from fakeface_lab.evaluation.audit.audit import AuditSettings
    from fakeface_lab.terminal import console, print_places, say
    from fakeface_lab.tracking.runs import TrackedRun
    from fakeface_lab.tracking.store import open_store
    from fakeface_lab.tracking.writer import PatientWriter

    project = find_project()
    source = find_source(settings.data, settings.positive, project, settings.image_size)
    images = load_images(source, settings.image_size)
    split = make_split(images, settings.split, settings.seed)
    print_data_card(images, split)
    thresholds = settings.model_dump(include=set(AuditSettings.__dataclass_fields__))

    store = open_store(settings.tracking_uri, project, source.name)
    writer = PatientWriter(settings.tracking_patience_secs, console.print)
    tags = {"role": "audit", "data_digest": images.digest, "split": split.name, "seed": str(settings.seed)}
    run = TrackedRun.create(store, writer, settings.name or f"audit {source.name}", tags)
    with run.ending():
        params = {"data": source.name, "image_size": settings.image_size, "split": split.name, "seed": settings.seed}
        # The probes train on one thread, whatever the machine has.
        log_start(run, params | thresholds, images, settings.model_dump(), num_threads=1)
        inspection = inspect_images(
            images, split, AuditSettings(**thresholds), settings.seed, show=lambda step: say("", f"{step} ...", "dim")
        )
        card = inspection.card
        with tempfile.TemporaryDirectory() as folder:
            inspection.write(images, Path(folder))
            write_split(split, images, Path(folder) / "split.csv")
            run.upload(Path(folder))
        run.log_metrics(inspection.metrics(), 0, time.time_ns() // 1_000_000)
        verdict = {"audit_worst": card.worst or "", "audit_verdict": headline(card)}
        run.set_tags(verdict | {"mlflow.note.content": audit_note(card)})
    run.remove_files()
    print_card(card)
    print_places(store, run.name, run.run_id)
    return AuditResult(run.run_id, card.worst, card.verdict, inspection.metrics())


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    prog = "python -m fakeface_lab.audit"
    return run_program(AuditProgramSettings, prog, lambda settings: run_audit(settings).exit_code, argv)


if __name__ == "__main__":
    sys.exit(main())
