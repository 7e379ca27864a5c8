"""Finals are trained once; the champion is decided against the present one, and the same after every kill."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from fakeface_lab.detector.finals import Finals, Registration, explain, register, run_finals
from fakeface_lab.errors import SearchError, TrackingError
from fakeface_lab.evaluation.comparison import compare
from fakeface_lab.search.ledger.ledger import Ledger
from fakeface_lab.search.run.engine import InlineEngine
from fakeface_lab.search.run.placement import EngineSettings, open_engine
from fakeface_lab.search.run.trials import Trials
from fakeface_lab.tracking.datasets import num_openings, seal_key
from fakeface_lab.tracking.lookup import Run, get_run, logged_models
from fakeface_lab.tracking.models import model_of_run
from fakeface_lab.tracking.owner import OWNER_TAG
from fakeface_lab.tracking.serving import SERVED_NAME
from fakeface_lab.tracking.store import Store
from tests.scored_runs import record, scores_with_wrong
from tests.search import curve_work
from tests.search.curve_work import CurveWork, Notes, open_ledger, template
from tests.search.run.curve_search import run
from tests.search.run.desk import workers

SEEDS = range(3, 5)
TEST_SET = seal_key("d" * 64, "sealed", 3)


def finals(ledger: Ledger, best: int, work: CurveWork, shown: list[str] | None = None) -> Finals:
    lines = [] if shown is None else shown
    trials = ledger.trials
    return run_finals(ledger, work, InlineEngine(work), trials[best], trials[0], SEEDS, TEST_SET, lines.append)


@pytest.mark.slow
def test_the_worker_of_the_trials_trains_the_finals(new_store: Callable[[str], Store], tmp_path: Path) -> None:
    ledger = open_ledger(new_store("one worker"))
    work = CurveWork(tmp_path / "trained.txt")
    cloudpickle.register_pickle_by_value(curve_work)
    with ledger.driving(), open_engine(EngineSettings("local", 1, 1, 60), work, ledger) as engine:
        Trials(ledger, template("random", 2), work, engine, Notes(), epochs=2, seed=3).run()
        (worker,) = workers()
        trials = ledger.trials
        run_finals(ledger, work, engine, trials[1], trials[0], SEEDS, TEST_SET, lambda line: None)
        assert workers() == {worker}
    assert workers() == set()


def openings(ledger: Ledger) -> int:
    return num_openings(ledger.parent.store, TEST_SET)


def test_finals_are_trained_once_and_others_after_the_best_has_changed(
    new_store: Callable[[str], Store], tmp_path: Path
) -> None:
    ledger = run(new_store("finals"))
    work = CurveWork(tmp_path / "trained.txt")
    first = finals(ledger, 1, work)
    assert [run.data.tags["final"] for run in first.best] == ["best-3", "best-4"]
    assert [run.data.tags["final"] for run in first.documented] == ["documented-3", "documented-4"]
    assert all(run.info.status == "FINISHED" for run in (*first.best, *first.documented))
    # As many epochs as the trial kept, with each seed.
    trained = (tmp_path / "trained.txt").read_text().splitlines()
    assert sorted(trained) == [
        f"final-trial-{trial}-seed-{seed} {epoch}" for trial in (0, 1) for seed in SEEDS for epoch in (1, 2, 3, 4)
    ]
    shown: list[str] = []
    again = finals(ledger, 1, work, shown)
    assert shown == []
    assert [run.info.run_id for run in again.best] == [run.info.run_id for run in first.best]

    changed = finals(ledger, 2, work, shown)
    assert shown == ["final trial 2 seed 3: 4 epochs on train + validation",
                     "final trial 2 seed 4: 4 epochs on train + validation"]  # fmt: skip
    assert [run.info.run_id for run in changed.documented] == [run.info.run_id for run in first.documented]
    roles = [ledger.parent.store.client.get_run(run.info.run_id).data.tags["role"] for run in first.best]
    assert roles == ["former-final", "former-final"]

    alone = finals(ledger, 0, work)
    assert alone.best == alone.documented
    assert (
        explain(alone, None, 6)
        == "The documented configuration (trial 0) is the best of 6 trials: there is nothing to compare."
    )
    assert len(list(ledger.parent.store.work_folder.glob("*/epoch.ckpt"))) == 0


def test_a_failed_final_is_told_and_can_be_tried_again(new_store: Callable[[str], Store], tmp_path: Path) -> None:
    ledger = run(new_store("failed"))
    faulty = CurveWork(tmp_path / "trained.txt", {"final-trial-1-seed-4": "error"})
    with pytest.raises(SearchError, match="final trial 1 seed 4 failed: ValueError: a shape does not fit; the"):
        finals(ledger, 1, faulty)
    assert openings(ledger) == 1, "an opening counts before it happens"
    assert len(finals(ledger, 1, CurveWork(tmp_path / "trained.txt")).best) == 2
    assert openings(ledger) == 1, "the same finals go on"


def test_a_final_that_died_once_is_finished_without_a_reason(new_store: Callable[[str], Store], tmp_path: Path) -> None:
    ledger = run(new_store("died"))
    stumbling = CurveWork(tmp_path / "trained.txt", {"final-trial-1-seed-4": "once stumble"})
    shown: list[str] = []
    final = finals(ledger, 1, stumbling, shown).best[1]
    assert [line for line in shown if "cuDNN is out of order; trying again" in line]
    assert (final.info.status, final.data.tags["status_reason"]) == ("FINISHED", "")


def test_an_opening_counts_once_for_the_same_finals(new_store: Callable[[str], Store], tmp_path: Path) -> None:
    ledger = run(new_store("openings"))
    work = CurveWork(tmp_path / "trained.txt")
    counts = []
    for best in (1, 1, 2, 1):
        finals(ledger, best, work)
        counts.append(openings(ledger))
    assert counts == [1, 1, 2, 2]


def test_the_verdict_in_words() -> None:
    truth = np.array([True, False] * 10)
    scores = np.where(truth, 0.9, 0.1)[None]
    text = explain(Finals((), ()), compare(truth, scores, 1 - scores), 6)
    assert text.startswith("The best configuration is better than the documented one: of 20 images")
    assert explain(Finals((), ()), None, 6).startswith("There is no verdict: the documented configuration (trial 0)")


FEW, SOME, MANY = range(1), range(1, 4), range(4, 24)


@pytest.fixture
def side(new_store: Callable[[str], Store], tmp_path: Path) -> "Side":
    return Side(new_store("registry"), tmp_path)


class Side:
    """Makes searches whose finals have known scores and models."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self._folder = store, folder

    def search(self, name: str) -> Ledger:
        return open_ledger(self.store, name)

    def runs(self, ledger: Ledger, name: str, wrong: Sequence[range], *, split_seed: int = 0) -> tuple[Run, ...]:
        """Return one scored final for each range of images that it has wrong, each with a model."""
        runs = []
        for seed, own in enumerate(wrong):
            run_id = record(
                self.store, self._folder, f"{name} seed {seed}", scores_with_wrong(own), role="final", seed=seed,
                split_seed=split_seed, parent=ledger.parent.run_id,
            )  # fmt: skip
            client = self.store.client
            model = client.create_logged_model(self.store.experiment_id, name="model", source_run_id=run_id)
            client.finalize_logged_model(model.model_id, "READY")
            runs.append(client.get_run(run_id))
        return tuple(runs)

    def finals(self, ledger: Ledger, best: Sequence[range], documented: Sequence[range]) -> Finals:
        return Finals(self.runs(ledger, "best", best), self.runs(ledger, "documented", documented))

    def aliases(self, name: str = "faces") -> dict[str, int]:
        found = self.store.client.get_registered_model(name).aliases
        return {alias: int(version) for alias, version in found.items()}


def test_the_documented_one_is_the_first_champion_until_one_is_better(side: Side) -> None:
    first = side.search("first")
    finals = side.finals(first, [SOME] * 3, [SOME] * 3)
    found = register(first.parent, finals, "faces", "val_loss")
    assert found.aliases == {"champion": 2, "candidate": 1}
    assert found.reason == "version 2 stays champion; version 1 compared with it: cannot be decided"
    assert side.aliases() == {"champion": 2, "candidate": 1}
    champion = side.store.client.get_model_version_by_alias("faces", "champion")
    assert champion.run_id == finals.documented[0].info.run_id

    better = side.search("better")
    found = register(better.parent, side.finals(better, [FEW] * 3, [MANY] * 3), "faces", "val_loss")
    # It beats the documented one of its own search, and not the champion.
    assert found.aliases == {"candidate": 3}
    assert side.aliases() == {"champion": 2, "candidate": 3}

    weak = side.search("weak champion")
    assert register(weak.parent, side.finals(weak, [FEW] * 3, [MANY] * 3), "others", "val_loss") == Registration(
        {"candidate": 1, "champion": 1}, "version 1 is better than version 2 on the same test images and replaces it"
    )
    assert side.aliases("others") == {"champion": 1, "candidate": 1}


def test_all_seeds_of_the_champion_are_judged_and_said(side: Side) -> None:
    first = side.search("first")
    # The champion's first seed is bad, all of its seeds together are not.
    documented = [MANY, range(30, 31), range(40, 41)]
    register(first.parent, side.finals(first, [range(50, 51)] * 3, documented), "faces", "val_loss")
    champion = side.store.client.get_model_version_by_alias("faces", "champion")
    assert json.loads(champion.tags["judged_runs"]) != [champion.run_id]
    assert champion.tags["test_accuracy"] == "0.8"
    assert champion.description == (
        "documented seed 0: test accuracy 0.8 by itself. Verdicts about it average the probabilities of 3 seeds (test "
        "accuracy 0.8, 0.99, 0.99); registered is the first, whatever it scored."
    )
    second = side.search("second")
    found = register(second.parent, side.finals(second, [FEW] * 3, [SOME] * 3), "faces", "val_loss")
    assert found.reason == "version 2 stays champion; version 3 compared with it: cannot be decided"


def test_a_champion_of_other_images_or_without_scores_stays(side: Side) -> None:
    first = side.search("first")
    other_split = Finals((), side.runs(first, "documented", [MANY] * 3, split_seed=1))
    register(first.parent, Finals(other_split.documented, other_split.documented), "faces", "val_loss")
    second = side.search("second")
    finals = side.finals(second, [FEW] * 3, [MANY] * 3)
    found = register(second.parent, finals, "faces", "val_loss")
    assert found.aliases == {"candidate": 2}
    assert found.reason.startswith(
        "version 1 stays champion; version 2 compared with it: not comparable, one was scored on "
    )
    assert "split sealed seed 0, test images, the other on faces dddddddd, split sealed seed 1, test" in found.reason

    client = side.store.client
    client.set_model_version_tag("faces", "1", "judged_runs", json.dumps(["0" * 32]))
    third = side.search("third")
    found = register(third.parent, side.finals(third, [FEW] * 3, [MANY] * 3), "faces", "val_loss")
    assert found.reason.endswith("compared with it: not comparable, its runs are no longer in the store")
    assert side.aliases() == {"champion": 1, "candidate": 3}
    fourth = side.search("robust")
    client.set_registered_model_alias("faces", "champion", "2")
    found = register(fourth.parent, side.finals(fourth, [FEW] * 3, [MANY] * 3), "faces", "worst_stress")
    assert "has no stress_scores.csv" in found.reason


def test_a_process_that_was_replaced_registers_nothing(side: Side) -> None:
    ledger = side.search("replaced")
    finals = side.finals(ledger, [FEW] * 3, [MANY] * 3)
    side.store.client.set_tag(ledger.parent.run_id, OWNER_TAG, "another process")
    with pytest.raises(TrackingError, match="another process has taken it over"):
        register(ledger.parent, finals, "faces", "val_loss")
    assert not side.store.client.search_registered_models()


def test_without_a_documented_final_nobody_is_champion(side: Side) -> None:
    ledger = side.search("alone")
    found = register(ledger.parent, Finals(side.runs(ledger, "best", [FEW]), ()), "faces", "val_loss")
    assert found == Registration({"candidate": 1}, "there is no champion: the documented configuration failed")
    assert side.aliases() == {"candidate": 1}


def test_an_old_result_shown_again_moves_nothing(side: Side) -> None:
    ledger = side.search("first")
    finals = side.finals(ledger, [FEW] * 3, [MANY] * 3)
    found = register(ledger.parent, finals, "faces", "val_loss")
    side.store.client.set_registered_model_alias("faces", "champion", "2")
    side.store.client.set_registered_model_alias("faces", "candidate", "2")
    assert register(ledger.parent, finals, "faces", "val_loss") == found
    assert side.aliases() == {"champion": 2, "candidate": 2}


def served_of(store: Store, run: Run) -> str:
    """Return the address of the only served form of a run's model, which is complete."""
    (served,) = logged_models(store, run.info.run_id, name=SERVED_NAME)
    assert served.status == "READY"
    # The run was finished before, and stays as it was.
    assert get_run(store, run.info.run_id).outputs.model_outputs == []
    return f"models:/{served.model_id}"


class Cut(TrackingError):
    """The process is gone."""


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_cut_after_each_write_it_ends_the_same(side: Side, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Each write of a registration is the last one once; started again, aliases, tags and versions are the same."""
    writes = ("create_registered_model", "create_logged_model", "log_model_artifacts", "finalize_logged_model",
              "create_model_version", "set_model_version_tag", "update_model_version", "set_registered_model_alias",
              "log_batch")  # fmt: skip
    client = side.store.client
    num_cuts = 0
    while True:
        ledger = side.search(f"cut {num_cuts}")
        finals, name = side.finals(ledger, [FEW] * 3, [MANY] * 3), f"faces {num_cuts}"
        left = num_cuts

        def cut_after(write: Callable[..., object]) -> Callable[..., object]:
            def written(*args: object, **kwargs: object) -> object:
                nonlocal left
                done = write(*args, **kwargs)
                left -= 1
                if left == -1:
                    raise Cut("killed")
                return done

            return written

        with monkeypatch.context() as patch:
            for write in writes:
                patch.setattr(client, write, cut_after(getattr(client, write)))
            try:
                register(ledger.parent, finals, name, "val_loss")
                was_cut = False
            except Cut:
                was_cut = True
        found = register(ledger.parent, finals, name, "val_loss")
        assert found.aliases == {"candidate": 1, "champion": 1}, num_cuts
        assert found.reason == "version 1 is better than version 2 on the same test images and replaces it", num_cuts
        assert side.aliases(name) == {"candidate": 1, "champion": 1}, num_cuts
        tags = client.get_run(ledger.parent.run_id).data.tags
        assert json.loads(tags["registered"])["aliases"] == found.aliases, num_cuts
        versions = client.search_model_versions(f"name = '{name}'")
        assert sorted(served_of(side.store, run) for run in (finals.best[0], finals.documented[0])) == sorted(
            version.source for version in versions
        ), num_cuts
        if not was_cut:
            break
        num_cuts += step
    assert num_cuts - step < 21 <= num_cuts


def test_a_plan_that_another_search_has_overtaken_is_made_anew(side: Side) -> None:
    ledger = side.search("first")
    finals = side.finals(ledger, [FEW] * 3, [MANY] * 3)
    register(ledger.parent, finals, "faces", "val_loss")
    other = side.search("other")
    (strong,) = side.runs(other, "strong", [range(0)])
    client = side.store.client
    version = client.create_model_version("faces", str(model_of_run(side.store, strong.info.run_id)))
    client.delete_tag(ledger.parent.run_id, "registered")  # as if killed between alias and tag
    client.set_registered_model_alias("faces", "champion", version.version)
    found = register(ledger.parent, finals, "faces", "val_loss")
    assert found.reason == "version 3 stays champion; version 1 compared with it: cannot be decided"
    assert side.aliases() == {"champion": 3, "candidate": 1}
