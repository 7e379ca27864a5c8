"""What people see of a running search: which trial, which epoch, the best so far against trial 0."""

import time

from rich.live import Live
from rich.text import Text

from fakeface_lab.search.ledger.ledger import Ledger, LedgerTrial
from fakeface_lab.search.report.leaderboard import trial_0_name
from fakeface_lab.search.run.engine import Event
from fakeface_lab.terminal import console, format_secs

__all__ = ["SearchProgress"]


class SearchProgress:
    """One living line a running trial, and a line that stays for each ended one."""

    def __init__(self, ledger: Ledger, num_trials: int | None) -> None:
        self._ledger, self._num_trials, self._trial_0 = ledger, num_trials, trial_0_name(ledger.parent.run)
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._lines: dict[int, str] = {}
        self._started = time.monotonic()
        self._num_ended_before = len([trial for trial in ledger.trials if trial.record.status != "running"])

    def __enter__(self) -> "SearchProgress":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def trial_started(self, trial: LedgerTrial, epochs: int) -> None:
        """Begin a living line, and say for good where an interrupted trial was."""
        if trial.epochs_done:
            console.print(f"{self._title(trial)}: was interrupted after epoch {trial.epochs_done}, taken up again")
        self._lines[trial.record.sequence] = f"{self._title(trial)}: starting"
        self._draw()

    def trial_progressed(self, trial: LedgerTrial, event: Event) -> None:
        """Update the living line."""
        if event.step is not None:
            epoch, step, num_steps = event.step
            total = trial.run.data.tags.get("epochs_planned", "?")
            self._lines[trial.record.sequence] = f"{self._title(trial)}: epoch {epoch}/{total} step {step}/{num_steps}"
            self._draw()

    def trial_ended(self, trial: LedgerTrial) -> None:
        """Print the ended trial and how it compares."""
        self._lines.pop(trial.record.sequence, None)
        if trial.record.status == "failed":
            reason = trial.run.data.tags.get("status_reason", "")
            console.print(f"{self._title(trial)}: failed: {reason}", style="yellow")
        else:
            score = f"{self._ledger.objective.name} {trial.record.score:.4f}"
            console.print(f"{self._title(trial)}: {score}  {self._standing()}{self._time_left()}")
        self._draw()

    def died(self, trial: LedgerTrial, reason: str) -> None:
        """Print why a trial is tried again."""
        console.print(f"{self._title(trial)}: {reason}; trying again", style="yellow")

    def _title(self, trial: LedgerTrial) -> str:
        total = f"/{self._num_trials}" if self._num_trials else ""
        return f"trial {trial.record.sequence + 1}{total} ({trial.run.info.run_name})"

    def _standing(self) -> str:
        best, first = self._ledger.best_first()[0].record, self._ledger.trials[0].record
        text = f"best {best.score:.4f} (t{best.sequence:03d})"
        if first.score is None or best.sequence == 0:
            return text
        relation = "better than" if best.score != first.score else "not better than"
        return f"{text}, {relation} {self._trial_0} {first.score:.4f} (t000)"

    def _time_left(self) -> str:
        ended = len([trial for trial in self._ledger.trials if trial.record.status != "running"])
        measured = ended - self._num_ended_before
        if not self._num_trials or not measured or ended >= self._num_trials:
            return ""
        secs_a_trial = (time.monotonic() - self._started) / measured
        return f", about {format_secs(secs_a_trial * (self._num_trials - ended))} left"

    def _draw(self) -> None:
        self._live.update(Text("\n".join(self._lines.values()), style="cyan"))
