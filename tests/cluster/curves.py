"""Program: a search of slow curves on a Ray cluster, which may be killed and started again.

python -m tests.cluster.curves PROJECT ADDRESS [--storage PLACE] [--trials N] [--workers N] [--epoch-secs S]
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fakeface_lab.errors import FakefaceLabError
from fakeface_lab.search.ledger.resume import open_search
from fakeface_lab.search.run.engine import Assignment
from fakeface_lab.search.run.placement import EngineSettings, open_engine
from fakeface_lab.search.run.progress import run_trials
from fakeface_lab.tracking.store import open_store
from fakeface_lab.tracking.writer import PatientWriter
from fakeface_lab.training.epochs import EpochRecord, Listener
from fakeface_lab.training.objective import VAL_LOSS
from fakeface_lab.training.outcome import Outcome
from tests.cluster.costs import note_costs
from tests.search.curve_work import Algorithm, CurveWork, template

EPOCHS = 4


@dataclass(frozen=True)
class SlowCurve(CurveWork):
    """A curve whose epochs take time, in one of two steps that are noted in a file."""

    epoch_secs: float = 0.0

    def __call__(self, assignment: Assignment, folder: Path, listener: Listener) -> Outcome:
        return super().__call__(assignment, folder, _Slow(listener, self.epoch_secs))


@dataclass
class _Slow:
    listener: Listener
    epoch_secs: float

    def step_ended(self, epoch: int, step: int, num_steps: int) -> None:
        time.sleep(self.epoch_secs)
        self.listener.step_ended(epoch, step, num_steps)

    def epoch_ended(self, record: EpochRecord) -> None:
        self.listener.epoch_ended(record)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("project", type=Path)
    parser.add_argument("address")
    parser.add_argument("--storage")
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--epoch-secs", type=float, default=1.0)
    parser.add_argument("--algorithm", default="random")
    parser.add_argument("--costs", type=Path, help="note there what each question and each request has taken")
    given = parser.parse_args()
    algorithm: Algorithm = given.algorithm
    if given.costs is not None:
        note_costs(given.costs)
    try:
        store = open_store(None, given.project, "curves")
        tags = {**VAL_LOSS.tags(), "algorithm": algorithm}
        ledger = open_search(store, PatientWriter(120), "curves", {"seed": 3}, tags, restart=False)
        settings = EngineSettings(
            "ray", given.workers, 1, 600, ray_address=given.address, checkpoint_storage=given.storage
        )
        work = SlowCurve(given.project / "trained.txt", {}, given.epoch_secs)
        oracle = template(algorithm, given.trials, EPOCHS)
        with ledger.driving(), open_engine(settings, work, ledger) as engine:
            run_trials(ledger, oracle, work, engine, epochs=EPOCHS, seed=3)
    except FakefaceLabError as err:
        print(err, file=sys.stderr)
        return err.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
