"""Program: does a test notice each of these faults?

    python -m tests.mutants                  # all
    python -m tests.mutants ready heartbeat  # those whose names contain one of the words

Each fault is put into a copy of the project, where the tests named beside it must fail; without it they must pass.
Exit code 1: a fault that no test notices, or a text that is not exactly once where it should be.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MUTANTS", "Mutant", "main", "mutated"]

PROJECT = Path(__file__).parents[1]
_COPIED = (
    "fakeface_lab",
    "tests",
    "experiments",
    "benchmarks",
    "deploy",
    "docs",
    "pyproject.toml",
    "Makefile",
    "README.md",
)
_CRITICAL_MOMENTS = "tests/test_cut_at_every_write.py::test_a_search_killed_at_its_critical_moments_is_the_same"
_KILLED_AFTER_ANY_EPOCH = "tests/training/test_callback_state.py::test_killed_after_any_epoch_a_training_ends_bit_equal"


_RECORD = (
    "    record_opening(ledger.parent, test_set, "
    'f"trial {best.record.sequence}, seeds {seeds.start} to {seeds.stop - 1}")\n'
)
_RETRAIN = (
    "    retraining = _Retraining(ledger, work, engine, assignments, show)\n"
    "    retraining.run()\n"
    "    runs = retraining.runs()\n"
)


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        name: what is wrong then.
        file: where, from the project folder.
        old: text that occurs exactly once in the file.
        new: what stands in its place.
        tests: which must fail, as pytest takes them.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "the best score of a search that goes on stays that of its first report",
        "fakeface_lab/search/report/report.py",
        "parent.log_metrics(metrics, len(ledger.trials),",
        "parent.log_metrics(metrics, 0,",
        ("tests/search/report/test_report.py::test_metrics_of_a_search_that_goes_on_are_those_of_its_last_report",),
    ),
    Mutant(
        "two drivers that begin a search at the same time are two searches",
        "fakeface_lab/search/ledger/resume.py",
        "key=_key(name, parents)",
        "key=None",
        (
            "tests/search/ledger/test_resume.py"
            "::test_of_two_drivers_that_begin_a_search_at_the_same_time_one_is_refused",
        ),
    ),
    Mutant(
        "a data set named by two runs at once is an error on PostgreSQL",
        "fakeface_lab/tracking/writer.py",
        '("IntegrityError", "UniqueViolation")',
        '("IntegrityError",)',
        ("tests/tracking/test_writer.py::test_errors_that_are_transient",),
    ),
    Mutant(
        "a driver is replaced because the server was away",
        "fakeface_lab/search/ledger/heartbeat.py",
        "            watched_since = time.monotonic()\n",
        "            pass\n",
        ("tests/search/ledger/test_heartbeat.py::test_a_driver_is_not_replaced_because_the_server_was_away",),
    ),
    Mutant(
        "an upload gives up while the database of a server's users is away",
        "fakeface_lab/tracking/writer.py",
        " in (401, 429)",
        " == 429",
        ("tests/deploy/test_writes.py::test_an_upload_waits_while_its_user_cannot_be_looked_up",),
    ),
    Mutant(
        "a model is READY before its files are there",
        "fakeface_lab/tracking/models.py",
        """        run.writer.call(lambda: client.log_model_artifacts(model.model_id, str(folder)))
        run.writer.call(lambda: client.log_batch(run.run_id, metrics=entities))
        run.writer.call(lambda: client.finalize_logged_model(model.model_id, LoggedModelStatus.READY))
""",
        """        run.writer.call(lambda: client.finalize_logged_model(model.model_id, LoggedModelStatus.READY))
        run.writer.call(lambda: client.log_model_artifacts(model.model_id, str(folder)))
        run.writer.call(lambda: client.log_batch(run.run_id, metrics=entities))
""",
        (_CRITICAL_MOMENTS,),
    ),
    Mutant(
        "finals that are registered are registered again",
        "fakeface_lab/detector/finals.py",
        """    if done.get("runs") != these:
        done = """,
        """    if True:
        done = """,
        ("tests/detector/test_finals.py",),
    ),
    Mutant(
        "a request with an unusable image fails with a trace",
        "fakeface_lab/tracking/serving.py",
        "            raise BadRequestError(str(err)) from err\n",
        "            raise\n",
        ("tests/test_serving.py",),
    ),
    Mutant(
        "a model of another kind is loaded as a Keras model",
        "fakeface_lab/tracking/lookup.py",
        """    if "keras" not in info.flavors:
""",
        """    if False:
""",
        ("tests/test_refused_models.py",),
    ),
    Mutant(
        "the opening of the test split is recorded after the finals",
        "fakeface_lab/detector/finals.py",
        _RECORD + _RETRAIN,
        _RETRAIN + _RECORD,
        (_CRITICAL_MOMENTS,),
    ),
    Mutant(
        "the heartbeat does nothing",
        "fakeface_lab/search/ledger/heartbeat.py",
        """                self._parent.tag_if_owned(self._tags(self._heartbeat()))
""",
        "                pass\n",
        ("tests/search/ledger/test_heartbeat.py::test_the_heart_beats",),
    ),
    Mutant(
        "a checkpoint is written into the old one",
        "fakeface_lab/training/checkpoint.py",
        '    partial = path.with_suffix(".partial")\n',
        "    partial = path\n",
        ("tests/training/test_checkpoint.py::test_a_killed_write_leaves_the_old_checkpoint",),
    ),
    Mutant(
        "the best epoch's weights get no second name before their checkpoint is replaced",
        "fakeface_lab/training/recorder.py",
        "            if self.kept_epoch == self._saved_epoch:\n",
        "            if self.kept_epoch == epoch:\n",
        ("tests/training/test_recorder.py::test_kept_weights_are_those_of_the_kept_epoch",),
    ),
    Mutant(
        "the last epoch is reported before its outcome is written",
        "fakeface_lab/training/recorder.py",
        "            self._write(previous)\n            self._report(record)\n",
        "            self._write(previous)\n        self._report(record)\n",
        ("tests/training/test_recorder.py::test_the_last_epoch_is_reported_when_its_outcome_is_written",),
    ),
    Mutant(
        "the outputs of a validation are added to those of the one before",
        "fakeface_lab/detector/fit.py",
        "        outputs.clear()\n",
        "",
        ("tests/training/test_recorder.py::test_scores_after_each_epoch_are_those_of_its_weights",),
    ),
    Mutant(
        "the driver waits for uploads before the next trial",
        "fakeface_lab/search/run/driver.py",
        "        closed = self.uploads.collect(upload_secs)\n",
        "        closed = self.uploads.collect(0.0 if self._running else _POLL_SECS)\n",
        ("tests/search/run/test_uploads.py::test_a_driver_with_one_worker_waits_for_no_upload_before_the_next_trial",),
    ),
    Mutant(
        "what a trial has found is not in the write that ends it",
        "fakeface_lab/search/run/trials.py",
        '"epochs_done": str(len(outcome.records)), **found}',
        '"epochs_done": str(len(outcome.records))}',
        ("tests/search/run/test_growing_trials.py::test_what_trials_find_is_in_the_write_that_ends_them",),
    ),
    Mutant(
        "an earlier trial lacks what was found after it",
        "fakeface_lab/search/suggest/oracle_copy.py",
        "            earlier.hyperparameters.values = with_defaults("
        "oracle.hyperparameters, earlier.hyperparameters.values)\n",
        "            pass\n",
        ("tests/search/suggest/test_template.py::test_what_an_earlier_trial_lacks_counts_as_its_default[grid]",),
    ),
    Mutant(
        "a question to the Gaussian process draws no random numbers when it is replayed",
        "fakeface_lab/search/suggest/replay.py",
        "            self._oracle.skip_gaussian_process()\n",
        "",
        (
            "tests/search/suggest/test_template.py::test_without_forced_defaults_the_trials_are_those_of_kerastuner"
            "[bayesian-kind rate-in_scopes]",
        ),
    ),
    Mutant(
        "a saved view has the trials of every search",
        "fakeface_lab/tracking/views.py",
        "f\"tags.`mlflow.parentRunId` = '{search.info.run_id}' and tags.role = 'trial'\"",
        "\"tags.role = 'trial'\"",
        ("tests/tracking/test_views.py::test_a_view_selects_the_trials_of_its_search_and_nothing_else",),
    ),
    Mutant(
        "a refused view ends the search",
        "fakeface_lab/tracking/views.py",
        "    except TrackingError as err:\n",
        "    except KeyError as err:\n",
        ("tests/tracking/test_views.py::test_a_refusal_is_told_and_ends_nothing",),
    ),
    Mutant(
        "callbacks begin anew when a training resumes",
        "fakeface_lab/training/callback_state.py",
        "                setattr(callback, name, value)\n",
        "                pass\n",
        (f"{_KILLED_AFTER_ANY_EPOCH}[combination]",),
    ),
    Mutant(
        "a training that a callback has ended trains on after a kill",
        "fakeface_lab/training/hypermodel.py",
        "    if done < epochs and not recorder.has_stopped:\n",
        "    if done < epochs:\n",
        (f"{_KILLED_AFTER_ANY_EPOCH}[combination]",),
    ),
    Mutant(
        "CSVLogger overwrites its rows when a training resumes",
        "fakeface_lab/training/callback_state.py",
        "                callback.append = True\n",
        "                pass\n",
        (f"{_KILLED_AFTER_ANY_EPOCH}[combination]",),
    ),
    Mutant(
        "TensorBoard counts batches from 0 when a training resumes",
        "fakeface_lab/training/callback_state.py",
        '        state=("_global_train_batch", "_global_test_batch"),\n',
        "        state=(),\n",
        (f"{_KILLED_AFTER_ANY_EPOCH}[TensorBoard]",),
    ),
    Mutant(
        "a callback gets the state of one with other settings",
        "fakeface_lab/training/callback_state.py",
        """        return [state["settings"] for state in states] == self._settings
""",
        "        return len(states) == len(self._settings)\n",
        ("tests/training/test_callback_state.py::test_a_state_is_never_put_into_a_callback_that_it_does_not_fit",),
    ),
    Mutant(
        "nobody drives a search while its models are registered",
        "fakeface_lab/search/ledger/ledger.py",
        "with self.parent.ending(), Heartbeat(self.parent) as self._heartbeat:",
        "self._heartbeat = Heartbeat(self.parent)\n        with self.parent.ending():",
        (
            "tests/search/run/test_trials.py::test_the_search_says_who_drives_it_until_all_is_written",
            "tests/detector/test_search.py::test_another_process_is_kept_out_until_the_end",
        ),
    ),
    Mutant(
        "a driver that was replaced in its last writes ends the search of its successor",
        "fakeface_lab/search/ledger/heartbeat.py",
        "            self._parent.require_owned()\n",
        "",
        ("tests/search/run/test_trials.py::test_a_process_that_was_replaced_leaves_the_search_to_its_successor",),
    ),
    Mutant(
        "a driver that was replaced registers its models",
        "fakeface_lab/detector/finals.py",
        "    parent.require_owned()  # creating",
        "    # creating",
        ("tests/detector/test_finals.py::test_a_process_that_was_replaced_registers_nothing",),
    ),
    Mutant(
        "the interval under stress is a percentile interval",
        "fakeface_lab/evaluation/stress/comparison.py",
        "Interval(round(2 * found - float(high), 12), round(2 * found - float(low), 12))",
        "Interval(round(float(low), 12), round(float(high), 12))",
        ("tests/evaluation/stress/test_comparison.py",),
    ),
    Mutant(
        "p-values of probes are not corrected",
        "fakeface_lab/evaluation/audit/audit.py",
        "zip(probes, holm(tests), strict=True)",
        "zip(probes, tests, strict=True)",
        ("tests/evaluation/audit/test_audit.py",),
    ),
    Mutant(
        "p-values of slices are not corrected",
        "fakeface_lab/evaluation/audit/findings.py",
        "zip(slices, holm(tests), strict=True)",
        "zip(slices, tests, strict=True)",
        ("tests/evaluation/audit/test_findings.py",),
    ),
    Mutant(
        "the p-value of a slice is ignored",
        "fakeface_lab/evaluation/audit/findings.py",
        "if purity.low >= min_purity and p_value <= significance:",
        "if purity.low >= min_purity:",
        ("tests/evaluation/audit/test_findings.py",),
    ),
    Mutant(
        "the purity of a slice is its point estimate",
        "fakeface_lab/evaluation/audit/findings.py",
        "if purity.low >= min_purity and",
        "if purity.value >= min_purity and",
        ("tests/evaluation/audit/test_findings.py",),
    ),
    Mutant(
        "a shortcut makes results void from an AUC of 0.75 on",
        "fakeface_lab/evaluation/audit/audit.py",
        "fail_auc: float = 0.90",
        "fail_auc: float = 0.75",
        ("tests/evaluation/audit/test_audit.py", "tests/evaluation/audit/test_findings.py"),
    ),
    Mutant(
        "pure slices make results void only if they are nearly the whole set",
        "fakeface_lab/evaluation/audit/audit.py",
        "fail_slice_fraction: float = 0.5",
        "fail_slice_fraction: float = 0.99",
        ("tests/evaluation/audit/test_audit.py", "tests/evaluation/audit/test_findings.py"),
    ),
    Mutant(
        "a calibration error is judged at 99 %",
        "fakeface_lab/evaluation/scores.py",
        "float(np.quantile(null_eces, 0.95))",
        "float(np.quantile(null_eces, 0.99))",
        ("tests/evaluation/test_scores.py",),
    ),
    Mutant(
        "the search ends when its last training fails while a suggestion is computed",
        "fakeface_lab/search/run/driver.py",
        "return self.is_suggesting or bool(deferred)",
        "return self.is_suggesting",
        (
            "tests/search/run/test_two_at_a_time.py::test_a_failure_while_a_suggestion_is_computed_does_not_end_the_search",
        ),
    ),
    Mutant(
        "a repeat takes what an interrupted upload has written so far",
        "fakeface_lab/search/run/uploads.py",
        "if source.is_open and not any(",
        "if False and not any(",
        ("tests/search/run/test_two_at_a_time.py::test_a_repeat_waits_for_the_upload_that_a_kill_has_interrupted",),
    ),
    Mutant(
        "the children of a dead worker keep its socket open",
        "fakeface_lab/search/run/local_engine.py",
        "worker.kill()  # its children: then the socket closes",
        "pass",
        ("tests/search/run/test_engine_contract.py::test_a_death_costs_one_attempt[local]",),
    ),
    Mutant(
        "an interrupted start leaves a lock behind",
        "fakeface_lab/tracking/owner.py",
        "    except BaseException:\n        lock.release()\n        raise",
        "    except BaseException:\n        raise",
        ("tests/search/ledger/test_resume.py::test_a_start_that_was_interrupted_leaves_nothing_locked",),
    ),
    Mutant(
        "on Ray an exit of the user's code is no end",
        "fakeface_lab/search/run/ray_engine.py",
        "except BaseException as err:  # `sys.exit`",
        "except ValueError as err:  # `sys.exit`",
        ("tests/search/run/test_ray_training.py::test_an_exit_of_the_users_code_ends_the_attempt",),
    ),
)


def mutated(mutant: Mutant, text: str) -> str:
    """Return the file's text with the fault in it.

    Raises:
        ValueError: the text to replace is not there, or more than once.
    """
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} has the text {text.count(mutant.old)} times, not once")
    return text.replace(mutant.old, mutant.new)


def _fails(root: Path, tests: tuple[str, ...]) -> bool:
    words = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-x", "-p", "no:cacheprovider", "--no-header"]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*words, "-m", "", *tests], cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest could not run {tests}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main(argv: list[str]) -> int:
    """Try the faults whose names contain one of the words; all without words."""
    chosen = [mutant for mutant in MUTANTS if not argv or any(word in mutant.name for word in argv)]
    num_bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for name in _COPIED:
            whole = PROJECT / name
            if whole.is_dir():
                shutil.copytree(whole, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif whole.exists():
                shutil.copy(whole, root / name)
        sound = {tests: not _fails(root, tests) for tests in dict.fromkeys(mutant.tests for mutant in chosen)}
        for mutant in chosen:
            began = time.monotonic()
            path = root / mutant.file
            text = path.read_text()
            path.write_text(mutated(mutant, text))
            is_noticed = sound[mutant.tests] and _fails(root, mutant.tests)
            path.write_text(text)
            verdict = "noticed" if is_noticed else "NOT NOTICED" if sound[mutant.tests] else "TESTS FAIL WITHOUT IT"
            print(f"{verdict} ({time.monotonic() - began:.0f} s): {mutant.name}", flush=True)
            num_bad += not is_noticed
    print(f"{len(chosen)} faults, {num_bad} not noticed")
    return 1 if num_bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
