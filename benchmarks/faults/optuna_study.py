"""What both Optuna sides share: a sampler that survives the process, and trials until enough are complete.

Optuna's FAQ says that a storage does not keep the sampler's state and that it has to be pickled for a study to be
resumed reproducibly; here that is done after each trial.
"""

import pickle
from collections.abc import Callable
from pathlib import Path

import optuna
from curve import NUM_TRIALS, SEED, Trial
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

__all__ = ["load_sampler", "optimize", "read_trials"]

_SAMPLER = Path("sampler.pkl")


def load_sampler() -> optuna.samplers.BaseSampler:
    """Return the sampler as it was after the last finished trial; a new one for a new study."""
    if _SAMPLER.exists():
        sampler: optuna.samplers.BaseSampler = pickle.loads(_SAMPLER.read_bytes())
        return sampler
    return optuna.samplers.RandomSampler(seed=SEED)


def optimize(study: optuna.Study, objective: Callable[[optuna.Trial], float]) -> None:
    """Run trials until as many as asked for are complete, those of earlier processes included."""
    # The callback looks only after a trial.
    if len(study.get_trials(states=(TrialState.COMPLETE,))) < NUM_TRIALS:
        enough = optuna.study.MaxTrialsCallback(NUM_TRIALS, states=(TrialState.COMPLETE,))
        study.optimize(objective, callbacks=[_save_sampler, enough])


def _save_sampler(study: optuna.Study, _trial: FrozenTrial) -> None:
    new = _SAMPLER.with_suffix(".new")
    new.write_bytes(pickle.dumps(study.sampler))
    new.replace(_SAMPLER)


def read_trials(study: optuna.Study) -> list[Trial]:
    """Return the trials of a study; one that failed or still runs has no score."""
    trials = study.get_trials()
    # A stale trial that was tried again under another number is no loss.
    retried = {number for trial in trials for number in RetryHeartbeatStaleTrialCallback.retry_history(trial)}
    return [
        Trial(trial.params.get("x"), trial.value if trial.state == TrialState.COMPLETE else None)
        for trial in trials
        if trial.number not in retried
    ]
