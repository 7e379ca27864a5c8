"""What it costs to ask what to try next, at the size a search has reached.

    python benchmarks/suggestion_cost.py
    python benchmarks/suggestion_cost.py --algorithms bayesian --trials 100 300 1000
    python benchmarks/suggestion_cost.py --at-once --algorithms random --trials 100000

Searches are simulated: trials end at once with a score, nothing is trained or stored. CPU seconds of this process.
*First ask* is that of a search just started again, *warm ask* the median of the last questions of one that ran on,
*whole life* the sum over all questions. The Bayesian search keeps nothing from one question to the next, and its
ledger is drawn at random: it has a first ask only. With `--at-once` one oracle makes the whole ledger of a search of
one trial at a time, without the questions: for sizes at which they would take long.
"""

import argparse
import statistics
import time
from dataclasses import replace

import keras_tuner

from fakeface_lab.detector.space import OracleSpec, build_oracle
from fakeface_lab.search.suggest.oracle_copy import OracleCopy
from fakeface_lab.search.suggest.oracles import first_values
from fakeface_lab.search.suggest.suggestion import Suggestion, TrialRecord, failed_parent, suggest
from fakeface_lab.settings import Algorithm

__all__: list[str] = []

NUM_WARM_ASKS = 100


def space() -> keras_tuner.HyperParameters:
    """Eight hyperparameters of a small network; a grid over them has 80,640 combinations."""
    space = keras_tuner.HyperParameters()
    space.Float("learning_rate", 1e-5, 1e-2, sampling="log", default=1e-3)
    space.Int("dropout_percent", 0, 60, step=10, default=30)
    space.Int("filters", 8, 64, step=8, default=32)
    space.Int("dense_units", 32, 512, step=32, default=128)
    space.Choice("batch_size", [16, 32, 64], default=32)
    space.Boolean("augmentation", default=True)
    space.Choice("optimizer", ["adam", "sgd", "rmsprop"])
    space.Fixed("image_size", 300)
    return space


def new_template(algorithm: Algorithm) -> keras_tuner.Oracle:
    """Return an oracle that no question was put to; Hyperband with iterations enough for any number of trials."""
    return build_oracle(OracleSpec(algorithm, space(), max_epochs=81, iterations=1_000))


def timed_ask(template: keras_tuner.Oracle, trials: list[TrialRecord]) -> tuple[object, float]:
    """Return an answer and its CPU seconds."""
    started = time.process_time()
    answer = suggest(template, trials)
    return answer, time.process_time() - started


def simulate(algorithm: Algorithm, num_trials: int, num_workers: int) -> tuple[list[TrialRecord], list[float]]:
    """Return the ledger of a search with some trials running, and the CPU seconds of each of its questions."""
    template, trials, secs, order = new_template(algorithm), list[TrialRecord](), list[float](), 0
    while len(trials) < num_trials:
        running = [trial for trial in trials[-50 * num_workers :] if trial.status == "running"]
        answer: object = None
        if len(running) < num_workers:
            answer, taken_secs = timed_ask(template, trials)
            secs.append(taken_secs)
        if isinstance(answer, Suggestion):
            trials.append(TrialRecord(len(trials), answer.values, answer.bracket_values, order, None, "running", None))
        else:
            oldest = running[0]
            is_failed = failed_parent(oldest.bracket_values, trials) is not None or oldest.sequence % 10 == 9
            score = None if is_failed else oldest.sequence * 0.618 % 1
            trials[oldest.sequence] = replace(
                oldest, ended_order=order, status="failed" if is_failed else "finished", score=score
            )
        order += 1
    return trials, secs


def simulate_at_once(algorithm: Algorithm, num_trials: int) -> tuple[list[TrialRecord], list[float]]:
    """Return the ledger of a search of one trial at a time, and the CPU seconds of the questions that go on from it."""
    template = new_template(algorithm)
    oracle, trials = OracleCopy(template), list[TrialRecord]()
    with oracle:
        for number in range(num_trials):
            answer = oracle.ask(number) if number else oracle.put(0, first_values(template))
            score = number * 0.618 % 1
            oracle.tell(number, score)
            trials.append(
                TrialRecord(number, answer.values, answer.bracket_values, 2 * number, 2 * number + 1, "finished", score)
            )
    grown, secs = list(trials), list[float]()
    for _ in range(1 + NUM_WARM_ASKS):
        suggestion, taken_secs = timed_ask(template, grown)
        assert isinstance(suggestion, Suggestion)
        number, order = len(grown), 2 * len(grown)
        values = suggestion.values
        grown.append(TrialRecord(number, values, suggestion.bracket_values, order, order + 1, "finished", 0.5))
        secs.append(taken_secs)
    return trials, secs[1:]


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=["random", "grid", "hyperband"])
    parser.add_argument("--trials", type=int, nargs="+", default=[1_000, 2_000, 10_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--at-once", action="store_true")
    options = parser.parse_args()
    print(f"| algorithm | running | trials | first ask, s | warm ask, s | whole life, s |\n|{'---|' * 6}")
    for algorithm in options.algorithms:
        for num_workers in options.workers:
            for num_trials in options.trials:
                is_bayesian = algorithm == "bayesian"
                if options.at_once:
                    trials, secs = simulate_at_once(algorithm, num_trials)
                else:
                    trials, secs = simulate("random" if is_bayesian else algorithm, num_trials, num_workers)
                _, first_secs = timed_ask(new_template(algorithm), trials)
                warm_secs = statistics.median(secs[-NUM_WARM_ASKS:])
                whole = "–" if options.at_once else f"{sum(secs):.1f}"
                rest = "– | –" if is_bayesian else f"{warm_secs:.4f} | {whole}"
                running = sum(trial.status == "running" for trial in trials)
                print(f"| {algorithm} | {running} | {num_trials:,} | {first_secs:.2f} | {rest} |", flush=True)


if __name__ == "__main__":
    main()
