"""What a search leaves at its end: best score, what it is worth after the selection, table, report, kept models."""

from typing import Literal

from fakeface_lab.detector.selection import ScoredTrial, SelectionReport, selection_report
from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.report.leaderboard import leaderboard, trial_0_name
from fakeface_lab.search.report.report import publish_report
from fakeface_lab.search.report.tables import trials_table
from fakeface_lab.search.settings import TuneSettings
from fakeface_lab.terminal import console, say, wide_console
from fakeface_lab.tracking.finding import children_of
from fakeface_lab.tracking.seal import OPENED_TAG, describe_openings

__all__ = ["close_search", "close_tuner_search"]


def close_search(
    ledger: Ledger, settings: TuneSettings, best: LedgerTrial, direction: Literal["min", "max"], verdict: str
) -> None:
    """Write and print the end of a search; again after each restart, with the same result.

    Args:
        ledger: of the search.
        settings: of the search.
        best: the best trial.
        direction: whether a larger or a smaller score is better.
        verdict: of the best against the documented configuration; empty without a final.
    """
    parent = ledger.parent
    selection = _selection(ledger, settings, direction)
    documented = ledger.trials[0].record.score
    scores = {"best_score": best.record.score, "documented_score": documented}
    metrics = {name: score for name, score in scores.items() if score is not None}
    parent.log_metrics(metrics | selection.metrics, 0, int(best.run.info.start_time))
    seal = _seal(ledger)
    publish_report(ledger, settings.objective, direction, " ".join([verdict, seal, *selection.sentences]).strip())
    trials = parent.writer.call(lambda: children_of(parent.store, parent.run, "trial"))
    wide_console.print(trials_table(leaderboard(trials, direction), trial_0_name(parent.run)))
    models = [run for run in trials if run.data.tags.get("model") == "logged"]
    num_bytes = sum(4 * run.data.metrics.get("num_params", 0) for run in models)
    say("models", f"{len(models)} of trials kept, {num_bytes / 1e6:,.0f} MB (--keep-models)")
    for sentence in selection.sentences:
        say("worth", sentence)
    if verdict:
        say("verdict", verdict)
    if seal:
        say("seal", seal)


def close_tuner_search(ledger: Ledger, objective: str, direction: Literal["min", "max"]) -> None:
    """The same for a `Tuner`, which knows its user's score and nothing else: no test split, so no verdict."""
    parent = ledger.parent
    trials = parent.writer.call(lambda: children_of(parent.store, parent.run, "trial"))
    table = leaderboard(trials, direction)
    scored = table[table["score"].notna()]
    if scored.empty:
        return
    best, defaults = scored.iloc[0], scored[scored["trial"] == 0]
    metrics = {"best_score": float(best["score"])}
    worth = f"{best['run']}: the best {objective}, {best['score']:.4f}"
    if len(defaults):
        metrics["defaults_score"] = float(defaults["score"].iloc[0])
        worth += f"; with all hyperparameters at their defaults (t000): {metrics['defaults_score']:.4f}"
    # A repeated configuration was not another chance to be lucky.
    num_tried = len(scored) - sum("duplicate_of" in run.data.tags for run in trials)
    if num_tried > 1:
        worth += f". Picked as the best of {num_tried}, it looks better than it is: score it on data kept apart"
    parent.log_metrics(metrics, 0, int(parent.run.info.start_time))
    publish_report(ledger, objective, direction, f"{worth}.")
    if not console.quiet:
        wide_console.print(trials_table(table, trial_0_name(parent.run)))
        say("worth", f"{worth}.")


def _seal(ledger: Ledger) -> str:
    """Return how often the test images were opened; empty where this search has not looked at them."""
    parent = ledger.parent

    def describe() -> str:
        opened = parent.store.client.get_run(parent.run_id).data.tags.get(OPENED_TAG)
        return describe_openings(parent.store, opened) if opened else ""

    return parent.writer.call(describe)


def _selection(ledger: Ledger, settings: TuneSettings, direction: Literal["min", "max"]) -> SelectionReport:
    """Return what the best score is worth as the best of many; repeated configurations count once."""
    scored = [
        ScoredTrial(trial.run, trial.record.values, trial.record.score)
        for trial in ledger.trials
        if trial.record.score is not None and "duplicate_of" not in trial.run.data.tags
    ]
    store = ledger.parent.store
    return ledger.parent.writer.call(
        lambda: selection_report(
            store,
            scored,
            space=settings.space,
            algorithm=settings.algorithm,
            objective=settings.objective,
            maximize=direction == "max",
            part="validation" if settings.split == "sealed" else "test",
        )
    )
