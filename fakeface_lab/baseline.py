"""Program: train and track the documented CNN; ten epochs of 1,289 images take about six minutes on two cores.

python -m fakeface_lab.baseline                 # the real images if available, else drawn ones
python -m fakeface_lab.baseline --resume        # resume after a kill
"""

import sys
from dataclasses import dataclass

from fakeface_lab.config import find_project
from fakeface_lab.garbage import loading_libraries
from fakeface_lab.settings import BaselineSettings, Hyperparameters
from fakeface_lab.terminal import run_program

__all__ = ["BaselineResult", "main", "run_baseline"]


@dataclass(frozen=True)
class BaselineResult:
    """Where a baseline run is and what it measured.

    Attributes:
        run_id: MLflow's id of the run.
        model_uri: address of the logged model, `models:/...`.
        metrics: final metrics by name.
    """

    run_id: str
    model_uri: str | None
    metrics: dict[str, float]


def run_baseline(settings: BaselineSettings) -> BaselineResult:
    """Train the documented CNN, or resume an interrupted training, and return its results.

    Raises:
        FakefaceLabError: a subclass; the message is one line that says what to do.
    """
    # TensorFlow takes seconds to load: `--help`, invalid settings and missing images should not wait for it.
    from fakeface_lab.data.sources import find_source

    project = find_project()
    source = find_source(settings.data, settings.positive, project, settings.image_size)

    with loading_libraries():
        from fakeface_lab.backend import set_up_process
        from fakeface_lab.data.images import load_images
        from fakeface_lab.data.splits import make_split
        from fakeface_lab.detector import mlflow_run, printing
        from fakeface_lab.detector.fit import Training
        from fakeface_lab.detector.work import produce_outcome
        from fakeface_lab.terminal import console, print_places, say
        from fakeface_lab.tracking.datasets import describe_openings, find_audit, record_opening, seal_key
        from fakeface_lab.tracking.models import model_of_run
        from fakeface_lab.tracking.owner import sweep_dead_runs
        from fakeface_lab.tracking.store import open_store
        from fakeface_lab.tracking.writer import PatientWriter
        from fakeface_lab.training.outcome import read_whole_outcome

    num_threads = set_up_process(settings.threads)
    images = load_images(source, settings.image_size)
    split = make_split(images, settings.split, settings.seed)
    training = Training(
        settings.hyperparameters, settings.image_size, settings.seed, settings.epochs, step=settings.step
    )
    printing.print_data_card(images, split)
    printing.print_step(settings)

    store = open_store(settings.tracking_uri, project, source.name)
    sweep_dead_runs(store)
    writer = PatientWriter(settings.tracking_patience_secs, console.print)
    params = mlflow_run.training_params(training, images, split, num_threads)
    facts = params | {"role": "baseline", "name": settings.name, "data_digest": images.digest}
    # Without an earlier run a new one starts: a process killed before it created its run left nothing to resume.
    earlier = mlflow_run.find_earlier(store, facts) if settings.resume else None
    if earlier is not None and earlier.info.status == "FINISHED":
        console.print("this run is finished; without --resume it is trained again as a new run")
        print_places(store, earlier.info.run_name, earlier.info.run_id)
        return BaselineResult(earlier.info.run_id, model_of_run(store, earlier.info.run_id), dict(earlier.data.metrics))
    run = mlflow_run.open_run(
        store,
        writer,
        name=settings.name or f"baseline s{settings.seed} {split.name}",
        tags={"role": "baseline", "split": split.name, "seed": str(settings.seed), "data_digest": images.digest},
        facts=facts,
        unfinished=earlier,
    )
    with run.ending():
        print_places(run.store, run.name, run.run_id)
        mlflow_run.log_start(run, params, images, settings.model_dump(), num_threads)
        test_set = seal_key(images.digest, split.name, split.seed)
        if split.test_is_validation:
            # Before the training: a run that is killed in its first epoch may have looked at them too.
            record_opening(run, test_set, "each epoch")
        outcome = read_whole_outcome(run.folder)
        if outcome is None:
            model = training.build()
            printing.print_layers(model)
            with printing.TrainingProgress(training.epochs, mlflow_run.RunListener(run)) as progress:
                outcome = produce_outcome(
                    model, training, images, split, run.folder, progress, open_test=split.test_is_validation
                )
        mlflow_run.log_results(run, outcome, params, images)
    run.remove_files()
    as_documented = source.is_documented and training == Training(Hyperparameters(), 300, training.seed, 10)
    printing.print_outcome(outcome, beside_documented=as_documented and split.test_is_validation)
    if split.test_is_validation:
        say("seal", describe_openings(store, test_set))
    printing.print_audit(find_audit(store, images.digest), settings)
    print_places(run.store, run.name, run.run_id)
    return BaselineResult(run.run_id, model_of_run(run.store, run.run_id), outcome.metrics)


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    return run_program(BaselineSettings, "python -m fakeface_lab.baseline", run_baseline, argv)


if __name__ == "__main__":
    sys.exit(main())
